"""Stage `tokenizer`: a byte-level BPE of the train split, or a copy of one that exists."""

import itertools

from ml_collections import ConfigDict

from perl.data.examples import KINDS, Example
from perl.data.text import tokenizer
from perl.jobs import _setting as settings


def run(config: ConfigDict, workdir: str) -> dict:
  """Leaves tokenizer.json (or *.model) in workdir; returns vocab_size and characters per token."""
  setting = settings.begin(config, workdir, 'tokenizer')
  texts = list(_texts(setting))
  if config.tokenizer.path or config.model.checkpoint:
    made = tokenizer.load(config.tokenizer.path or config.model.checkpoint)
  else:
    made = tokenizer.train_bpe(
      texts, config.tokenizer.vocab_size, lowercase=config.tokenizer.lowercase,
      split_digits=config.tokenizer.split_digits,
    )
  made.save(workdir)
  sample = texts[:: max(1, len(texts) // 200)]
  tokens = sum(len(ids) for ids in made.encode_batch(sample))
  return setting.finish({
    'vocab_size': made.vocab_size,
    'digest': made.digest,
    'texts': len(texts),
    'characters_per_token': sum(map(len, sample)) / max(tokens, 1),
  })


def _texts(setting: settings.Setting):
  """Every text of the train split, of the first kinds that the dataset has."""
  for kind in KINDS:
    try:
      examples = setting.examples('train', kind)
    except ValueError:
      continue
    return itertools.chain.from_iterable(map(_fields, examples))
  raise ValueError(
    f'expected a dataset with texts, found none in {setting.config.data.name!r}; '
    'name another one, or set config.tokenizer.path'
  )


def _fields(example: Example) -> list[str]:
  names = ('text', 'prompt', 'response', 'chosen', 'rejected')
  found = [getattr(example, name) for name in names if hasattr(example, name)]
  return [*found, *getattr(example, 'responses', ())]
