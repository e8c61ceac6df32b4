"""The door for GGUF, llama.cpp's files: config, tokenizer, tensors as a published folder has them.

The rest of the hub sees no difference: `pretrained.load('model.gguf')` is `load` of the folder that
`perl-rlhf convert import --gguf=model.gguf --form=huggingface` writes, with its digest.
"""

import os
from typing import Any

from perl.data.text import tokenizer as tokenizers
from perl.hub import gguf_config, gguf_header, gguf_tensors, gguf_tokenizer
from perl.hub.gguf_header import is_one
from perl.hub.gguf_tensors import Entry

__all__ = ['config_json', 'entries', 'is_one', 'tokenizer']


def config_json(file: str | os.PathLike) -> dict[str, Any]:
  """The config.json that its fields mean.

  Raises:
    FileNotFoundError, CorruptTensors: see gguf_header.read.
    Unsupported: an architecture, a field or a type of tensors that is not known, by name.
  """
  return gguf_config.config_json(gguf_header.read(file))


def entries(file: str | os.PathLike) -> dict[str, Entry]:
  """{published name: where the tensor lies, and what it will be}; raises as `config_json`."""
  header = gguf_header.read(file)
  about = gguf_config.config_json(header)
  return gguf_tensors.entries(header, gguf_config.architecture(header), about)


def tokenizer(file: str | os.PathLike) -> tokenizers.Tokenizer | None:
  """Its tokenizer; None where it has none; raises as `config_json`."""
  header = gguf_header.read(file)
  files = gguf_tokenizer.files(header, gguf_config.architecture(header))
  if not files:
    return None
  ending = gguf_config.special_ids(header).get('eos_token_id', ())
  return tokenizers.of(files, header.file, tuple(ending) if isinstance(ending, list) else (ending,))
