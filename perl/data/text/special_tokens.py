"""Which tokens of a vocabulary are bos, eos and pad, and whether texts open with bos."""

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


def adds_bos(backend: Json | SentencePiece, settings: Settings, bos: int | None) -> bool:
  """Whether texts open with bos: as declared, else as the file or our own vocabularies have it."""
  if bos is None or settings.adds_bos is not None:
    return bos is not None and settings.adds_bos
  return backend.puts_first(bos) or backend.token(bos) == BOS
