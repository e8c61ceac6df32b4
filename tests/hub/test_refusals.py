"""A checkpoint that is damaged, strange or dangerous is refused: expected, found, remedy."""

import errno
import json
import logging
import pickle
import struct

import numpy as np
import pytest
import releases
import safetensors.numpy

from perl import paths
from perl.hub import families, pretrained, tensors, writing
from perl.hub import shards as tensor_files
from perl.hub.config_json import Unsupported
from perl.hub.tensors import CorruptTensors
from perl.models.config import SIZES, sized

torch = releases.torch


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  """A sharded Llama and one in a single file."""
  model = releases.make('llama')
  folder = tmp_path_factory.mktemp('hub')
  model.save_pretrained(folder / 'many', max_shard_size='8KB')
  model.save_pretrained(folder / 'one')
  return folder


@pytest.fixture
def folder(made, tmp_path):
  """A copy of the sharded one, to be spoilt."""
  for file in (made / 'many').iterdir():
    (tmp_path / file.name).write_bytes(file.read_bytes())
  return tmp_path


@pytest.fixture
def single(made, tmp_path):
  """A copy of the single one: (folder, tensors, save)."""
  for file in (made / 'one').iterdir():
    (tmp_path / file.name).write_bytes(file.read_bytes())
  state = safetensors.numpy.load_file(tmp_path / 'model.safetensors')
  save = lambda: safetensors.numpy.save_file(state, tmp_path / 'model.safetensors')
  return tmp_path, state, save


def refused(folder, kind, *words):
  """Loading raises an error of that kind which says these words, and what to do."""
  with pytest.raises(kind) as error:
    pretrained.load(folder)
  text = str(error.value)
  for word in ('expected', 'found', *words):
    assert word in text, text
  return text


def files(folder):
  """The shards, in order."""
  return sorted(folder.glob('*.safetensors'))


def index(folder, change):
  """Rewrites the index."""
  file = folder / tensors.INDEX
  about = json.loads(file.read_text())
  change(about['weight_map'])
  file.write_text(json.dumps(about))


def about(folder, **fields):
  """Rewrites config.json."""
  file = folder / 'config.json'
  file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def test_a_missing_shard(folder):
  name = files(folder)[1].name
  files(folder)[1].unlink()
  refused(folder, CorruptTensors, name, 'no such file', 'fetch the checkpoint again')


@pytest.mark.parametrize('keep', [0, 7, 40, -1])
def test_a_truncated_shard(folder, keep):
  file = files(folder)[1]
  file.write_bytes(file.read_bytes()[:keep])
  refused(folder, CorruptTensors, file.name, 'whole safetensors file', 'fetch')


def test_a_header_that_lies(folder):
  file = files(folder)[0]
  content = file.read_bytes()
  file.write_bytes(struct.pack('<Q', 2**40) + content[8:])
  refused(folder, CorruptTensors, file.name)


def test_a_file_that_is_cut_while_it_is_read(made):
  entry = next(iter(tensors.find(made / 'one').values()))
  with pytest.raises(CorruptTensors, match='expected .* bytes of x, found'):
    tensors.read('x', entry._replace(start=entry.file.stat().length - 4,
                                     stop=entry.file.stat().length - 4 + entry.bytes))


@pytest.mark.parametrize('name', [
  '../evil.safetensors', '/etc/evil.safetensors', 'a/b.safetensors', '..\\evil.safetensors',
  'model.bin', '', None, 7,
])
def test_an_index_leads_nowhere_else(folder, name):
  (folder.parent / 'evil.safetensors').write_bytes(files(folder)[0].read_bytes())
  index(folder, lambda places: places.update({next(iter(places)): name}))
  refused(folder, CorruptTensors)


def test_an_index_that_names_an_absent_tensor(folder):
  index(folder, lambda places: places.update(ghost=next(iter(places.values()))))
  refused(folder, CorruptTensors, 'ghost')


@pytest.mark.parametrize('text', ['{', '[]', '{"weight_map": 3}', '{"metadata": {}}'])
def test_an_index_that_is_none(folder, text):
  (folder / tensors.INDEX).write_text(text)
  refused(folder, CorruptTensors, 'weight_map')


def test_a_wrong_shape(single):
  folder, state, save = single
  name = 'model.layers.1.mlp.up_proj.weight'
  state[name] = state[name][:-1].copy()
  save()
  refused(folder, CorruptTensors, name, '[24, 16]', '[23, 16]')


def test_a_missing_tensor(single):
  folder, state, save = single
  del state['model.layers.1.mlp.up_proj.weight']
  save()
  refused(folder, CorruptTensors, 'model.layers.1.mlp.up_proj.weight')


def test_a_tensor_that_nobody_reads(single):
  folder, state, save = single
  state['model.layers.0.self_attn.q_proj.bias'] = np.ones(24, np.float32)
  save()
  refused(folder, Unsupported, 'model.layers.0.self_attn.q_proj.bias')


def test_tensors_of_another_architecture(single):
  folder, _, _ = single
  state = {k: v.numpy() for k, v in releases.make('gpt_neox').state_dict().items()}
  safetensors.numpy.save_file(state, folder / 'model.safetensors')
  refused(folder, CorruptTensors, 'model.embed_tokens.weight', 'different models')


def test_a_tie_that_does_not_hold(single):
  folder, state, save = single
  about(folder, tie_word_embeddings=True)
  refused(folder, CorruptTensors, 'lm_head.weight', 'tie_word_embeddings')
  state['lm_head.weight'] = state['model.embed_tokens.weight'].copy()
  save()
  pretrained.load(folder)


def test_quantized_weights(single):
  folder, state, save = single
  name = 'model.layers.0.mlp.up_proj.weight'
  state[name] = state[name].astype(np.int8)
  save()
  refused(folder, Unsupported, name, 'I8', 'quantized')


def test_weights_that_are_not_finite_are_named(single, caplog):
  folder, state, save = single
  with caplog.at_level(logging.WARNING):
    pretrained.load(folder)
  assert not caplog.records
  state['model.layers.1.mlp.up_proj.weight'][3, 2] = np.nan
  save()
  with caplog.at_level(logging.WARNING):
    pretrained.load(folder)
  assert 'model.layers.1.mlp.up_proj.weight' in caplog.text and 'NaN' in caplog.text


class Bomb:
  """Runs code when it is unpickled."""

  def __reduce__(self):
    return (exec, ('raise SystemExit("the pickle was opened")',))


@pytest.mark.parametrize('name', ['pytorch_model.bin', 'model.pt', 'consolidated.00.pth'])
def test_a_pickle_is_never_opened(folder, name):
  for file in [*files(folder), folder / tensors.INDEX]:
    file.unlink()
  (folder / name).write_bytes(pickle.dumps(Bomb()))
  text = refused(folder, FileNotFoundError, name, 'pickle', 'safetensors')
  assert 'never opened' in text


def test_nothing_there(folder, tmp_path):
  refused(folder / 'nowhere', FileNotFoundError, 'no such folder', 'config.json')
  (folder / 'config.json').unlink()
  refused(folder, FileNotFoundError, 'config.json')


@pytest.mark.parametrize('text', ['{', '3', '[1]'])
def test_a_config_that_is_none(folder, text):
  (folder / 'config.json').write_text(text)
  refused(folder, CorruptTensors, 'JSON object')


@pytest.mark.parametrize('fields, words', [
  (dict(model_type='mamba'), ['mamba', 'llama, mistral']),
  (dict(architectures=['LlamaForTokenClassification']), ['LlamaForTokenClassification']),
  (dict(architectures=['MyLlamaForCausalLM']), ['MyLlamaForCausalLM']),
  (dict(auto_map={'AutoModel': 'code.Model'}), ['auto_map', 'code.Model']),
  (dict(quantization_config={'quant_method': 'gptq'}), ['quantization_config', 'gptq']),
  (dict(rope_scaling={'rope_type': 'dynamic', 'factor': 2.0}), ['dynamic']),
  (dict(rope_scaling={'rope_type': 'longrope', 'long_factor': [1.0]}), ['longrope']),
  (dict(rope_scaling={'rope_type': 'llama3', 'factor': 8.0}), ['llama3', 'low_freq_factor']),
  (dict(rope_scaling={'rope_type': 'linear', 'factor': 8.0, 'turbo': 1}), ['turbo']),
  (dict(rope_parameters={'rope_type': 'default', 'partial_rotary_factor': 0.5}),
   ['partial_rotary_factor']),
  (dict(hidden_act='quick_gelu'), ['hidden_act', 'quick_gelu']),
  (dict(residual_multiplier=0.3), ['residual_multiplier', '0.3']),
  (dict(num_experts=4), ['num_experts']),
  (dict(hidden_size=None), ['hidden_size']),
])
def test_a_field_that_is_not_known_is_named(folder, fields, words):
  about(folder, **fields)
  refused(folder, Unsupported, *words)


@pytest.mark.parametrize('family, fields, word', [
  ('gpt2', dict(scale_attn_by_inverse_layer_idx=True), 'scale_attn_by_inverse_layer_idx'),
  ('gpt2', dict(add_cross_attention=True), 'add_cross_attention'),
  ('gemma', dict(use_bidirectional_attention=True), 'use_bidirectional_attention'),
  ('gemma3_text', dict(attn_logit_softcapping=50.0), 'attn_logit_softcapping'),
  ('gemma2', dict(layer_types=['chunked_attention', 'full_attention']), 'chunked_attention'),
  ('mistral', dict(layer_types=['sliding_attention'] * 2), 'layer_types'),
])
def test_a_field_of_a_family_that_is_not_supported(family, fields, word):
  make = getattr(releases.transformers, f'{releases.CLASSES[family]}Config')
  config = make(**releases.shape(family))
  known = json.loads(config.to_json_string(use_diff=False))
  families.parse(known)
  with pytest.raises(Unsupported, match=word):
    families.parse(known | fields)


def test_a_published_reward_model_with_several_labels(tmp_path):
  releases.make('llama', kind='SequenceClassification', num_labels=3).save_pretrained(tmp_path)
  with pytest.raises(Unsupported, match='one label, found 3'):
    pretrained.load_head(tmp_path)


# --- Writing


@pytest.mark.parametrize('size', SIZES)
def test_every_size_has_a_published_family(size):
  config = sized(size, vocab_size=None if 'vocab_size' in SIZES[size] else 300)
  written = families.describe(config)
  assert families.parse(json.loads(json.dumps(written))) == config


def test_options_that_no_family_has(made, tmp_path):
  with pytest.raises(Unsupported, match="found none .*'qwen3' differs in norm"):
    families.describe(sized('tiny', vocab_size=300, qk_norm=True, norm='layer'))


def test_a_source_of_another_model(made, folder, tmp_path):
  model, base, _ = pretrained.load(made / 'one')
  about(folder, rms_norm_eps=0.1)
  with pytest.raises(Unsupported, match='norm_eps'):
    pretrained.save(tmp_path / 'out', model, base, source=folder)


def test_what_is_there_is_not_overwritten(made, folder):
  model, base, _ = pretrained.load(made / 'one')
  before = {p.name: p.read_bytes() for p in folder.iterdir()}
  with pytest.raises(FileExistsError, match='new or empty'):
    pretrained.save(folder, model, base)
  assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_a_full_disk_leaves_nothing(made, tmp_path, monkeypatch):
  model, base, _ = pretrained.load(made / 'one')

  def full(*args):
    yield 1
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(tensor_files, 'write', full)
  with pytest.raises(OSError, match='expected room for the checkpoint'):
    pretrained.save(tmp_path / 'out', model, base)
  assert not list(tmp_path.iterdir())


def test_a_save_that_was_killed_is_done_again(made, tmp_path):
  model, base, _ = pretrained.load(made / 'one')
  (tmp_path / 'out.new').mkdir()
  (tmp_path / 'out.new' / 'model.safetensors').write_bytes(b'half')
  pretrained.save(tmp_path / 'out', model, base)
  assert [p.name for p in tmp_path.iterdir()] == ['out']
  pretrained.load(tmp_path / 'out')


def test_a_head_that_transformers_cannot_have(made, tmp_path, caplog):
  model, base, _ = pretrained.load(made / 'one')
  head = {'kernel': np.ones((16, 1), np.float32), 'bias': np.zeros(1, np.float32)}
  with pytest.raises(Unsupported, match='mean'):
    pretrained.save(tmp_path / 'out', model, base, head=head | {'mean': np.zeros(32)})
  with caplog.at_level(logging.WARNING):
    writing.check_head(head | {'bias': np.full(1, 0.5, np.float32)})
  assert 'lower by it' in caplog.text


# --- Types and sizes


@pytest.mark.parametrize('fields', [
  {'architectures': 2}, {'architectures': [None]}, {'model_type': ['llama']},
  {'num_attention_heads': [2]}, {'num_attention_heads': 0}, {'hidden_size': '16'},
  {'hidden_size': 10**12}, {'num_hidden_layers': 10**9}, {'num_hidden_layers': True},
  {'vocab_size': -3}, {'vocab_size': 2**40}, {'rope_scaling': 'a'}, {'rope_scaling': [1]},
  {'rope_scaling': {'rope_type': 'linear', 'factor': [2]}}, {'rope_theta': 'x'},
  {'rope_scaling': {'rope_type': {}, 'factor': 2.0}}, {'rope_theta': float('nan')},
  {'rms_norm_eps': float('inf')}, {'hidden_act': {}}, {'tie_word_embeddings': 'yes'},
  {'attention_bias': 1}, {'max_position_embeddings': 0.5}, {'head_dim': 2**40},
  {'num_key_value_heads': 3},
])
def test_a_field_of_another_type_or_size_is_named(folder, fields):
  about(folder, **fields)
  refused(folder, (Unsupported, CorruptTensors), 'config.json')


@pytest.mark.parametrize('family, fields', [
  ('qwen2', {'num_hidden_layers': 10**9}), ('gemma2', {'num_hidden_layers': 10**9}),
  ('gemma2', {'query_pre_attn_scalar': 0}), ('gemma2', {'layer_types': [['x'], {}]}),
  ('gemma3_text', {'rope_parameters': 5}), ('gemma3_text', {'sliding_window_pattern': 0}),
  ('gpt_neox', {'rotary_pct': 'a'}), ('gpt_neox', {'rope_parameters': [1]}),
  ('gpt2', {'n_embd': []}), ('mistral', {'sliding_window': -1}),
])
def test_a_field_of_a_family_of_another_type_or_size(family, fields):
  make = getattr(releases.transformers, f'{releases.CLASSES[family]}Config')
  known = json.loads(make(**releases.shape(family)).to_json_string(use_diff=False))
  with pytest.raises(Unsupported, match='expected .* in config.json, found|config.json: expected'):
    families.parse(known | fields)


def test_a_config_of_lists_in_lists(folder):
  (folder / 'config.json').write_text('{"model_type": ' + '[' * 10**5)
  refused(folder, CorruptTensors, 'config.json', 'lists in lists')


@pytest.mark.parametrize('change', [
  lambda e: e.update(shape=[-16, 48]), lambda e: e.update(dtype='F16'),
  lambda e: e.update(data_offsets=[0, 2**60]), lambda e: e.update(shape=[2**40, 2**40]),
  lambda e: e.update(data_offsets=[4, 8]), lambda e: e.update(shape='ab'), lambda e: e.clear(),
])
@pytest.mark.parametrize('local', [True, False])
def test_a_header_that_says_other_places_than_there_are(single, change, local, monkeypatch):
  """With the library's checks, and without: it cannot open what is on no disk."""
  folder, _, _ = single
  file = folder / 'model.safetensors'
  content = file.read_bytes()
  (length,) = struct.unpack('<Q', content[:8])
  header = json.loads(content[8:8 + length])
  change(header['model.layers.1.mlp.up_proj.weight'])
  text = json.dumps(header).encode()
  file.write_bytes(struct.pack('<Q', len(text)) + text + content[8 + length:])
  if not local:
    monkeypatch.setattr(paths, 'is_local', lambda place: False)
  refused(folder, CorruptTensors, 'model.safetensors', 'whole safetensors file')
