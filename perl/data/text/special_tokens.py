"""Which tokens of a vocabulary are bos, eos and pad, and whether texts open with bos."""

import re
from collections.abc import Container, Mapping, Sequence
from typing import Any

from perl.data.text.sentence_piece import SentencePiece
from perl.data.text.tokenizer_files import Settings
from perl.data.text.vocabularies import Json

PAD, BOS, EOS = '<|pad|>', '<|bos|>', '<|eos|>'

# What published tokenizers call the three, tried in this order where no file beside them says.
_NAMES = {
  'pad_token': (PAD, '<pad>', '[PAD]', '<|padding|>', '<|finetune_right_pad_id|>', '<|endoftext|>'),
  'bos_token': (BOS, '<s>', '<bos>', '<|begin_of_text|>', '[BOS]', '<|endoftext|>'),
  'eos_token': (EOS, '</s>', '<eos>', '<|end_of_text|>', '<|im_end|>', '[EOS]', '<|endoftext|>'),
}
UNKNOWN = ('<unk>', '[UNK]', '<|unk|>')


def ids(backend: Json | SentencePiece, settings: Settings) -> dict[str, int | None]:
  """The ids of bos, eos and pad: as declared, else by their usual names; None where it has none."""
  special = {}
  for name, candidates in _NAMES.items():
    declared = settings.declared.get(name)
    # A published null says that texts have no bos (Qwen2); that of pad only that nobody needed it.
    none = name == 'bos_token' and name in settings.declared and declared is None
    tokens = () if none else (declared,) if declared else candidates
    known = (backend.id(token) for token in tokens)
    special[name] = next((index for index in known if index is not None), None)
  return special


def stop(eos: int | None, settings: Settings) -> int:
  """The id of eos.

  Raises:
    ValueError: there is none.
  """
  if eos is None:
    raise ValueError(
      f'tokenizer: expected an end-of-sequence token among {", ".join(_NAMES["eos_token"])}; '
      f'found {settings.declared.get("eos_token") or "none of them"!r} to name no id; '
      "add a tokenizer_config.json with 'eos_token' beside the file")
  return eos


def apart(backend: Json | SentencePiece, own: str | None, stops: Container[int], used: str,
          rows: int) -> str | None:
  """A token to pad with that ends no response; None where there is none.

  It is the vocabulary's own, if that will do; else one of those that are usually called so; else a
  special token that is not in use, first one that is reserved (Llama 3's), then the unknown token;
  at last one that is in use, for what opens a turn ends none.

  Args:
    backend: the vocabulary.
    own: its pad token, if it has one.
    stops: the ids that end a response.
    used: text that holds the tokens in use: the chat template, bos.
    rows: those of the embedding.
  """
  special = sorted(backend.special, key=lambda token: (
    token in used, not re.search('reserved|unused|pad', token)))
  unused = [token for token in special if token not in used]
  for token in (own, *_NAMES['pad_token'], *unused, *UNKNOWN, *special):
    index = None if token is None else backend.id(token)
    if index is not None and index < rows and index not in stops:
      return token
  return None


def as_configs_hold_them(about: Mapping[str, Any], bos: int, stops: Sequence[int], pad: int | None,
                         *, keeps_pad: bool) -> dict[str, Any]:
  """bos_token_id, eos_token_id (a list of several) and pad_token_id: see Tokenizer.special_ids."""
  eos = about.get('eos_token_id')
  if {*(eos if isinstance(eos, list) else [eos])} != {*stops}:
    eos = list(stops) if len(stops) > 1 else stops[0]
  before = {name: value for name in ('bos_token_id', *(['pad_token_id'] if keeps_pad else []))
            if (value := about.get(name)) is not None}
  return {'bos_token_id': bos, 'eos_token_id': eos, 'pad_token_id': pad} | before


def adds_bos(backend: Json | SentencePiece, settings: Settings, bos: int | None) -> bool:
  """Whether texts open with bos: as declared, else as the file or our own vocabularies have it."""
  if bos is None or settings.adds_bos is not None:
    return bos is not None and settings.adds_bos
  return backend.puts_first(bos) or backend.token(bos) == BOS
