"""Published checkpoints: logits, scores and greedy text are transformers', and bytes come back."""

import dataclasses
import json
import warnings

import jax
import numpy as np
import pytest
import releases
import safetensors.numpy

from perl import trees
from perl.hub import families, pretrained, tensors
from perl.models import lm
from perl.rl.rollout import rollout
from perl.train import checkpoint, sharding

torch, transformers = releases.torch, releases.transformers

SLIDING, FULL = 'sliding_attention', 'full_attention'
LLAMA3 = releases.rope(
  'llama3', factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
  original_max_position_embeddings=32)
YARN = releases.rope('yarn', factor=4.0, original_max_position_embeddings=32)
CASES = {  # name: (family, options beside the small shape)
  'llama': ('llama', dict(tie_word_embeddings=True)),
  'llama untied, biases, one key head': ('llama', dict(
    attention_bias=True, mlp_bias=True, num_key_value_heads=1)),
  'llama, no grouped heads, relu': ('llama', dict(
    num_key_value_heads=4, head_dim=4, hidden_act='relu')),
  'llama 3 positions': ('llama', LLAMA3),
  'llama, linear positions': ('llama', releases.rope('linear', factor=4.0)),
  'llama, yarn': ('llama', YARN),
  'llama, yarn with all its options': ('llama', releases.rope(
    'yarn', factor=3.0, original_max_position_embeddings=24, beta_fast=16.0, beta_slow=2.0,
    mscale=1.2, mscale_all_dim=0.5, truncate=False)),
  'mistral, window of 3': ('mistral', dict(sliding_window=3)),
  'mistral without a window, tied': ('mistral', dict(
    sliding_window=None, tie_word_embeddings=True)),
  'mistral, wide heads, yarn': ('mistral', dict(sliding_window=7, head_dim=14, **YARN)),
  'qwen2': ('qwen2', dict(tie_word_embeddings=True)),
  'qwen2, window in the last layers': ('qwen2', dict(
    use_sliding_window=True, sliding_window=4, max_window_layers=1, num_hidden_layers=3)),
  'qwen2, yarn': ('qwen2', YARN),
  'qwen3': ('qwen3', dict(tie_word_embeddings=True)),
  'qwen3, biases and a window': ('qwen3', dict(
    attention_bias=True, use_sliding_window=True, sliding_window=5, max_window_layers=1)),
  'gemma': ('gemma', {}),
  'gemma, the first releases\' gelu, one key head': ('gemma', dict(
    hidden_act='gelu', num_key_value_heads=1, head_dim=10)),
  'gemma, biases, untied': ('gemma', dict(attention_bias=True, tie_word_embeddings=False)),
  'gemma2': ('gemma2', dict(sliding_window=3, query_pre_attn_scalar=9, num_hidden_layers=3)),
  'gemma2, tight caps': ('gemma2', dict(
    sliding_window=4, attn_logit_softcapping=2.0, final_logit_softcapping=3.0)),
  'gemma2 without caps': ('gemma2', dict(
    sliding_window=5, attn_logit_softcapping=None, final_logit_softcapping=None,
    layer_types=[FULL, SLIDING])),
  'gemma3': ('gemma3_text', dict(sliding_window=3, num_hidden_layers=7)),
  'gemma3, scaled positions, caps': ('gemma3_text', dict(
    sliding_window=4, layer_types=[SLIDING, FULL], final_logit_softcapping=4.0,
    rope_parameters={
      FULL: {'rope_type': 'linear', 'factor': 8.0, 'rope_theta': 1e6},
      SLIDING: {'rope_type': 'default', 'rope_theta': 1e4}})),
  'gpt2, odd heads': ('gpt2', {}),
  'gpt2, inner width, relu, unscaled': ('gpt2', dict(
    n_inner=28, activation_function='relu', scale_attn_weights=False)),
  'gpt2, untied': ('gpt2', dict(tie_word_embeddings=False, n_head=2)),
  'neox': ('gpt_neox', {}),
  'neox, one after the other': ('gpt_neox', dict(
    use_parallel_residual=False, attention_bias=False, tie_word_embeddings=True)),
  'neox, all of the head turns': ('gpt_neox', releases.rope('default', partial_rotary_factor=1.0)),
  'neox, odd part, linear, tanh': ('gpt_neox', dict(
    num_attention_heads=4, hidden_act='gelu_new', hidden_size=24,
    **releases.rope('linear', factor=2.0, partial_rotary_factor=0.5))),
}
TOKENS = 64
"""Generated greedily by both."""


@pytest.fixture(scope='module', params=CASES)
def case(request, tmp_path_factory):
  """(their model, its folder, ours)."""
  family, options = CASES[request.param]
  model = releases.make(family, **options)
  folder = tmp_path_factory.mktemp('hub')
  model.save_pretrained(folder, max_shard_size='8KB')
  return model, folder, pretrained.load(folder)


@pytest.mark.parametrize('padding', ['right', 'left'])
def test_logits_are_those_of_transformers(case, padding):
  theirs, _, (model, base, _) = case
  tokens, mask = releases.rows(padding=padding)
  expected = releases.logits(theirs, tokens, mask)
  assert releases.distance(releases.ours(model, base, {}, tokens, mask), expected, mask) < 1e-4


def test_greedy_text_is_that_of_transformers(case):
  theirs, _, (model, base, _) = case
  tokens, mask = releases.rows(length=8, padding='left')
  found = rollout(
    model, base, {}, tokens, mask, jax.random.key(0), max_new_tokens=TOKENS, temperature=0.0,
    eos_id=-1, pad_id=releases.PAD)
  expected = releases.greedy(theirs, tokens, mask, TOKENS)
  np.testing.assert_array_equal(np.asarray(found.tokens)[:, 8:], expected)


def bytes_of(folder) -> dict:
  """{name: (dtype, shape, bytes)}, read by the reference library."""
  files = sorted(folder.glob('*.safetensors'))
  assert files
  found = {}
  for file in files:
    with open(file, 'rb') as stream:
      for name, entry in safetensors.deserialize(stream.read()):
        found[name] = (entry['dtype'], tuple(entry['shape']), bytes(entry['data']))
  return found


def test_saving_gives_the_same_bytes_and_transformers_loads_them(case, tmp_path):
  theirs, folder, (model, base, _) = case
  pretrained.save(tmp_path / 'same', model, base, source=folder, shard_bytes=9000)
  assert bytes_of(tmp_path / 'same') == bytes_of(folder)
  pretrained.save(tmp_path / 'anew', model, base)  # config.json written from our options alone
  assert bytes_of(tmp_path / 'anew') == bytes_of(folder)
  tokens, mask = releases.rows()
  expected = releases.logits(theirs, tokens, mask)
  for name in ('same', 'anew'):
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')
      again = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / name, attn_implementation='eager', dtype=torch.float32)
    assert releases.distance(releases.logits(again, tokens, mask), expected, mask) < 1e-6
    about = json.loads((tmp_path / name / 'config.json').read_text())
    assert type(again).__name__ in about['architectures']


def test_a_config_comes_back(case):
  _, folder, (model, _, _) = case
  assert families.parse(families.describe(model.config)) == model.config
  assert pretrained.read_config(folder) == model.config


# --- Random options


def draw(family: str, rng: np.random.Generator) -> dict:
  """Options of a valid config of the family."""
  pick = lambda *choices: choices[rng.integers(len(choices))]
  heads = pick(1, 2, 4, 6)
  if family == 'gpt2':
    return dict(
      n_head=heads, n_embd=heads * pick(3, 4, 5, 7), n_layer=pick(1, 2, 3),
      n_inner=pick(None, 10, 33), activation_function=pick('gelu_new', 'gelu', 'relu'),
      tie_word_embeddings=pick(True, False), layer_norm_epsilon=pick(1e-5, 1e-3))
  scaling = pick({}, releases.rope('linear', factor=3.0), LLAMA3, YARN)
  common = dict(
    num_attention_heads=heads, num_hidden_layers=pick(1, 2, 3), intermediate_size=pick(7, 24, 40),
    tie_word_embeddings=pick(True, False))
  if family == 'gpt_neox':
    return common | dict(
      hidden_size=heads * pick(8, 12, 16), use_parallel_residual=pick(True, False),
      attention_bias=pick(True, False), layer_norm_eps=pick(1e-5, 1e-3),
      **releases.rope('default', partial_rotary_factor=pick(0.25, 0.5, 1.0)))
  common |= dict(
    hidden_size=heads * pick(4, 6), head_dim=pick(2, 6, 8, 18), rms_norm_eps=pick(1e-6, 1e-3),
    num_key_value_heads=pick(*(g for g in (1, 2, 3) if not heads % g)),
    sliding_window=pick(2, 3, 5, 40))
  own = {
    'llama': lambda: dict(attention_bias=pick(True, False), mlp_bias=pick(True, False), **scaling),
    'mistral': lambda: scaling,
    'qwen2': lambda: dict(
      use_sliding_window=pick(True, False), max_window_layers=pick(0, 1, 2), **scaling),
    'qwen3': lambda: dict(
      use_sliding_window=pick(True, False), max_window_layers=pick(0, 1), **scaling),
    'gemma': lambda: dict(attention_bias=pick(True, False), **scaling),
    'gemma2': lambda: dict(query_pre_attn_scalar=pick(4, 10, 144), attn_logit_softcapping=pick(
      None, 3.0, 50.0), final_logit_softcapping=pick(None, 2.0, 30.0), **scaling),
    'gemma3_text': lambda: dict(query_pre_attn_scalar=pick(4, 10), layer_types=[
      pick(SLIDING, FULL) for _ in range(common['num_hidden_layers'])]),
  }[family]()
  if family in ('llama', 'gemma'):
    common.pop('sliding_window')
  return common | own


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('family', releases.CLASSES)
def test_a_random_config_has_the_logits_of_transformers(family, seed, tmp_path):
  options = draw(family, np.random.default_rng([seed, *family.encode()]))
  theirs = releases.make(family, seed, **options)
  theirs.save_pretrained(tmp_path)
  model, base, _ = pretrained.load(tmp_path)
  tokens, mask = releases.rows(seed=seed, padding=('left', 'right')[seed % 2])
  found = releases.ours(model, base, {}, tokens, mask)
  assert releases.distance(found, releases.logits(theirs, tokens, mask), mask) < 1e-4, options
  assert families.parse(families.describe(model.config)) == model.config, options


# --- Other kinds of folder


@pytest.mark.parametrize('family', releases.CLASSES)
def test_a_published_reward_model_is_a_base_and_a_head(family, tmp_path):
  theirs = releases.make(family, kind='SequenceClassification', num_labels=1)
  theirs.save_pretrained(tmp_path / 'rm')
  model, base, _ = pretrained.load(tmp_path / 'rm')
  adapter = {'head': pretrained.load_head(tmp_path / 'rm')}
  for padding in ('left', 'right'):
    tokens, mask = releases.rows(padding=padding)
    expected = releases.logits(theirs, tokens, mask)[:, 0]
    found = lm.score(model, base, adapter, tokens, mask)
    assert releases.distance(found, expected) < 1e-4
  for source in ('', tmp_path / 'rm'):
    out = tmp_path / f'out{bool(source)}'
    pretrained.save(out, model, base, head=adapter['head'], source=source)
    assert bytes_of(out) == bytes_of(tmp_path / 'rm')
  again = transformers.AutoModelForSequenceClassification.from_pretrained(
    tmp_path / 'outFalse', pad_token_id=releases.PAD)
  assert again.config.num_labels == 1
  assert releases.distance(releases.logits(again, tokens, mask)[:, 0], expected) < 1e-6


def test_the_text_model_of_one_that_sees_is_read(tmp_path):
  text = dict(**releases.SHAPE, **releases.IDS, sliding_window=3, layer_types=[SLIDING, FULL])
  vision = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
                image_size=14, patch_size=7)
  config = transformers.Gemma3Config(
    text_config=text, vision_config=vision, mm_tokens_per_image=1)
  torch.manual_seed(0)
  theirs = releases.noisy(transformers.Gemma3ForConditionalGeneration(config).eval(), 0.2)
  theirs.save_pretrained(tmp_path / 'whole')
  model, base, _ = pretrained.load(tmp_path / 'whole')
  tokens, mask = releases.rows()
  with torch.no_grad():
    expected = theirs(
      input_ids=torch.tensor(tokens).long(), attention_mask=torch.tensor(mask).long(),
    ).logits.numpy()
  assert releases.distance(releases.ours(model, base, {}, tokens, mask), expected, mask) < 1e-4
  pretrained.save(tmp_path / 'text', model, base, source=tmp_path / 'whole')
  assert json.loads((tmp_path / 'text/config.json').read_text())['model_type'] == 'gemma3_text'
  again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'text')
  assert releases.distance(releases.logits(again, tokens, mask), expected, mask) < 1e-4


def test_a_model_without_its_head_is_read(tmp_path):
  """GPT-2's own release has names without 'transformer.', and buffers that are no weights."""
  theirs = releases.make('gpt2')
  state = {k: v.numpy() for k, v in theirs.transformer.state_dict().items()}
  state |= {'h.0.attn.bias': np.ones((1, 1, 4, 4), np.float32)}
  theirs.save_pretrained(tmp_path)
  safetensors.numpy.save_file(state, tmp_path / 'model.safetensors')
  model, base, _ = pretrained.load(tmp_path)
  tokens, mask = releases.rows()
  expected = releases.logits(theirs, tokens, mask)
  assert releases.distance(releases.ours(model, base, {}, tokens, mask), expected, mask) < 1e-4


def test_transformers_4_writes_other_fields(tmp_path):
  theirs = releases.make('llama', **LLAMA3)
  theirs.save_pretrained(tmp_path)
  about = json.loads((tmp_path / 'config.json').read_text())
  scaling = dict(about.pop('rope_parameters'))
  about |= {'rope_theta': scaling.pop('rope_theta'), 'rope_scaling': scaling, 'torch_dtype': 'x'}
  (tmp_path / 'config.json').write_text(json.dumps(about))
  old = pretrained.read_config(tmp_path)
  assert old.rope_scaling.kind == 'llama3' and old.rope_scaling.factor == 8.0
  about['rope_scaling'] = {'type': 'linear', 'factor': 2.0}
  (tmp_path / 'config.json').write_text(json.dumps(about))
  assert pretrained.read_config(tmp_path).rope_scaling.kind == 'linear'


def test_our_own_tree_is_read_and_goes_out_and_in(tmp_path):
  model, base, _ = pretrained.load(saved('llama', tmp_path / 'hub'))
  meta = {'config': dataclasses.asdict(model.config), 'digest': trees.digest(base), 'tokenizer': ''}
  checkpoint.save_tree(tmp_path / 'pretrain' / 'base', base, meta)
  for folder in (tmp_path / 'pretrain', tmp_path / 'pretrain' / 'base'):
    again, same, _ = pretrained.load(folder)
    assert again.config == model.config
    assert trees.digest(same) == pretrained.digest(folder) == trees.digest(base)
  half = pretrained.load(tmp_path / 'pretrain', dtype='bfloat16')[1]
  assert {x.dtype.name for x in jax.tree.leaves(half)} == {'bfloat16'}


def saved(family, folder, dtype=None, **options):
  """A folder with a random model."""
  model = releases.make(family, **options)
  (model if dtype is None else model.to(dtype)).save_pretrained(folder)
  return folder


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_half_precision_comes_back_to_the_bit(dtype, tmp_path):
  folder = saved('qwen3', tmp_path / 'hub', getattr(torch, dtype))
  model, base, _ = pretrained.load(folder)
  assert model.config.dtype == model.config.param_dtype == dtype
  assert {x.dtype.name for x in jax.tree.leaves(base)} == {dtype}
  pretrained.save(tmp_path / 'out', model, base)
  assert bytes_of(tmp_path / 'out') == bytes_of(folder)
  wide, base, _ = pretrained.load(folder, dtype='float32')
  assert wide.config.param_dtype == 'float32'
  pretrained.save(tmp_path / 'again', wide, base, source=folder)
  assert bytes_of(tmp_path / 'again') == bytes_of(folder)
  pretrained.save(tmp_path / 'wide', wide, base, source=folder, dtype='float32')
  assert {d for d, _, _ in bytes_of(tmp_path / 'wide').values()} == {'F32'}


@pytest.mark.parametrize('family', ['llama', 'gpt2', 'gpt_neox', 'gemma2'])
def test_a_mesh_holds_the_same_numbers_in_shards(family, tmp_path):
  options = {} if family == 'gpt2' else dict(hidden_size=32, intermediate_size=16)
  folder = saved(family, tmp_path, **options)
  mesh = sharding.mesh(data=2, fsdp=2, tensor=2)
  model, base, _ = pretrained.load(folder)
  _, spread, _ = pretrained.load(folder, mesh=mesh)
  for (name, one), many in zip(trees.flat(base).items(), jax.tree.leaves(spread)):
    np.testing.assert_array_equal(np.asarray(one), np.asarray(many), err_msg=name)
    assert many.sharding.spec == sharding.base_spec(name, one.shape, mesh), name
  up = spread['layers']['block']['mlp']['up']['kernel']
  assert family == 'gpt2' or up.addressable_shards[0].data.size == up.size // 4
  out = tmp_path / 'out'
  pretrained.save(out, model, spread)
  assert bytes_of(out) == bytes_of(folder)


def test_a_tensor_or_two_are_on_the_host_at_a_time(tmp_path, monkeypatch):
  """Of a checkpoint whose dtype changes, so that nothing read is kept."""
  folder, alive, most = saved('llama', tmp_path, torch.bfloat16, num_hidden_layers=6), [], []
  import weakref

  def read(name, entry, real=tensors.read):
    x = real(name, entry)
    alive[:] = [ref for ref in alive if ref() is not None] + [weakref.ref(x)]
    most.append(len(alive))
    return x

  monkeypatch.setattr(tensors, 'read', read)
  pretrained.load(folder, dtype='float32')
  assert len(most) > 40 and max(most) <= 3


def test_a_digest_is_of_the_numbers_not_of_the_shards(tmp_path):
  model = releases.make('llama')
  model.save_pretrained(tmp_path / 'one')
  model.save_pretrained(tmp_path / 'many', max_shard_size='4KB')
  assert len(list((tmp_path / 'many').glob('*.safetensors'))) > 1
  one = pretrained.digest(tmp_path / 'one')
  assert one == pretrained.digest(tmp_path / 'many')
  releases.noisy(model, 1e-6).save_pretrained(tmp_path / 'other')
  assert one != pretrained.digest(tmp_path / 'other')


def test_tensors_of_several_dtypes_are_held_by_the_widest_and_come_back(tmp_path):
  """As releases with float32 norms among bfloat16 matrices."""
  theirs = releases.make('llama').to(torch.bfloat16)
  theirs.model.norm.to(torch.float32)
  theirs.model.layers[0].input_layernorm.to(torch.float16)
  theirs.save_pretrained(tmp_path / 'hub')
  assert pretrained.stored_dtype(tmp_path / 'hub') == 'float32'
  model, base, _ = pretrained.load(tmp_path / 'hub')
  assert model.config.param_dtype == 'float32'
  pretrained.save(tmp_path / 'out', model, base, source=tmp_path / 'hub')
  assert bytes_of(tmp_path / 'out') == bytes_of(tmp_path / 'hub')
  assert {d for d, _, _ in bytes_of(tmp_path / 'hub').values()} == {'F32', 'BF16', 'F16'}
