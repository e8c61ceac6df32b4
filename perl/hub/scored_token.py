"""Which token of a row a published reward model is read at.

Classifiers of transformers read the last token that is not pad, by its id. Where pad is what ends a
response (TRL sets it so where a tokenizer has none) that is the token before the end; such a head
leaves the end `unread` (models.lm.score), to score as it was trained.
"""

import logging
import os

import jax.numpy as jnp

from perl import documents, paths
from perl.data.text import tokenizer as tokenizers
from perl.data.text import tokenizer_files
from perl.hub.adapters import OWN
from perl.types import Tree


def of_checkpoint(folder: str | os.PathLike) -> int | None:
  """The pad id that transformers goes by: config.json's; None where it has none."""
  file = paths.of(folder) / 'config.json'
  if not file.is_file():
    return None
  about = documents.read(file, documents.OBJECT)
  pad = (about.get('text_config') or about).get('pad_token_id')
  return pad if type(pad) is int else None


def of_adapter(folder: str | os.PathLike, checkpoint: str) -> int | None:
  """The pad id of an adapter: that of the tokenizer beside it, or else of its base."""
  if tokenizer_files.read(paths.of(folder)).declared.get('pad_token'):
    return tokenizers.load(folder).pad_id
  return of_checkpoint(checkpoint) if checkpoint else None


def head(kernel: Tree, folder: str | os.PathLike, checkpoint: str, stops: tuple[int, ...]) -> Tree:
  """The head of a published reward model, read at the token that it was trained to be read at.

  Args:
    kernel: the head as it stands in the file.
    folder: the reward model's, a whole one or an adapter in PEFT's format.
    checkpoint: what an adapter lies over; '' of a whole model.
    stops: the ids that end a response.
  """
  if (paths.of(folder) / OWN).is_file():  # trained here, at the end of the response
    return kernel
  pad = of_adapter(folder, checkpoint) if checkpoint else of_checkpoint(folder)
  if pad not in stops:
    return kernel
  logging.warning(
    'the reward model in %s pads with the token that ends a response (id %d): its scores are read '
    'at the token before it, as transformers reads them', folder, pad)
  return kernel | {'unread': jnp.array([pad], jnp.int32)}
