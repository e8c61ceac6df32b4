"""The tokenizer of a run, as it is read: of a published base the one that its ids mean."""

from perl.data.text import tokenizer as tokenizers
from perl.data.text.tokenizer import Tokenizer
from perl.hub import pretrained
from perl.jobs._run import Run

LEAST = 0.9
"""Of the rows of an embedding that the ids of its tokenizer are: releases pad theirs by less."""


def read(run: Run) -> Tokenizer:
  """The tokenizer stage's result, inputs.tokenizer's, tokenizer.path's, or the checkpoint's.

  Raises:
    FileNotFoundError: there is none.
    ValueError: beside a checkpoint, one whose ids mean other tokens than the checkpoint's, without
      tokenizer.foreign; or one with ids that the embedding has not.
  """
  path, checkpoint = run.config.tokenizer.path, run.config.model.checkpoint
  where = path or checkpoint
  if not run.from_checkpoint('tokenizer'):
    where = run.input('tokenizer')
  own = pretrained.load_tokenizer(checkpoint) if checkpoint else None
  vocabulary = own if where == checkpoint else tokenizers.load(where)
  if vocabulary is None:
    raise FileNotFoundError(
      f'expected a tokenizer in {checkpoint}, found none; set '
      '--config.tokenizer.path=<tokenizer.json, *.model or folder>')
  if not checkpoint:
    return vocabulary
  rows = pretrained.read_config(checkpoint).vocab_size
  if vocabulary is not own and not run.config.tokenizer.foreign:
    _check(vocabulary, own, rows, where, checkpoint)
  return vocabulary.within(rows)


def _check(vocabulary: Tokenizer, own: Tokenizer | None, rows: int, where: str,
           checkpoint: str) -> None:
  remedy = ('use the one that was published with it, or set tokenizer.foreign=true to feed the '
            'model the ids of another one')
  if own is None and vocabulary.vocab_size < LEAST * rows:
    raise ValueError(
      f'expected a tokenizer of about the {rows} ids that {checkpoint} has rows for, found '
      f'{vocabulary.vocab_size} in {where}; {remedy}')
  if own is None:
    return
  both = range(min(vocabulary.vocab_size, own.vocab_size))  # one may have more of them
  apart = next((i for i in both if vocabulary.token(i) != own.token(i)), None)
  if apart is not None:
    raise ValueError(
      f'expected the tokenizer of {checkpoint}, found another one in {where}: id {apart} is '
      f'{vocabulary.token(apart)!r} there and {own.token(apart)!r} in the checkpoint; {remedy}')
