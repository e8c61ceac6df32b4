"""Each method that PEFT has in the same form: the same weights, the same logits, both ways."""

import inspect
import json
import warnings

import jax
import numpy as np
import pytest
import releases
import safetensors.numpy
import tiny

from perl import trees
from perl.hub import adapters as peft_format
from perl.hub import pretrained
from perl.hub.config_json import Unsupported
from perl.hub.tensors import CorruptTensors
from perl.models import lm
from perl.peft import adapters, composition

peft = pytest.importorskip('peft')
torch, transformers = releases.torch, releases.transformers
warnings.filterwarnings('ignore', module='peft')

ATOL = 1e-4
BASES = {  # name: (family, options); queries grouped, the output tied or not
  'llama': ('llama', {}), 'tied': ('llama', dict(tie_word_embeddings=True)),
  'gpt2': ('gpt2', {}), 'neox': ('gpt_neox', {}), 'gemma': ('gemma', {}),
  'qwen2': ('qwen2', {}), 'qwen3': ('qwen3', {}), 'gemma2': ('gemma2', {}),
}
ALL = ['q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj']
FUSED = ['c_attn', 'c_proj', 'c_fc']
NEOX = ['query_key_value', 'dense', 'dense_h_to_4h']
Lora = lambda targets, **options: peft.LoraConfig(
  r=3, lora_alpha=5, target_modules=targets, **options)
Vera = lambda targets: peft.VeraConfig(r=6, target_modules=targets)
IA3 = lambda targets, inputs: peft.IA3Config(target_modules=targets, feedforward_modules=inputs)
Norms = lambda *targets: peft.LNTuningConfig(target_modules=list(targets))
CASES = {  # name: (base, PEFT's config)
  'lora': ('tied', lambda: Lora(ALL)),
  'rslora': ('llama', lambda: Lora(ALL, use_rslora=True)),
  'rslora fused': ('gpt2', lambda: Lora(FUSED, use_rslora=True, fan_in_fan_out=True)),
  'dora': ('llama', lambda: Lora(ALL, use_dora=True)),
  'dora with patterns': ('qwen2', lambda: Lora(
    ALL, use_dora=True, rank_pattern={'layers.1.mlp.up_proj': 5}, alpha_pattern={'v_proj': 2})),
  'dora of the last layer': ('tied', lambda: Lora(ALL, use_dora=True, layers_to_transform=[1])),
  'dora fused by columns': ('gpt2', lambda: Lora(FUSED, use_dora=True, fan_in_fan_out=True)),
  'dora fused by head': ('neox', lambda: Lora(NEOX, use_dora=True)),
  'vera': ('llama', lambda: Vera(ALL)),
  'vera of two': ('tied', lambda: Vera(['q_proj', 'v_proj'])),
  'vera fused by columns': ('gpt2', lambda: Vera(FUSED)),
  'vera fused by head': ('neox', lambda: Vera(NEOX)),
  'ia3': ('llama', lambda: IA3(['k_proj', 'v_proj', 'down_proj'], ['down_proj'])),
  'ia3 with biases': ('qwen2', lambda: IA3(['k_proj', 'v_proj', 'down_proj'], ['down_proj'])),
  'ia3 fused by columns': ('gpt2', lambda: IA3(['c_attn', 'mlp.c_proj'], ['mlp.c_proj'])),
  'ia3 of fused inputs': ('gpt2', lambda: IA3(['c_attn', 'mlp.c_proj'], ['c_attn'])),
  'ia3 fused by head': ('neox', lambda: IA3(NEOX, ['dense'])),
  'prefix': ('llama', lambda: peft.PrefixTuningConfig(num_virtual_tokens=5)),
  'prefix of a network': ('tied', lambda: peft.PrefixTuningConfig(
    num_virtual_tokens=4, prefix_projection=True, encoder_hidden_size=7)),
  'prefix of gpt2': ('gpt2', lambda: peft.PrefixTuningConfig(num_virtual_tokens=3)),
  'prompt': ('llama', lambda: peft.PromptTuningConfig(num_virtual_tokens=5)),
  'prompt of gpt2': ('gpt2', lambda: peft.PromptTuningConfig(num_virtual_tokens=3)),
  'prompt of scaled embeddings': ('gemma', lambda: peft.PromptTuningConfig(num_virtual_tokens=3)),
  'lntuning': ('llama', lambda: Norms('input_layernorm', 'post_attention_layernorm', 'norm')),
  'lntuning of queries': ('qwen3', lambda: Norms('q_norm', 'k_norm', 'input_layernorm')),
  'lntuning around one': ('gemma2', lambda: Norms(
    'input_layernorm', 'post_attention_layernorm', 'pre_feedforward_layernorm', 'norm')),
  'lntuning with biases': ('gpt2', lambda: Norms('ln_1', 'ln_2', 'ln_f')),
}
VIRTUAL = ('prefix', 'prompt')


@pytest.fixture(scope='module')
def bases(tmp_path_factory):
  """name -> (folder, our model, our base), each made once."""
  made = {}

  def of(name):
    if name not in made:
      family, options = BASES[name]
      folder = tmp_path_factory.mktemp(name)
      releases.make(family, **options).save_pretrained(folder)
      made[name] = (folder, *pretrained.load(folder)[:2])
    return made[name]

  return of


def plain(folder, kind='CausalLM', **options):
  """Their model, fresh."""
  cls = getattr(transformers, f'AutoModelFor{kind}')
  return cls.from_pretrained(
    folder, attn_implementation='eager', pad_token_id=releases.PAD, **options).eval()


def wrapped(folder, config, seed=0, **options):
  """Their model with a random adapter, every trained part of it moved."""
  config.task_type = config.task_type or 'CAUSAL_LM'
  kind = 'CausalLM' if config.task_type == 'CAUSAL_LM' else 'SequenceClassification'
  torch.manual_seed(seed)
  theirs = peft.get_peft_model(plain(folder, kind, **options), config).eval()
  with torch.no_grad():
    for parameter in theirs.parameters():
      if parameter.requires_grad:
        parameter += 0.3 * torch.randn_like(parameter)
  return theirs


def batch(virtual: bool):
  """(tokens, mask): rows without padding and with it, at either end.

  PEFT counts left padding among the positions of what follows virtual tokens, and we do not: there
  it is left out.
  """
  sides = [releases.rows(padding=side) for side in (('right',) if virtual else ('right', 'left'))]
  tokens, mask = (np.concatenate(x) for x in zip(*sides))
  return tokens, mask


def ours(model, base, adapter, tokens, mask):
  """Our logits, an operation at a time: what one case compiles serves all that follow."""
  return np.asarray(lm.logits(model, base, adapter, tokens, mask))


def theirs_of(model, tokens, mask, virtual: bool = False):
  """Their logits at the tokens alone; with virtual ones they make positions themselves."""
  if not virtual:
    return releases.logits(model, tokens, mask)
  with torch.no_grad():
    out = model(input_ids=torch.tensor(tokens).long(), attention_mask=torch.tensor(mask).long())
  return out.logits.float().numpy()[:, -tokens.shape[1]:]


def agree(found, theirs, virtual: bool = False):
  """Our logits of the batch are theirs, wherever the mask counts."""
  tokens, mask = batch(virtual)
  expected = theirs_of(theirs, tokens, mask, virtual)
  np.testing.assert_allclose(found[mask], expected[mask], rtol=0, atol=ATOL)


def ours_of(model, base, adapter, virtual: bool = False):
  """Our logits of the batch, which are not the base's."""
  tokens, mask = batch(virtual)
  found = ours(model, base, adapter, tokens, mask)
  assert np.abs(ours(model, base, {}, tokens, mask) - found)[mask].max() > 100 * ATOL
  return found


@pytest.mark.parametrize('name', CASES)
def test_the_same_weights_have_the_same_logits_both_ways(name, bases, tmp_path):
  kind, config = CASES[name]
  (folder, model, base), virtual = bases(kind), name.startswith(VIRTUAL)
  theirs = wrapped(folder, config())
  theirs.save_pretrained(tmp_path / 'in')
  adapter = peft_format.load(tmp_path / 'in', base, heads=model.config.heads)
  found = ours_of(model, base, adapter, virtual)
  agree(found, theirs, virtual)
  peft_format.save(tmp_path / 'out', adapter, base, heads=model.config.heads)
  again = peft.PeftModel.from_pretrained(plain(folder), tmp_path / 'out').eval()
  agree(found, again, virtual)
  one, other = (
    safetensors.numpy.load_file(tmp_path / f / peft_format.WEIGHTS) for f in ('in', 'out'))
  assert sorted(one) == sorted(other)
  for tensor in one:
    np.testing.assert_array_equal(one[tensor], other[tensor], err_msg=tensor)
  tiny.equal(peft_format.load(tmp_path / 'out', base, heads=model.config.heads), adapter)
  modules, head = peft_format.inspect(tmp_path / 'in')
  assert head is None and sum(m['parameters'] for m in modules.values()) == sum(
    x.size for n, x in one.items() if not n.startswith('base_model.vera_'))


OURS = {  # method: (its options, whether what comes back has the same arrays)
  'lora': (dict(rank=2), True), 'rslora': (dict(rank=2), True), 'lora_plus': (dict(rank=2), True),
  'lora_fa': (dict(rank=2), False), 'dora': (dict(rank=2), True), 'pissa': (dict(rank=2), False),
  'adalora': (dict(rank=2), False), 'vera': (dict(rank=4), False), 'ia3': ({}, True),
  'lntuning': ({}, True), 'prompt': (dict(virtual_tokens=4), True),
  'prefix': (dict(virtual_tokens=4), True), 'reparametrised': (
    dict(virtual_tokens=4, prefix_width=5), False),
}


@pytest.mark.parametrize('kind,method', [
  *(('llama', method) for method in OURS),
  *(('gpt2', method) for method in ('dora', 'vera', 'ia3', 'lntuning', 'reparametrised'))])
def test_an_adapter_made_here_has_its_logits_in_peft(method, kind, bases, tmp_path):
  folder, model, base = bases(kind)
  options, same = OURS[method]
  file = 'prefix' if method == 'reparametrised' else method
  targets = ('attn/(q|k|v|o)', 'mlp/down') if kind == 'llama' else ('attn/o', 'mlp/.*')
  fresh = adapters.init(jax.random.key(0), base, file, targets=targets, **options)
  adapter = tiny.trained(fresh, 0.3)
  peft_format.save(tmp_path / 'out', adapter, base, heads=model.config.heads)
  theirs = peft.PeftModel.from_pretrained(plain(folder), tmp_path / 'out').eval()
  agree(ours_of(model, base, adapter, file in VIRTUAL), theirs, file in VIRTUAL)
  again = peft_format.load(tmp_path / 'out', base, heads=model.config.heads)
  if same and (method, kind) != ('ia3', 'gpt2'):  # whose queries have factors of 1, being fused
    tiny.equal(again, adapter)
  else:
    agree(ours_of(model, base, again, file in VIRTUAL), theirs, file in VIRTUAL)


@pytest.mark.parametrize('method', ['lora', 'dora', 'vera', 'ia3', 'lntuning'])
def test_the_last_layers_alone(method, bases, tmp_path):
  folder, model, base = bases('llama')
  options = {} if method in ('ia3', 'lntuning') else dict(rank=2)
  adapter = tiny.trained(
    adapters.init(jax.random.key(0), base, method, top_layers=1, **options), 0.3)
  peft_format.save(tmp_path / 'out', adapter, base)
  assert not any('layers.0.' in module for module in peft_format.inspect(tmp_path / 'out')[0])
  theirs = peft.PeftModel.from_pretrained(plain(folder), tmp_path / 'out').eval()
  agree(ours_of(model, base, adapter), theirs)
  tiny.close(ours_of(model, base, peft_format.load(tmp_path / 'out', base)),
             ours_of(model, base, adapter))


# --- PiSSA, whose base PEFT changes


@pytest.mark.parametrize('kind', ['llama', 'gpt2'])
def test_pissa_begins_and_goes_on_as_in_peft(kind, bases, tmp_path):
  folder, model, base = bases(kind)
  rank, fused = 3, kind == 'gpt2'
  targets, paths = (('mlp.c_proj', 'c_fc'), ('mlp/up', 'mlp/down')) if fused else (
    ('q_proj', 'down_proj'), ('attn/q', 'mlp/down'))
  config = peft.LoraConfig(
    r=rank, lora_alpha=rank, target_modules=list(targets), init_lora_weights='pissa',
    task_type='CAUSAL_LM', fan_in_fan_out=fused)
  theirs = peft.get_peft_model(plain(folder), config).eval()
  theirs.peft_config['default'].init_lora_weights = True
  theirs.save_pretrained(tmp_path / 'first')
  first = peft_format.load(tmp_path / 'first', base, heads=model.config.heads)
  fresh = adapters.init(jax.random.key(0), base, 'pissa', rank=rank, targets=paths)
  nodes = adapters.nodes(first)
  assert set(nodes) == set(adapters.nodes(fresh))
  for path, node in adapters.nodes(fresh).items():  # triplets have a sign of their own
    np.testing.assert_allclose(node.a @ node.b, nodes[path].a @ nodes[path].b, atol=1e-5)
    np.testing.assert_allclose(
      (node.a**2).sum(-2), (nodes[path].a ** 2).sum(-2), rtol=1e-4, atol=1e-5)
  tokens, mask = releases.rows()
  for adapter in ({}, fresh):
    np.testing.assert_allclose(
      ours(model, base, adapter, tokens, mask)[mask], releases.logits(theirs, tokens, mask)[mask],
      rtol=0, atol=ATOL)
  releases.noisy(theirs, 0.3, only='lora_')
  theirs.save_pretrained(tmp_path / 'trained')
  trained = adapters.nodes(peft_format.load(tmp_path / 'trained', base, heads=model.config.heads))
  adapter = trees.nest({path: node.replace(a=trained[path].a, b=trained[path].b)
                        for path, node in adapters.nodes(fresh).items()})
  agree(ours_of(model, base, adapter), theirs)


# --- Heads


def known_by_both(monkeypatch, kind):
  """transformers 5.24 calls `cache` what PEFT 0.21 passes to a classifier as past_key_values."""
  forward = kind.forward
  if 'past_key_values' in inspect.signature(forward).parameters:
    return

  def renamed(self, *arguments, past_key_values=None, **options):
    return forward(self, *arguments, cache=past_key_values, **options)

  monkeypatch.setattr(kind, 'forward', renamed)


@pytest.mark.parametrize('name', ['dora', 'vera', 'ia3', 'prefix', 'lntuning'])
def test_reward_models_have_their_scores_both_ways(name, bases, tmp_path, monkeypatch):
  folder, model, base = bases('tied')
  known_by_both(monkeypatch, type(plain(folder, 'SequenceClassification', num_labels=1)))
  config = CASES[name][1]()
  config.task_type = 'SEQ_CLS'
  theirs = wrapped(folder, config, num_labels=1)
  theirs.save_pretrained(tmp_path / 'in')
  adapter = peft_format.load(tmp_path / 'in', base, heads=model.config.heads)
  tokens, mask = releases.rows()
  expected = theirs_of(theirs, tokens, mask, True)[:, 0]
  scores = lm.score(model, base, adapter, tokens, mask)
  np.testing.assert_allclose(scores, expected, rtol=0, atol=ATOL)
  peft_format.save(tmp_path / 'out', adapter, base, heads=model.config.heads)
  again = peft.PeftModel.from_pretrained(
    plain(folder, 'SequenceClassification', num_labels=1), tmp_path / 'out').eval()
  np.testing.assert_allclose(theirs_of(again, tokens, mask, True)[:, 0], expected, atol=1e-5)


# --- Refusals


@pytest.mark.parametrize('method', [
  'full', 'bitfit', 'houlsby', 'pfeiffer', 'intrinsic', 'mole', 'topk', 'over', 'mixed',
  'dora fused', 'prefix top', 'uniform'])
def test_what_has_no_place_in_peft_is_named(method, bases, tmp_path):
  _, _, base = bases('gpt2' if method == 'dora fused' else 'llama')
  make = lambda name, **options: adapters.init(jax.random.key(0), base, name, **options)
  below = make('lora', rank=2)
  adapter = {
    'over': lambda: composition.over(base, below, make('lora', rank=2)),
    'mixed': lambda: {'layers': {'block': {
      **below['layers']['block'], **make('lntuning')['layers']['block']}}},
    'dora fused': lambda: make('dora', rank=2, targets=('attn/q',)),
    'prefix top': lambda: make('prefix', top_layers=1),
    'uniform': lambda: make('ia3'),
  }.get(method, lambda: make(method, rank=2))()
  expected = {
    'full': 'Full', 'bitfit': 'NewBias', 'houlsby': 'Bottleneck', 'pfeiffer': 'Bottleneck',
    'intrinsic': 'Intrinsic', 'mole': 'Mixture', 'topk': 'Full', 'over': 'Over',
    'mixed': 'Full, LoRA', 'dora fused': 'DoRA of queries, keys and values alike',
    'prefix top': 'last 1', 'uniform': 'uniform layout'}[method]
  with pytest.raises(Unsupported, match=expected):
    peft_format.save(tmp_path / 'out', adapter, base, uniform=method == 'uniform')
  assert not (tmp_path / 'out').exists()


@pytest.fixture
def written(bases, tmp_path):
  """name of a case -> (folder, base, change its config, change its tensors)."""

  def of(name):
    kind, config = CASES[name]
    folder, _, base = bases(kind)
    wrapped(folder, config()).save_pretrained(tmp_path)

    def about(**fields):
      file = tmp_path / peft_format.CONFIG
      file.write_text(json.dumps(json.loads(file.read_text()) | fields))

    def state(change):
      file = tmp_path / peft_format.WEIGHTS
      safetensors.numpy.save_file(change(safetensors.numpy.load_file(file)), file)

    return tmp_path, base, about, state

  return of


@pytest.mark.parametrize('name,fields', [
  ('vera', dict(save_projection=False)), ('vera', dict(bias='all')), ('ia3', dict(use_dora=True)),
  ('prefix', dict(num_transformer_submodules=2)), ('prompt', dict(something_new=1)),
  ('lntuning', dict(modules_to_save=['lm_head'])), ('ia3', dict(task_type='SEQ_2_SEQ_LM')),
])
def test_an_option_that_is_not_known_is_named(name, fields, written):
  folder, base, about, _ = written(name)
  about(**fields)
  with pytest.raises(Unsupported, match=next(iter(fields))):
    peft_format.load(folder, base)


@pytest.mark.parametrize('name,change,error,match', [
  ('vera', lambda s: {n: x for n, x in s.items() if n != 'base_model.vera_A'}, CorruptTensors,
   'save it again'),
  ('vera', lambda s: {n: x[:, :8].copy() if n == 'base_model.vera_A' else x
                      for n, x in s.items()}, CorruptTensors, 'another base'),
  ('ia3', lambda s: {n: x.ravel() for n, x in s.items()}, CorruptTensors, 'ia3_l'),
  ('ia3', lambda s: {n: x for n, x in s.items() if 'layers.1' not in n}, Unsupported, 'layer 1'),
  ('dora', lambda s: {n: x[:-1] if 'magnitude' in n else x for n, x in s.items()},
   CorruptTensors, 'magnitude'),
  ('prefix', lambda s: {n: x[:, :-1].copy() for n, x in s.items()}, CorruptTensors, 'another base'),
  ('prompt', lambda s: {n: x[:-1].copy() for n, x in s.items()}, CorruptTensors, 'num|config'),
  ('prompt', lambda s: {f'{n}.x': x for n, x in s.items()}, Unsupported, 'prompt_embeddings'),
  ('lntuning', lambda s: {n: x[:-1] for n, x in s.items()}, CorruptTensors, 'another base'),
  ('lntuning', lambda s: {n.replace('input_layernorm', 'mlp'): x for n, x in s.items()},
   CorruptTensors, 'mlp'),
])
def test_tensors_that_do_not_fit(name, change, error, match, written):
  folder, base, _, state = written(name)
  state(change)
  with pytest.raises(error, match=match):
    peft_format.load(folder, base)
