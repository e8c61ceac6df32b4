"""Fields of config.json that change no mathematics: transformers gives the same with each."""

import pytest
import releases

from perl.hub import families
from perl.hub.config_json import _IRRELEVANT, Unsupported

READ = frozenset((
  'model_type', 'architectures', 'transformers_version', 'torch_dtype', 'dtype', 'hidden_act',
  'hidden_activation',
  'sliding_window_pattern', '_sliding_window_pattern', 'max_window_layers', 'n_ctx',
  'bos_token_id', 'eos_token_id', 'pad_token_id'))
"""Of the list: what some family reads, or another file has the word on; the rest is tried."""

OUTPUTS = frozenset(('return_dict', 'torchscript', 'output_attentions', 'output_hidden_states'))
"""Say what transformers hands over beside the logits."""

VALUES = {
  'id2label': {'0': 'a', '1': 'b'}, 'label2id': {'a': 0, 'b': 1}, 'task_specific_params': {'x': {}},
  'transformers.js_config': {'kv_cache_dtype': {'fp16': 'float16'}}, 'custom_pipelines': {'a': {}},
  'keys_to_ignore_at_inference': ['past_key_values'], 'bad_words_ids': [[3]], 'use_cache': False,
  'suppress_tokens': [3], 'begin_suppress_tokens': [3], 'problem_type': 'regression',
  'exponential_decay_length_penalty': [3, 1.5], 'attn_implementation': 'eager',
  '_attn_implementation': 'eager', '_attn_implementation_internal': 'eager',
  '_attn_implementation_autoset': True, 'cache_implementation': 'hybrid', 'num_labels': 3,
  'initializer_range': 0.5, 'chunk_size_feed_forward': 2, 'summary_activation': 'tanh',
  'summary_type': 'last', **dict.fromkeys((
    'summary_use_proj', 'summary_proj_to_labels', 'reorder_and_upcast_attn'), True)}
"""Of fields of another kind than the number that is tried."""

FAMILIES = ('llama', 'gpt2')


@pytest.fixture(scope='module', params=FAMILIES)
def case(request):
  """(config.json, weights, logits of a model of theirs, its rows)."""
  model, rows = releases.make(request.param), releases.rows()
  return model.config.to_dict(), model.state_dict(), releases.logits(model, *rows), rows


def with_field(about, name):
  return about | {name: VALUES.get(name, 0.25 if 'drop' in name or 'pdrop' in name else 3)}


def same(case, changed):
  """Whether their logits, and our config, are what they were."""
  about, weights, expected, rows = case
  config = releases.transformers.AutoConfig.for_model(
    **{k: v for k, v in changed.items() if k not in ('architectures', 'transformers_version')})
  config._attn_implementation = 'eager'
  model = releases.transformers.AutoModelForCausalLM.from_config(config)
  model.load_state_dict(weights)
  logits = releases.logits(model.eval(), *rows)
  return (logits == expected).all() and families.parse(changed) == families.parse(about)


def test_fields_that_are_let_through_change_no_logits(case):
  """All at once; which of them does, where that is not so."""
  about, names = case[0], sorted(_IRRELEVANT - READ - OUTPUTS)
  together = about
  for name in names:
    together = with_field(together, name)
  if not same(case, together):
    assert not [name for name in names if not same(case, with_field(about, name))]


@pytest.mark.parametrize('name, value', [
  ('rope_interleaved', True), ('auto_map', {'AutoModel': 'a.B'}), ('unheard_of', 1),
  ('quantization_config', {'bits': 4}), ('is_encoder_decoder', True), ('pruned_heads', {'0': [1]}),
  ('_unheard_of', 'x')])
def test_what_may_change_them_is_refused(case, name, value):
  about, *_ = case
  with pytest.raises(Unsupported, match=name):
    families.parse(about | {name: value})
  for nothing in (None, False, [], {}):
    assert families.parse(about | {name: nothing}) == families.parse(about)
