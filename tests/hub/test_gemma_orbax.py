"""Gemma's own Orbax checkpoints, written on the spot: numbers land where they belong, or nowhere.

State dicts for transformers are built head by head from the same arrays, by other formulas.
"""

import dataclasses
import functools
import logging
import os
import shutil
import weakref

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tiny
from flax import traverse_util

from perl import trees
from perl.hub import gemma_layout, gemma_orbax, pretrained, tensors
from perl.hub.config_json import Unsupported
from perl.hub.tensors import CorruptTensors
from perl.models import config as configs
from perl.models import lm
from perl.models.config import Config
from perl.models.rope import Scaling
from perl.models.transformer import Transformer
from perl.quantization import quantize_tree
from perl.quantized import Scheme
from perl.train import sharding

L, V, D, K, F = 3, 40, 16, 8, 24
GEMMA = dict(
  vocab_size=V, layers=L, width=D, head_dim=K, mlp_width=F, norm_offset=True, embed_scale=True,
  activation='gelu_tanh', max_positions=64
)
WINDOWS = dict(post_norm=True, query_scale=12**-0.5, window=4, window_layers=(True, True, False))
FAMILIES = {
  'gemma': dict(heads=2, kv_heads=1),
  'gemma fused': dict(heads=2, kv_heads=2),
  'gemma2': dict(heads=4, kv_heads=2, attention_softcap=5.0, final_softcap=3.0, **WINDOWS),
  'gemma3': dict(
    heads=4, kv_heads=2, qk_norm=True, rope_theta=1e6, rope_local_theta=1e4,
    rope_scaling=Scaling('linear', 8.0), **WINDOWS),
}
TURNED = {'gemma3'}  # whose gate is stored as [2, F, D]
LAYOUTS = ('flat', 'nested', 'params', 'transformer')
LENGTHS = [10, 7, 1, 4]


def config(family, **overrides):
  return Config(**{**GEMMA, **FAMILIES[family], **overrides})


def arrays(family, dtype=np.float32, seed=0):
  """{'layer_0/attn/q_einsum/w': array}."""
  c, rng = config(family), np.random.default_rng(seed)
  h, g = c.heads, c.kv_heads
  shapes = {'embedder/input_embedding': (V, D), 'final_norm/scale': (D,)}
  for i in range(L):
    layer = {
      'attn/attn_vec_einsum/w': (h, K, D), 'mlp/linear/w': (F, D),
      'mlp/gating_einsum/w': (2, F, D) if family in TURNED else (2, D, F),
      'pre_attention_norm/scale': (D,), 'pre_ffw_norm/scale': (D,),
    }
    layer |= {'attn/qkv_einsum/w': (3, h, D, K)} if h == g else {
      'attn/q_einsum/w': (h, D, K), 'attn/kv_einsum/w': (2, g, D, K)}
    if c.post_norm:
      layer |= {'post_attention_norm/scale': (D,), 'post_ffw_norm/scale': (D,)}
    if c.qk_norm:
      layer |= {'attn/_query_norm/scale': (K,), 'attn/_key_norm/scale': (K,)}
    shapes |= {f'layer_{i}/{name}': shape for name, shape in layer.items()}
  return {n: (0.3 * rng.normal(size=s)).astype(dtype) for n, s in shapes.items()}


def tree_of(flat, layout):
  """As released, or as their library saves it: then the MLP's arrays are leaves themselves."""
  if layout == 'flat':
    names = {name.rpartition('/')[::2]: x for name, x in flat.items()}
    join = lambda outer: outer if outer.startswith('SigLiP') else f'transformer/{outer}'
    return traverse_util.unflatten_dict({(join(a), b): x for (a, b), x in names.items()})
  short = lambda n: n.removesuffix('/w') if '/mlp/' in n else n
  nested = traverse_util.unflatten_dict({short(n): x for n, x in flat.items()}, sep='/')
  return nested if layout == 'nested' else {layout: nested}


def save(folder, tree):
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(folder, tree)
  return folder


def write(folder, flat, layout='flat'):
  return save(folder, tree_of(flat, layout))


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
  """(folder, arrays) of a family and layout, written once."""

  @functools.cache
  def make(family, layout='flat', dtype=np.float32):
    flat = arrays(family, dtype)
    return write(tmp_path_factory.mktemp('gemma') / 'ckpt', flat, layout), flat

  return make


def load(folder, family, **options):
  model, base, tokenizer = pretrained.load(
    folder, config=config(family), progress=False, **options)
  assert tokenizer is None
  return model, base


# --- Numbers


def by_hand(flat, family):
  """Our base, entry by entry."""
  c = config(family)

  def columns(w):  # [N, D, K] -> [D, N K]
    out = np.empty((D, w.shape[0] * K), w.dtype)
    for n, d, k in np.ndindex(w.shape):
      out[d, n * K + k] = w[n, d, k]
    return out

  def rows(w):  # [N, K, D] -> [N K, D]
    out = np.empty((w.shape[0] * K, D), w.dtype)
    for n, k, d in np.ndindex(w.shape):
      out[n * K + k, d] = w[n, k, d]
    return out

  def layer(get):
    qkv = get('attn/qkv_einsum/w') if c.heads == c.kv_heads else [
      get('attn/q_einsum/w'), *get('attn/kv_einsum/w')]
    gating = get('mlp/gating_einsum/w')
    gating = [gating[0].T, gating[1].T] if family in TURNED else gating
    out = {f'attn/{n}/kernel': columns(w) for n, w in zip('qkv', qkv)}
    out |= {'attn/o/kernel': rows(get('attn/attn_vec_einsum/w'))}
    out |= {'mlp/gate/kernel': gating[0], 'mlp/up/kernel': gating[1]}
    out |= {'mlp/down/kernel': get('mlp/linear/w')}
    norms = {'attn_norm': 'pre_attention_norm', 'mlp_norm': 'pre_ffw_norm'}
    if c.post_norm:
      norms |= {'attn_post_norm': 'post_attention_norm', 'mlp_post_norm': 'post_ffw_norm'}
    if c.qk_norm:
      norms |= {'attn/q_norm': 'attn/_query_norm', 'attn/k_norm': 'attn/_key_norm'}
    return out | {f'{ours}/scale': get(f'{theirs}/scale') for ours, theirs in norms.items()}

  layers = [layer(lambda name, i=i: flat[f'layer_{i}/{name}']) for i in range(L)]
  stacked = {f'layers/block/{n}': np.stack([one[n] for one in layers]) for n in layers[0]}
  outer = {'embed/embedding': flat['embedder/input_embedding'],
           'final_norm/scale': flat['final_norm/scale']}
  return trees.nest(stacked | outer)


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('family', FAMILIES)
def test_each_number_lands_where_it_belongs(checkpoint, family, layout):
  folder, flat = checkpoint(family, layout)
  model, base = load(folder, family)
  tiny.equal(base, trees.nest(trees.flat(jax.tree.map(jax.numpy.asarray, by_hand(flat, family)))))
  assert model.config == config(family)
  shapes = lambda tree: {n: (x.shape, x.dtype) for n, x in trees.flat(tree).items()}
  assert shapes(base) == shapes(lm.abstract(model))


def state_dict(flat, family):
  """transformers' state dict: each head's rows one below the other."""
  c = config(family)
  out = {'model.embed_tokens.weight': flat['embedder/input_embedding'],
         'lm_head.weight': flat['embedder/input_embedding'],
         'model.norm.weight': flat['final_norm/scale']}
  linear = lambda w: np.concatenate([head.T for head in w], 0)
  for i in range(L):
    get, to = (lambda n, i=i: flat[f'layer_{i}/{n}']), f'model.layers.{i}'
    if c.heads == c.kv_heads:
      q, k, v = get('attn/qkv_einsum/w')
    else:
      q, (k, v) = get('attn/q_einsum/w'), get('attn/kv_einsum/w')
    gate, up = get('mlp/gating_einsum/w')
    out |= {f'{to}.self_attn.{n}_proj.weight': linear(w) for n, w in zip('qkv', (q, k, v))}
    out[f'{to}.self_attn.o_proj.weight'] = np.concatenate(
      [head.T for head in get('attn/attn_vec_einsum/w')], 1)
    out[f'{to}.mlp.gate_proj.weight'] = gate if family in TURNED else gate.T
    out[f'{to}.mlp.up_proj.weight'] = up if family in TURNED else up.T
    out[f'{to}.mlp.down_proj.weight'] = get('mlp/linear/w').T
    names = {'input_layernorm': 'pre_attention_norm', 'post_attention_layernorm': 'pre_ffw_norm'}
    if c.post_norm:
      names = {'input_layernorm': 'pre_attention_norm',
               'post_attention_layernorm': 'post_attention_norm',
               'pre_feedforward_layernorm': 'pre_ffw_norm',
               'post_feedforward_layernorm': 'post_ffw_norm'}
    if c.qk_norm:
      names |= {'self_attn.q_norm': 'attn/_query_norm', 'self_attn.k_norm': 'attn/_key_norm'}
    out |= {f'{to}.{n}.weight': get(f'{t}/scale') for n, t in names.items()}
  return out


def theirs(family):
  """transformers' model with these numbers."""
  torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')
  c, windows = config(family), {}
  rope = {'rope_type': 'default', 'rope_theta': c.rope_theta}
  if c.window:
    types = ['sliding_attention' if w else 'full_attention' for w in c.window_layers]
    windows = dict(sliding_window=c.window, layer_types=types, query_pre_attn_scalar=12,
                   attn_logit_softcapping=c.attention_softcap,
                   final_logit_softcapping=c.final_softcap)
  if c.rope_scaling:
    rope = {'full_attention': {'rope_type': 'linear', 'factor': 8.0, 'rope_theta': c.rope_theta},
            'sliding_attention': {'rope_type': 'default', 'rope_theta': c.rope_local_theta}}
  name = {'gemma2': 'Gemma2', 'gemma3': 'Gemma3Text'}.get(family, 'Gemma')
  about = getattr(transformers, f'{name}Config')(
    vocab_size=V, hidden_size=D, intermediate_size=F, num_hidden_layers=L, head_dim=K,
    num_attention_heads=c.heads, num_key_value_heads=c.kv_heads, rms_norm_eps=c.norm_eps,
    max_position_embeddings=64, rope_parameters=rope, attn_implementation='eager', **windows)
  model = transformers.AutoModelForCausalLM.from_config(about).eval()
  state = {n: torch.tensor(x) for n, x in state_dict(arrays(family), family).items()}
  model.load_state_dict(state, strict=True)
  return model


@pytest.mark.parametrize('family', FAMILIES)
def test_logits_are_those_of_transformers(checkpoint, family):
  torch = pytest.importorskip('torch')
  model, base = load(checkpoint(family)[0], family)
  tokens, mask = np.asarray(tiny.tokens(vocabulary=V)), np.asarray(tiny.right_mask(LENGTHS))
  found = np.asarray(jax.jit(functools.partial(lm.logits, model))(base, {}, tokens, mask))
  with torch.no_grad():
    expected = theirs(family)(
      input_ids=torch.tensor(tokens, dtype=torch.long), attention_mask=torch.tensor(mask).long()
    ).logits.numpy()
  scale = np.abs(expected[mask]).max()
  np.testing.assert_allclose(found[mask] / scale, expected[mask] / scale, atol=1e-4)


@pytest.mark.parametrize('family', ['gemma2', 'gemma3'])
def test_onto_a_mesh(checkpoint, family):
  folder, flat = checkpoint(family)
  mesh = sharding.mesh(fsdp=2, tensor=2)
  model, base = load(folder, family, mesh=mesh)
  places = sharding.base_shardings(lm.abstract(model), mesh)
  assert all(jax.tree.leaves(jax.tree.map(lambda x, p: x.sharding == p, base, places)))
  assert len(base['layers']['block']['attn']['q']['kernel'].addressable_shards) == 8
  jax.tree.map(np.testing.assert_array_equal, base, by_hand(flat, family))


@pytest.mark.parametrize('options, compute, stored', [
  ({}, 'bfloat16', 'bfloat16'),
  (dict(dtype='float32'), 'float32', 'float32'),
  (dict(param_dtype='float32'), 'float32', 'float32'),
  (dict(dtype='bfloat16', param_dtype='float32'), 'bfloat16', 'float32'),
  (dict(dtype='float16', remat='layer'), 'float16', 'float16'),
])
def test_the_dtype_is_the_stored_one_or_what_is_asked(checkpoint, options, compute, stored):
  folder, flat = checkpoint('gemma', 'nested', ml_dtypes.bfloat16)
  model, base = load(folder, 'gemma', **options)
  assert (model.config.dtype, model.config.param_dtype) == (compute, stored)
  assert model.config.remat == options.get('remat', 'none')
  assert {x.dtype.name for x in jax.tree.leaves(base)} == {stored}
  jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y.astype(stored)),
               base, by_hand(flat, 'gemma'))


def test_of_several_dtypes_the_widest(tmp_path):
  flat = arrays('gemma', ml_dtypes.bfloat16)
  flat['final_norm/scale'] = flat['final_norm/scale'].astype(np.float32)
  assert load(write(tmp_path / 'c', flat), 'gemma')[0].config.dtype == 'float32'


def test_one_layer_at_a_time_is_read(checkpoint, monkeypatch):
  asked, restore = [], gemma_orbax._restore
  monkeypatch.setattr(
    gemma_orbax, '_restore', lambda *args: asked.append(args[3]) or restore(*args))
  load(checkpoint('gemma3')[0], 'gemma3')
  assert [len({name.split('/')[0] for name in names}) for names in asked] == [1] * (2 + L)
  names = [name for names in asked for name in names]
  assert len(names) == len(set(names)) == len(arrays('gemma3'))


def test_the_last_layer_is_gone_when_the_next_is_read(checkpoint, monkeypatch):
  last, restore = [], gemma_orbax._restore

  def watched(reader, folder, leaves, names):
    assert not [ref for ref in last if ref() is not None and ref().ndim > 1]
    arrays = restore(reader, folder, leaves, names)
    last[:] = [weakref.ref(x) for name, x in arrays.items() if name.startswith('layer')]
    return arrays

  monkeypatch.setattr(gemma_orbax, '_restore', watched)
  load(checkpoint('gemma3')[0], 'gemma3')
  assert len(last) == 11


# --- What it is


def named(monkeypatch, family, **overrides):
  """Makes the family's shape a published size."""
  options = {f.name: getattr(config(family), f.name) for f in dataclasses.fields(Config)
             if f.name not in configs.RUN_FIELDS}
  monkeypatch.setitem(configs.SIZES, f'{family}-tiny', options | overrides)


@pytest.mark.parametrize('family', FAMILIES)
def test_a_published_shape_is_recognised_by_metadata_alone(checkpoint, monkeypatch, family):
  folder, _ = checkpoint(family)
  named(monkeypatch, family, vocab_size=V - 5)  # theirs are padded
  monkeypatch.setattr(gemma_orbax, '_restore', lambda *args: pytest.fail('weights were read'))
  assert pretrained.read_config(folder) == config(family)
  assert gemma_orbax.plan(folder, dtype='bfloat16')[0] == config(
    family, dtype='bfloat16', param_dtype='bfloat16')


def test_another_family_of_the_same_shape_is_not_taken(checkpoint, monkeypatch):
  named(monkeypatch, 'gemma', norm_offset=False)
  named(monkeypatch, 'gemma fused')
  with pytest.raises(Unsupported, match='kv_heads 1'):
    pretrained.read_config(checkpoint('gemma')[0])


@pytest.mark.parametrize('size', [n for n, s in configs.SIZES.items() if 'norm_offset' in s])
def test_each_published_size_is_found_by_its_shape(size):
  """And by that alone: no two are alike."""
  wanted = configs.sized(size)
  shape = {n: getattr(wanted, n) for n in (
    'layers', 'width', 'heads', 'kv_heads', 'head_dim', 'mlp_width', 'post_norm', 'qk_norm')}
  assert gemma_layout.published(shape | {'vocab_size': wanted.vocab_size}) == wanted


def test_what_is_one(checkpoint, tmp_path):
  folder, _ = checkpoint('gemma')
  assert gemma_orbax.is_one(folder)
  assert not gemma_orbax.is_one(tmp_path) and not gemma_orbax.is_one(tmp_path / 'none')
  for mark in ('_METADATA', 'manifest.ocdbt', 'checkpoint'):
    place = tmp_path / mark
    place.mkdir()
    (place / mark).touch()
    assert gemma_orbax.is_one(place)
    for other in ('config.json', 'files.json'):
      (place / other).touch()
      assert not gemma_orbax.is_one(place)
      (place / other).unlink()


def test_the_digest_is_of_the_weights_however_they_are_nested(checkpoint, tmp_path):
  one, flat = checkpoint('gemma', 'flat')
  known = pretrained.digest(one)
  assert known == pretrained.digest(checkpoint('gemma', 'params')[0])
  moved = dict(flat)
  moved['layer_1/mlp/linear/w'] = flat['layer_1/mlp/linear/w'].copy()
  moved['layer_1/mlp/linear/w'][3, 5] += 1e-6
  assert known != pretrained.digest(write(tmp_path / 'moved', moved))
  seeing = flat | {'SigLiPFromPatches_0/x/kernel': np.ones(3, np.float32)}
  assert known == pretrained.digest(write(tmp_path / 'seeing', seeing))


@pytest.mark.parametrize('layout, more', [
  ('flat', {'SigLiPFromPatches_0/siglip_encoder/embedding/kernel': (2, 3)}),
  ('flat', {
    'embedder/mm_soft_embedding_norm/scale': (3,), 'embedder/mm_input_projection/w': (3, D)}),
  ('params', {'vision_encoder/siglip_encoder/pos_embedding': (2, 3)}),
])
def test_what_sees_is_passed_over(tmp_path, layout, more):
  flat = arrays('gemma')
  eyes = {name: np.full(shape, np.nan, np.float32) for name, shape in more.items()}
  _, base = load(write(tmp_path / 'c', flat | eyes, layout), 'gemma')
  jax.tree.map(np.testing.assert_array_equal, base, by_hand(flat, 'gemma'))


def test_a_whole_training_of_theirs_is_read_for_its_weights(tmp_path):
  flat = arrays('gemma')
  state = {'mu': [np.ones(3, np.float32)], 'count': np.int32(1)}
  tree = tree_of(flat, 'params') | {'opt_state': state, 'step': np.int32(7)}
  _, base = load(save(tmp_path / 'c', tree), 'gemma')
  jax.tree.map(np.testing.assert_array_equal, base, by_hand(flat, 'gemma'))


# --- What is refused


@pytest.mark.parametrize('name, x, message', [
  ('layer_1/attn/q_einsum/lora/a', np.ones((2, 2), np.float32), 'lora/a.*merge the LoRA'),
  ('layer_0/attn/q_einsum/_SimulateQuantizedEinsum_0/kernel', np.ones((2, 2), np.float32),
   'Quantized.*bfloat16'),
  ('layer_0/mlp/linear/w', np.ones((F, D), np.int8), 'linear.*int8.*bfloat16'),
  ('stacked_layers/attention_type_0/mlp/linear/w', np.ones(2, np.float32),
   'stacked_layers.*architecture'),
  ('layer_0/per_layer_input_gate/w', np.ones((2, 2), np.float32), 'per_layer_input_gate'),
  ('audio_encoder/x/w', np.ones(2, np.float32), 'audio_encoder'),
  ('layer_2/post_attention_norm/scale', np.ones(D, np.float32), 'post_attention_norm'),
])
@pytest.mark.parametrize('layout', ['flat', 'nested'])
def test_an_array_that_nobody_reads_is_refused_by_name(tmp_path, layout, name, x, message):
  flat = arrays('gemma')
  if '/q_einsum/' in name:
    flat = {n: y for n, y in flat.items() if n != f'{name.split("/q_einsum")[0]}/q_einsum/w'}
  with pytest.raises(Unsupported, match=message):
    load(write(tmp_path / 'c', flat | {name: x}, layout), 'gemma')


def test_the_same_weights_twice_are_refused(tmp_path):
  flat = {n: x for n, x in arrays('gemma').items() if 'final' in n}
  tree = tree_of(flat, 'params') | tree_of(flat, 'transformer')
  with pytest.raises(Unsupported, match='two roots'):
    pretrained.digest(save(tmp_path / 'c', tree))


@pytest.mark.parametrize('family, name', [
  ('gemma', 'embedder/input_embedding'), ('gemma', 'final_norm/scale'),
  ('gemma', 'layer_0/attn/attn_vec_einsum/w'), ('gemma', 'layer_1/attn/q_einsum/w'),
  ('gemma fused', 'layer_1/attn/qkv_einsum/w'), ('gemma', 'layer_0/mlp/gating_einsum/w'),
  ('gemma2', 'layer_0/post_ffw_norm/scale'), ('gemma3', 'layer_0/attn/_query_norm/scale'),
])
def test_a_missing_array_is_named(tmp_path, family, name):
  flat = {n: x for n, x in arrays(family).items() if n != name}
  with pytest.raises(CorruptTensors, match=f'{name.removesuffix("/w")}.*none of that name'):
    load(write(tmp_path / 'c', flat), family)


@pytest.mark.parametrize('name, shape', [
  ('layer_1/attn/q_einsum/w', (2, D, K + 1)), ('layer_2/mlp/gating_einsum/w', (2, F, D)),
  ('layer_0/mlp/gating_einsum/w', (2, F, D + 1)), ('final_norm/scale', (D + 1,)),
  ('layer_0/attn/kv_einsum/w', (1, D, K)), ('layer_1/pre_ffw_norm/scale', (D, 1)),
])
def test_another_shape_is_named(tmp_path, name, shape):
  flat = arrays('gemma') | {name: np.ones(shape, np.float32)}
  with pytest.raises(CorruptTensors, match=rf'{name.removesuffix("/w")}.*found .*{shape[-1]}\]'):
    load(write(tmp_path / 'c', flat), 'gemma')


@pytest.mark.parametrize('overrides, error, message', [
  (dict(width=32), CorruptTensors, r'width 32 \(found 16\)'),
  (dict(layers=4), CorruptTensors, r'layers 4 \(found 3\)'),
  (dict(vocab_size=V - 1), CorruptTensors, r'vocab_size 39 \(found 40\)'),
  (dict(heads=4, kv_heads=4), CorruptTensors, r'heads 4 \(found 2\), kv_heads 4 \(found 1\)'),
  (dict(post_norm=True), CorruptTensors, r'post_norm True \(found False\)'),
  (dict(norm_offset=False), CorruptTensors, r'norm_offset False \(found True\)'),
  (dict(gated=False), CorruptTensors, r'gated False'),
  (dict(tied=False), Unsupported, 'lm_head/kernel'),
  (dict(qkv_bias=True), Unsupported, 'bias'),
])
def test_a_config_that_is_of_another_model(checkpoint, overrides, error, message):
  folder, _ = checkpoint('gemma')
  with pytest.raises(error, match=message) as caught:
    pretrained.load(folder, config=config('gemma', **overrides))
  assert str(folder) in str(caught.value)


def test_a_shape_that_was_never_published_asks_for_a_config(checkpoint):
  with pytest.raises(Unsupported, match=r'gemma-2-9b.*layers 3, width 16.*pass config='):
    pretrained.load(checkpoint('gemma')[0])


def test_a_gate_whose_layout_cannot_be_told(tmp_path, monkeypatch):
  monkeypatch.setitem(globals(), 'F', D)
  monkeypatch.setitem(GEMMA, 'mlp_width', D)
  with pytest.raises(Unsupported, match='cannot be told'):
    load(write(tmp_path / 'c', arrays('gemma')), 'gemma')


def cut(folder):
  """Halves the largest file of the store's own; those of ocdbt.process_0 may be copied into it."""
  file = max((folder / 'd').iterdir(), key=lambda p: p.stat().st_size)
  os.truncate(file, file.stat().st_size // 2)


@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')  # TensorStore's
@pytest.mark.parametrize('damage', [
  cut,
  lambda folder: os.truncate(folder / '_METADATA', 100),
  lambda folder: (folder / '_METADATA').unlink(),
  lambda folder: (folder / 'manifest.ocdbt').unlink(),
  lambda folder: shutil.rmtree(folder / 'd'),
], ids=['cut', 'metadata cut', 'no metadata', 'no manifest', 'no data'])
def test_a_store_that_is_not_whole(checkpoint, tmp_path, damage):
  folder = tmp_path / 'c'
  shutil.copytree(checkpoint('gemma')[0], folder)
  damage(folder)
  with pytest.raises(CorruptTensors, match='whole Orbax checkpoint.*fetch'):
    load(folder, 'gemma')


@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')  # TensorStore's
def test_a_store_that_is_cut_while_it_is_read(checkpoint, tmp_path):
  folder = tmp_path / 'c'
  shutil.copytree(checkpoint('gemma')[0], folder)
  _, place = gemma_orbax.plan(folder, config=config('gemma'), progress=False)
  cut(folder)
  with pytest.raises(CorruptTensors, match='whole Orbax checkpoint.*fetch'):
    place(None)


def test_weights_that_are_not_finite_are_named_once(tmp_path, caplog):
  flat = arrays('gemma')
  flat['layer_1/mlp/gating_einsum/w'][:] = np.nan
  flat['layer_2/mlp/gating_einsum/w'][0, 0, 0] = np.inf  # the gate; up is finite
  with caplog.at_level(logging.WARNING):
    load(write(tmp_path / 'c', flat), 'gemma')
  text = ' '.join(r.message for r in caplog.records if 'finite' in r.message)
  assert '2 tensors' in text
  assert 'layer_1/mlp/gating_einsum' in text and 'layer_2/mlp/gating_einsum' in text


def test_the_bar_counts_every_byte(checkpoint, monkeypatch):
  folder, flat = checkpoint('gemma3')
  bars = []
  tqdm = tensors.tqdm.tqdm
  monkeypatch.setattr(
    tensors.tqdm, 'tqdm', lambda **options: bars.append(tqdm(**{**options, 'disable': False}))
    or bars[-1])
  load(folder, 'gemma3')
  assert bars[0].n == bars[0].total == sum(x.nbytes for x in flat.values())


def test_it_can_be_given_a_model_of_its_own(checkpoint):
  """`plan` alone: (Config, place), and place takes None."""
  folder, flat = checkpoint('gemma2')
  found, place = gemma_orbax.plan(folder, config=config('gemma2', scan_unroll=2), progress=False)
  assert found == config('gemma2', scan_unroll=2)
  base = place(None)
  assert jax.tree.structure(base) == jax.tree.structure(lm.abstract(Transformer(found)))
  jax.tree.map(np.testing.assert_array_equal, base, by_hand(flat, 'gemma2'))


def test_gemma_s_own_checkpoint_is_quantized_as_it_is_read(tmp_path):
  scheme = Scheme('nf4', 8, True)
  folder = write(tmp_path / 'ckpt', arrays('gemma2'))
  tiny.equal(load(folder, 'gemma2', quantize=scheme)[1],
             quantize_tree(load(folder, 'gemma2')[1], scheme))
