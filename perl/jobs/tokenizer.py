"""Stage `tokenizer`: a byte-level BPE of the train split, or a copy of one that exists."""

from ml_collections import ConfigDict

from perl.data import sets
from perl.data.examples import Example
from perl.data.text import tokenizer as tokenizers
from perl.jobs import _run as runs
from perl.jobs._data import Data


def run(config: ConfigDict, workdir: str) -> dict:
  """Leaves tokenizer.json (or *.model) in workdir; returns vocab_size and characters per token."""
  run = runs.begin(config, workdir, 'tokenizer')
  texts = _texts(Data(run, None))
  section, path = config.tokenizer, config.tokenizer.path or config.model.checkpoint
  tokenizer = tokenizers.load(path) if path else tokenizers.train_bpe(
    texts, section.vocab_size, lowercase=section.lowercase, split_digits=section.split_digits)
  tokenizer.save(workdir)
  sample = texts[:: max(1, len(texts) // 200)]
  tokens = sum(len(ids) for ids in tokenizer.encode_batch(sample))
  return run.finish({
    'vocab_size': tokenizer.vocab_size,
    'digest': tokenizer.digest,
    'texts': len(texts),
    'characters_per_token': sum(map(len, sample)) / max(tokens, 1),
  })


def needs(data: Data) -> list[tuple[str, str]]:
  """(kind, split) of the examples that the stage reads."""
  return [(_kind(data), 'train')]


def _texts(data: Data) -> list[str]:
  """Every text of the train split."""
  return [text for example in data.examples('train', _kind(data)) for text in _fields(example)]


def _kind(data: Data) -> str:
  """The first kind that the dataset has."""
  config = data.run.config.data
  kinds = sets.kinds(data.dataset, mirror=config.mirror)
  if not kinds:
    raise ValueError(
      f'expected a dataset with texts, found none in {config.name!r}; '
      'name another one, or set config.tokenizer.path')
  return kinds[0]


def _fields(example: Example) -> list[str]:
  names = ('text', 'prompt', 'response', 'chosen', 'rejected')
  texts = [getattr(example, name) for name in names if hasattr(example, name)]
  return [*texts, *getattr(example, 'responses', ())]
