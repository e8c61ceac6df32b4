"""PEFT's format both ways: the same logits and scores, and what it cannot say is refused."""

import json
import warnings

import jax
import numpy as np
import pytest
import releases
import safetensors.numpy
import tiny

from perl.hub import adapters as peft_format
from perl.hub import pretrained, tensors
from perl.hub.config_json import Unsupported
from perl.hub.tensors import CorruptTensors
from perl.models import lm
from perl.peft import adapters
from perl.peft.methods.lora import LoRA

peft = pytest.importorskip('peft')
torch, transformers = releases.torch, releases.transformers
warnings.filterwarnings('ignore', module='peft')

LAYERS = 3
CASES = {  # name: (family, PEFT's options)
  'queries and values': ('llama', dict(target_modules=['q_proj', 'v_proj'])),
  'all, with patterns': ('llama', dict(
    target_modules='all-linear', rank_pattern={'q_proj': 2, r'layers\.1\.mlp\.up_proj': 5},
    alpha_pattern={'v_proj': 11, 'layers.2.mlp.down_proj': 3})),
  'rsLoRA': ('qwen2', dict(target_modules=['k_proj', 'o_proj'], use_rslora=True)),
  'a regular expression': ('mistral', dict(target_modules=r'.*\.(gate|up)_proj')),
  'some layers': ('gemma2', dict(target_modules=['q_proj'], layers_to_transform=[0, 2])),
  'qk-norm': ('qwen3', dict(target_modules=['q_proj', 'k_proj'], use_rslora=True)),
  'an unembedding': ('llama', dict(target_modules=['lm_head', 'v_proj'])),
  'gemma 3': ('gemma3_text', dict(target_modules=['o_proj', 'down_proj'])),
  'fused by columns': ('gpt2', dict(
    target_modules=['c_attn', 'c_proj'], fan_in_fan_out=True, rank_pattern={'h.1.attn.c_attn': 2})),
  'fused by head': ('gpt_neox', dict(target_modules=['query_key_value', 'dense_h_to_4h'])),
}


def folder_of(family, tmp, seed=0, **options):
  """(their model, our model, our base) of one checkpoint in tmp/base."""
  layers = {'n_layer' if family == 'gpt2' else 'num_hidden_layers': LAYERS}
  theirs = releases.make(family, seed, **{**layers, **options})
  theirs.save_pretrained(tmp / 'base')
  model, base, _ = pretrained.load(tmp / 'base')
  return theirs, model, base


def adapted(model, **options):
  """Their model with a random LoRA, every part of it moved."""
  config = peft.LoraConfig(**{'r': 4, 'lora_alpha': 6, 'task_type': 'CAUSAL_LM', **options})
  return releases.noisy(peft.get_peft_model(model, config).eval(), 0.2, only='lora_')


@pytest.fixture(params=CASES)
def case(request, tmp_path):
  """(their model with an adapter, its folder, our model, base, the adapter as we read it)."""
  family, options = CASES[request.param]
  theirs, model, base = folder_of(family, tmp_path)
  theirs = adapted(theirs, **options)
  theirs.save_pretrained(tmp_path / 'adapter')
  adapter = peft_format.load(tmp_path / 'adapter', base, heads=model.config.heads)
  return theirs, tmp_path, model, base, adapter


def from_peft(folder, kind='CausalLM', base='base'):
  """Their model with the adapter of folder/out."""
  cls = getattr(transformers, f'AutoModelFor{kind}')
  options = dict(num_labels=1) if kind != 'CausalLM' else {}
  plain = cls.from_pretrained(
    folder / base, attn_implementation='eager', pad_token_id=releases.PAD, **options)
  return peft.PeftModel.from_pretrained(plain, folder / 'out').eval()


def test_an_adapter_of_peft_has_its_logits_here(case):
  theirs, _, model, base, adapter = case
  for padding in ('left', 'right'):
    tokens, mask = releases.rows(padding=padding)
    expected = releases.logits(theirs, tokens, mask)
    ours = releases.ours(model, base, adapter, tokens, mask)
    assert releases.distance(ours, expected, mask) < 1e-4


def test_merged_weights_are_those_of_peft(case):
  theirs, folder, model, base, adapter = case
  tokens, mask = releases.rows()
  expected = releases.logits(theirs, tokens, mask)
  merged = adapters.merge(base, adapter)
  assert releases.distance(releases.ours(model, merged, {}, tokens, mask), expected, mask) < 1e-4
  pretrained.save(folder / 'merged', model, merged, source=folder / 'base')
  again = transformers.AutoModelForCausalLM.from_pretrained(
    folder / 'merged', attn_implementation='eager')
  state = theirs.merge_and_unload().state_dict()
  for name, x in again.state_dict().items():
    np.testing.assert_allclose(x.numpy(), state[name].numpy(), atol=1e-5, err_msg=name)


@pytest.mark.parametrize('uniform', [False, True])
def test_an_adapter_goes_back_to_peft(case, uniform):
  theirs, folder, model, base, adapter = case
  peft_format.save(folder / 'out', adapter, base, heads=model.config.heads, uniform=uniform)
  tokens, mask = releases.rows()
  expected = releases.logits(theirs, tokens, mask)
  assert releases.distance(releases.logits(from_peft(folder), tokens, mask), expected, mask) < 1e-5
  if not uniform:  # to the bit: nothing was computed on the way
    one, other = (safetensors.numpy.load_file(folder / f / peft_format.WEIGHTS)
                  for f in ('adapter', 'out'))
    copies = {name for name in one if '.base_layer.' in name}  # the base's unembedding, of PEFT
    assert sorted(set(one) - copies) == sorted(other)
    for name in other:
      np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_the_uniform_layout_is_what_vllm_reads(case):
  """vLLM reads r, lora_alpha and use_rslora, no patterns, and <module>.lora_A.weight alone."""
  theirs, folder, model, base, adapter = case
  peft_format.save(folder / 'out', adapter, base, heads=model.config.heads, uniform=True)
  about = json.loads((folder / 'out' / peft_format.CONFIG).read_text())
  assert not about['rank_pattern'] and not about['alpha_pattern'] and not about['modules_to_save']
  assert about['bias'] == 'none' and not about['use_dora'] and not about['use_rslora']
  modules = {name for name, _ in from_peft(folder).get_base_model().named_modules()}
  scale = about['lora_alpha'] / about['r']
  state = safetensors.numpy.load_file(folder / 'out' / peft_format.WEIGHTS)
  for name, a in state.items():
    parts = name.split('.')
    assert parts[:2] == ['base_model', 'model'] and parts[-1] == 'weight'
    assert '.'.join(parts[2:-2]) in modules and parts[-2] in ('lora_A', 'lora_B')
    assert a.shape[0 if parts[-2] == 'lora_A' else 1] == about['r']
  tokens, mask = releases.rows()  # by vLLM's formula: every module W + scale B A
  plain = transformers.AutoModelForCausalLM.from_pretrained(
    folder / 'base', attn_implementation='eager')
  for name in {n.rsplit('.lora_', 1)[0] for n in state}:
    weight = plain.get_submodule(name.removeprefix('base_model.model.')).weight
    delta = torch.tensor(state[f'{name}.lora_B.weight'] @ state[f'{name}.lora_A.weight']) * scale
    weight.data += delta.T if model.config.position == 'learnt' else delta
  expected = releases.logits(theirs, tokens, mask)
  assert releases.distance(releases.logits(plain, tokens, mask), expected, mask) < 1e-4


@pytest.mark.parametrize('family', ['llama', 'gemma3_text', 'gpt2', 'gpt_neox'])
def test_an_adapter_made_here_has_its_logits_in_peft(family, tmp_path):
  _, model, base = folder_of(family, tmp_path)
  fresh = adapters.init(
    jax.random.key(0), base, 'lora', rank=3, alpha=7.0, targets=('attn/(q|v|o)', 'mlp/down'))
  adapter = tiny.trained(fresh, 0.2)
  peft_format.save(tmp_path / 'out', adapter, base, heads=model.config.heads, base_name='a/b')
  assert json.loads((tmp_path / 'out' / peft_format.CONFIG).read_text())[
    'base_model_name_or_path'] == 'a/b'
  tokens, mask = releases.rows()
  expected = releases.ours(model, base, adapter, tokens, mask)
  theirs = releases.logits(from_peft(tmp_path), tokens, mask)
  assert releases.distance(theirs, expected, mask) < 1e-4
  again = peft_format.load(tmp_path / 'out', base, heads=model.config.heads)
  assert releases.distance(releases.ours(model, base, again, tokens, mask), expected, mask) < 1e-6
  if family in ('llama', 'gemma3_text'):
    tiny.equal(again, adapter)


def test_a_fresh_adapter_keeps_its_rank(tmp_path):
  _, _, base = folder_of('llama', tmp_path)
  fresh = adapters.init(jax.random.key(0), base, 'lora', rank=3)
  peft_format.save(tmp_path / 'out', fresh, base)
  tiny.equal(peft_format.load(tmp_path / 'out', base), fresh)


def test_zeros_of_padded_ranks_and_absent_layers_never_learn(tmp_path):
  theirs, model, base = folder_of('llama', tmp_path)
  theirs = adapted(theirs, target_modules=['q_proj'], layers_to_transform=[0, 2],
                   rank_pattern={'layers.2.self_attn.q_proj': 2})
  theirs.save_pretrained(tmp_path / 'adapter')
  adapter = peft_format.load(tmp_path / 'adapter', base)
  tokens, mask = releases.rows()
  learnt, fixed = adapters.split(adapter)
  from perl import trees
  loss = lambda x: lm.logprobs(model, base, trees.combine(x, fixed), tokens, mask).sum()
  slope = jax.jit(jax.grad(loss))(learnt)['layers']['block']['attn']['q']['kernel']
  a, b = np.asarray(slope.a), np.asarray(slope.b)
  assert np.all(a[1] == 0) and np.all(b[1] == 0)
  assert np.all(a[2, :, 2:] == 0) and np.all(b[2, 2:] == 0)
  assert np.abs(a[2, :, :2]).min() > 0 and np.abs(b[0]).min() > 0


def test_training_goes_on_in_peft_and_here_alike(tmp_path):
  """One step of SGD on the same loss, from PEFT's adapter."""
  theirs, model, base = folder_of('llama', tmp_path)
  theirs = adapted(theirs, target_modules=['q_proj', 'down_proj'])
  theirs.save_pretrained(tmp_path / 'adapter')
  adapter = peft_format.load(tmp_path / 'adapter', base)
  tokens, mask = releases.rows(length=8, rows=2)
  mask = np.ones_like(mask)
  out = theirs(input_ids=torch.tensor(tokens).long(), labels=torch.tensor(tokens).long())
  out.loss.backward()
  with torch.no_grad():
    for p in theirs.parameters():
      if p.grad is not None:
        p -= 0.5 * p.grad
  loss = lambda x: -lm.logprobs(model, base, x, tokens, mask).sum() / (tokens[:, 1:].size)
  slope = jax.jit(jax.grad(loss))(adapter)
  step = lambda x, g: x.replace(a=x.a - 0.5 * g.a, b=x.b - 0.5 * g.b)
  stepped = jax.tree.map(step, adapter, slope, is_leaf=lambda x: isinstance(x, LoRA))
  tokens, mask = releases.rows()
  expected = releases.logits(theirs, tokens, mask)
  assert releases.distance(releases.ours(model, base, stepped, tokens, mask), expected, mask) < 1e-4


# --- Reward models


@pytest.mark.parametrize('family', ['llama', 'gemma', 'gpt2', 'gpt_neox'])
def test_reward_models_have_their_scores_both_ways(family, tmp_path):
  theirs = releases.make(family, kind='SequenceClassification', num_labels=1)
  theirs.save_pretrained(tmp_path / 'base')
  targets = {'gpt2': ['c_attn'], 'gpt_neox': ['query_key_value']}.get(family, ['q_proj', 'v_proj'])
  theirs = adapted(theirs, target_modules=targets, task_type='SEQ_CLS')
  with torch.no_grad():
    theirs.get_submodule('base_model.model.score').weight.add_(0.3)
  theirs.save_pretrained(tmp_path / 'adapter')
  model, base, _ = pretrained.load(tmp_path / 'base')
  adapter = peft_format.load(tmp_path / 'adapter', base, heads=model.config.heads)
  for padding in ('left', 'right'):
    tokens, mask = releases.rows(padding=padding)
    expected = releases.logits(theirs, tokens, mask)[:, 0]
    assert releases.distance(lm.score(model, base, adapter, tokens, mask), expected) < 1e-4
  peft_format.save(tmp_path / 'out', adapter, base, heads=model.config.heads)
  again = from_peft(tmp_path, 'SequenceClassification')
  assert releases.distance(releases.logits(again, tokens, mask)[:, 0], expected) < 1e-5


def test_a_head_over_a_causal_model_is_a_reward_model_in_peft(tmp_path):
  """The usual way here: one base for policy and reward, whose unembedding PEFT drops."""
  _, model, base = folder_of('llama', tmp_path)
  adapter = tiny.trained(adapters.init(jax.random.key(0), base, 'lora', rank=2, head=True), 0.2)
  adapter['head']['bias'] = np.full(1, 0.25, np.float32)
  peft_format.save(tmp_path / 'out', adapter, base)
  again = peft_format.load(tmp_path / 'out', base)
  tiny.close(again, adapter, atol=0, rtol=0)  # the bias comes back, by perl.json
  tokens, mask = releases.rows()
  ours = np.asarray(lm.score(model, base, adapter, tokens, mask))
  theirs = releases.logits(from_peft(tmp_path, 'SequenceClassification'), tokens, mask)[:, 0]
  assert releases.distance(theirs + 0.25, ours) < 1e-4


# --- Refusals


@pytest.fixture(scope='module')
def plain(tmp_path_factory):
  """(folder with base and adapter, base)."""
  tmp = tmp_path_factory.mktemp('plain')
  theirs, _, base = folder_of('llama', tmp)
  adapted(theirs, target_modules=['q_proj']).save_pretrained(tmp / 'adapter')
  return tmp, base


@pytest.fixture
def copy(plain, tmp_path):
  """(a copy of the adapter's folder, base, change its config)."""
  folder, base = plain
  for file in (folder / 'adapter').iterdir():
    (tmp_path / file.name).write_bytes(file.read_bytes())

  def change(**fields):
    file = tmp_path / peft_format.CONFIG
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))

  return tmp_path, base, change


@pytest.mark.parametrize('fields', [
  dict(peft_type='IA3'), dict(use_dora=True), dict(bias='lora_only'), dict(lora_bias=True),
  dict(init_lora_weights='pissa'), dict(init_lora_weights='olora'),
  dict(modules_to_save=['embed_tokens']), dict(layer_replication=[[0, 2], [1, 3]]),
  dict(trainable_token_indices=[1]), dict(target_parameters=['x']), dict(use_qalora=True),
  dict(alora_invocation_tokens=[4]), dict(something_new={'a': 1}), dict(r='four'),
  dict(task_type='SEQ_2_SEQ_LM'),
])
def test_an_option_that_is_not_supported_is_named(copy, fields):
  folder, base, change = copy
  peft_format.load(folder, base)
  change(**fields)
  with pytest.raises(Unsupported) as error:
    peft_format.load(folder, base)
  assert next(iter(fields)) in str(error.value) and 'merge such' in str(error.value)


@pytest.mark.parametrize('fields', [
  {'rank_pattern': [1]}, {'rank_pattern': {'q_proj': 0}}, {'rank_pattern': {'q_proj': '4'}},
  {'rank_pattern': {'(': 4}}, {'rank_pattern': {r'(?=q)q_proj': 4}}, {'alpha_pattern': 'q'},
  {'alpha_pattern': {'q_proj': None}}, {'lora_alpha': None}, {'lora_alpha': [8]},
  {'lora_alpha': float('nan')}, {'lora_dropout': 2}, {'use_rslora': 'no'}, {'peft_type': ['LORA']},
  {'modules_to_save': [[]]}, {'task_type': {}}, {'r': 10**9},
])
def test_a_field_of_another_type_or_size_is_named(copy, fields):
  folder, base, change = copy
  change(**fields)
  for read in (lambda: peft_format.load(folder, base), lambda: peft_format.inspect(folder)):
    with pytest.raises(ValueError, match='(?s)expected .*adapter_config.json, found'):
      read()


def test_a_pattern_of_a_stranger_takes_no_time(copy):
  folder, base, change = copy
  before = peft_format.load(folder, base)
  change(rank_pattern={'([a-z0-9_.]+)+!': 2, r'.*\.0\..*q_proj': 4}, alpha_pattern={'(a|a)*b': 1})
  jax.tree.map(np.testing.assert_array_equal, before, peft_format.load(folder, base))


@pytest.mark.parametrize(
  'text', ['5', '[]', 'null', '{', '{"head_bias": "a"}', '{"base_digest": 3}'])
def test_a_file_beside_the_adapter_that_is_none(copy, text):
  folder, base, _ = copy
  (folder / peft_format.OWN).write_text(text)
  if 'head' in text:  # read where there is a head
    state = safetensors.numpy.load_file(folder / peft_format.WEIGHTS)
    head = {'base_model.model.score.weight': np.ones((1, 16), np.float32)}
    safetensors.numpy.save_file(state | head, folder / peft_format.WEIGHTS)
  with pytest.raises(CorruptTensors, match='expected .*perl.json, found .*save the adapter again'):
    peft_format.load(folder, base, base_digest='d' * 64)


def test_an_adapter_of_another_base(copy, tmp_path_factory):
  folder, base, _ = copy
  other = tmp_path_factory.mktemp('other')
  _, _, wide = folder_of('llama', other / 'wide', hidden_size=32)
  with pytest.raises(CorruptTensors, match='attn/q, 32 x 24, found one of 16 x 24'):
    peft_format.load(folder, wide)
  _, _, neox = folder_of('gpt_neox', other / 'neox')
  with pytest.raises(CorruptTensors, match='another architecture'):
    peft_format.load(folder, neox, heads=2)
  _, _, short = folder_of('llama', other / 'short', num_hidden_layers=1)
  with pytest.raises(CorruptTensors, match='architecture or depth'):
    peft_format.load(folder, short)
  peft_format.save(other / 'out', peft_format.load(folder, base), base, base_digest='0' * 64)
  with pytest.raises(CorruptTensors, match='digest'):
    peft_format.load(other / 'out', base, base_digest='1' * 64)


def test_tensors_that_do_not_fit(copy):
  folder, base, change = copy
  file = folder / peft_format.WEIGHTS
  state = safetensors.numpy.load_file(file)
  name = next(n for n in state if 'lora_A' in n)
  change(r=5)
  with pytest.raises(CorruptTensors, match='do not fit .*adapter_config.json'):
    peft_format.load(folder, base)
  change(r=4)
  safetensors.numpy.save_file({n: x for n, x in state.items() if n != name}, file)
  with pytest.raises(CorruptTensors, match='do not fit'):
    peft_format.load(folder, base)
  more = {'base_model.model.x.lora_magnitude_vector': state[name]}
  safetensors.numpy.save_file(state | more, file)
  with pytest.raises(Unsupported, match='lora_magnitude_vector'):
    peft_format.load(folder, base)
  file.write_bytes(file.read_bytes()[:-8])
  with pytest.raises(CorruptTensors, match='whole safetensors'):
    peft_format.load(folder, base)
  file.unlink()
  (folder / 'adapter_model.bin').write_bytes(b'pickle')
  with pytest.raises(FileNotFoundError, match='never opened'):
    peft_format.load(folder, base)


def test_a_vocabulary_that_was_trained_too(copy):
  folder, base, _ = copy
  state = safetensors.numpy.load_file(folder / peft_format.WEIGHTS)
  name = 'base_model.model.lm_head.base_layer.weight'
  state[name] = np.asarray(base['embed']['lm_head']['kernel']).T.copy()
  safetensors.numpy.save_file(state, folder / peft_format.WEIGHTS)
  peft_format.load(folder, base)
  state[name] += 1
  safetensors.numpy.save_file(state, folder / peft_format.WEIGHTS)
  with pytest.raises(Unsupported, match='vocabulary'):
    peft_format.load(folder, base)


def test_no_adapter_at_all(plain, tmp_path):
  with pytest.raises(FileNotFoundError, match='adapter_config.json'):
    peft_format.load(tmp_path, plain[1])


def test_a_reward_model_with_several_labels(copy):
  folder, base, _ = copy
  state = safetensors.numpy.load_file(folder / peft_format.WEIGHTS)
  state['base_model.model.score.weight'] = np.zeros((2, 16), np.float32)
  safetensors.numpy.save_file(state, folder / peft_format.WEIGHTS)
  with pytest.raises(CorruptTensors, match='one label'):
    peft_format.load(folder, base)


def test_what_has_no_place_in_peft_is_not_written(plain, tmp_path):
  _, base = plain
  full = adapters.init(jax.random.key(0), base, 'full')
  with pytest.raises(Unsupported, match='Full'):
    peft_format.save(tmp_path / 'out', full, base)
  reads = adapters.init(jax.random.key(0), base, 'lora', rank=2, head=True, reads=('mean',))
  with pytest.raises(Unsupported, match='mean'):
    peft_format.save(tmp_path / 'out', reads, base)
  _, _, neox = folder_of('gpt_neox', tmp_path / 'neox')
  fused = adapters.init(jax.random.key(0), neox, 'lora', rank=2)
  with pytest.raises(ValueError, match='heads=model.config.heads'):
    peft_format.save(tmp_path / 'out', fused, neox)
  assert not (tmp_path / 'out').exists()


def test_what_is_in_a_folder(plain):
  folder, _ = plain
  modules, head = peft_format.inspect(folder / 'adapter')
  assert head is None and len(modules) == LAYERS
  assert modules['model.layers.0.self_attn.q_proj'] == {
    'rank': 4, 'scale': 1.5, 'parameters': 4 * (16 + 24)}
  assert tensors.find(folder / 'adapter', peft_format.WEIGHTS)
