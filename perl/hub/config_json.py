"""A config.json, read field by field: one that nobody reads, and that could matter, is refused."""

from collections.abc import Mapping
from typing import Any

from perl import documents
from perl.documents import FLAG, OBJECT, TEXT, Kind
from perl.models.config import MOST


class Unsupported(ValueError):
  """The checkpoint asks for something that this house does not compute."""


_IRRELEVANT = frozenset((
  'model_type', 'architectures', 'torch_dtype', 'dtype', 'transformers_version', '_name_or_path',
  'use_cache', 'tokenizer_class', 'initializer_range', 'bos_token_id', 'eos_token_id',
  'pad_token_id', 'sep_token_id', 'cls_token_id', 'unk_token_id', 'attention_dropout',
  'hidden_dropout', 'classifier_dropout', 'resid_pdrop', 'embd_pdrop', 'attn_pdrop',
  'pretraining_tp', 'output_attentions', 'output_hidden_states', 'return_dict', 'torchscript',
  'use_bfloat16', 'id2label', 'label2id', 'num_labels', 'problem_type', 'task_specific_params',
  'n_ctx', 'chunk_size_feed_forward', 'summary_activation', 'summary_first_dropout',
  'summary_proj_to_labels', 'summary_type', 'summary_use_proj', 'gradient_checkpointing',
  'cache_implementation', 'attn_implementation', '_attn_implementation',
  '_attn_implementation_autoset', 'finetuning_task', 'prefix', 'is_decoder', 'max_window_layers',
  'reorder_and_upcast_attn', 'hidden_act', 'hidden_activation', 'sliding_window_pattern',
  '_sliding_window_pattern', 'unsloth_version', 'unsloth_fixed',
  # Where it came from, and what programs that wrote it wanted to remember.
  '_model_name_or_path', '_commit_hash', '_num_labels', 'is_llama_config', 'transformers.js_config',
  'custom_pipelines', 'processor_class', 'keys_to_ignore_at_inference', 'loss_type',
  'neftune_noise_alpha', 'initializer_factor', 'n_special', 'predict_special_tokens',
  'max_sequence_length', 'max_seq_length', 'max_seq_len', 'seq_length', 'model_max_length',
  'tokenizer_model_max_length', 'tokenizer_padding_side', 'bos_token', 'eos_token', 'pad_token',
  'unk_token', 'decoder_start_token_id', 'tie_encoder_decoder', 'tf_legacy_loss', 'output_past',
  'internal_version',
  # How, not what, is computed; and dropout.
  'use_flash_attention', 'use_flash_attention_2', 'use_flash_attn', '_flash_attn_2_enabled',
  'use_sdpa', '_attn_implementation_internal', 'attention_probs_dropout_prob',
  'hidden_dropout_prob',
  # Of generation, which stood here before it had a file of its own.
  'max_length', 'min_length', 'max_new_tokens', 'min_new_tokens', 'do_sample', 'early_stopping',
  'num_beams', 'num_beam_groups', 'diversity_penalty', 'temperature', 'top_k', 'top_p', 'typical_p',
  'repetition_penalty', 'length_penalty', 'no_repeat_ngram_size', 'encoder_no_repeat_ngram_size',
  'bad_words_ids', 'num_return_sequences', 'output_scores', 'return_dict_in_generate',
  'forced_bos_token_id', 'forced_eos_token_id', 'remove_invalid_values',
  'exponential_decay_length_penalty', 'suppress_tokens', 'begin_suppress_tokens',
))
"""What changes no forward pass in evaluation, or is an older name of a field that is read. Anything
else that nobody reads is refused: what changes the mathematics, and what is not known to change
none, as `auto_map` (code of a stranger), `quantization_config` and `rope_interleaved`. The list is
tried against files of published checkpoints, `tests/hub/published_keys.json`."""


_SIZES = {
  'num_hidden_layers': MOST['layers'], 'n_layer': MOST['layers'], 'vocab_size': MOST['vocab_size'],
  'max_position_embeddings': MOST['max_positions'], 'n_positions': MOST['max_positions'],
  'sliding_window': MOST['window'],
}
"""Field -> the most that it may be; of every other size, that of a width."""
_REMEDY = 'that is not supported, use a model without it, or repair the file'


class Fields(documents.Fields):
  """The fields of a config.json; each that is read is ticked off.

  Args:
    values: the object.
    where: the file, for errors, which are Unsupported.
  """

  def __init__(self, values: Mapping[str, Any], where: str = 'config.json'):
    super().__init__(values, where, remedy=_REMEDY, error=Unsupported)
    self._read: set[str] = set()

  def get(self, name: str, default: Any = None, kind: Kind | None = None) -> Any:
    """The field, or the default where it is absent or null.

    Args:
      name: of the field.
      default: its type is the field's too.
      kind: what it may be, where the default does not say.

    Raises:
      Unsupported: it is of another kind.
    """
    self._read.add(name)
    return super().get(name, kind or self._kind(name, default), default)

  def need(self, name: str, kind: Kind | None = None) -> Any:
    """The field: a size, if no other kind is named.

    Raises:
      Unsupported: it is absent, null, or of another kind.
    """
    self._read.add(name)
    if self._values.get(name) is None:
      raise Unsupported(
        f'expected {self.where} to have {name!r}, found none; the file is not whole')
    return super().need(name, kind or self._kind(name, 1))

  def _kind(self, name: str, default: Any) -> Kind:
    """What a field has to be, by the type of its default."""
    return {
      bool: FLAG, int: documents.whole(1, _SIZES.get(name, MOST['width'])),
      float: documents.number(), str: TEXT, dict: OBJECT,
    }.get(type(default), documents.ANY)

  def only(self, name: str, *allowed: Any) -> None:
    """Requires that an absent, null or allowed value stands there.

    Raises:
      Unsupported: anything else.
    """
    value = self.get(name)
    if value is not None and value not in allowed:
      wanted = ' or '.join(map(repr, allowed or (None,)))
      raise Unsupported(
        f'expected {name} to be {wanted} in {self.where}, found {documents.shown(value)}; '
        'that is not supported, use a model without it')

  def choice(self, name: str, default: str, known: Mapping[str, str]) -> str:
    """The field through a table of names.

    Raises:
      Unsupported: a name that the table lacks.
    """
    value = self.get(name, default)
    if value not in known:
      raise Unsupported(
        f'expected {name} among {", ".join(known)} in {self.where}, found {value!r:.60}; that is '
        'not supported, use a model with one of these')
    return known[value]

  def check_rest(self) -> None:
    """Refuses what was not read: null, false and empty values aside.

    Raises:
      Unsupported: names every such field.
    """
    rest = {
      name: value for name, value in self._values.items()
      if name not in self._read and name not in _IRRELEVANT and value not in (None, False, [], {})}
    if rest:
      raise Unsupported(
        f'expected fields of {self.where} that are known, found {rest!r:.400}; they may change the '
        'mathematics and are not supported; if they do not, remove them from the file')
