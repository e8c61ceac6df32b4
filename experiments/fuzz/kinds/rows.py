"""Rows: the user's own files in every layout, and files as the public homes have them."""

import functools
import gzip
import io
import json
import pathlib
import random
from typing import Any

from experiments.fuzz import _mutations as mutations
from perl import choices
from perl.data.examples import KINDS
from perl.data.sets import local
from perl.data.sources import layouts, tfds
from perl.data.text import tokenizer as tokenizers

SHARE = 25

_CHAT = [{'role': 'user', 'content': 'tea'}, {'role': 'assistant', 'content': 'green?'}]
LAYOUTS = (
  {'text': 'a text'}, {'prompt': 'p', 'response': 'r', 'label': 1},
  {'prompt': 'p', 'chosen': 'c', 'rejected': 'r', 'margin': 1.5, 'group': 'g', 'meta': {'a': 1}},
  {'prompt': 'p', 'responses': ['best', 'good', 'bad']}, {'prompt': 'p', 'completion': 'c'},
  {'prompt': 'p', 'response': 'r', 'rating': 2.5},
  {'messages': [{'role': 'system', 'content': 's'}, *_CHAT], 'tools': [{'name': 'f'}]},
  {'prompt': _CHAT[:1], 'chosen': _CHAT[1:], 'rejected': [{'role': 'agent', 'content': 'no'}]},
)
_TURNS = json.dumps([{'role': 'user', 'text': 'a latte'},
                     {'role': 'agent', 'api': {'f': {'q': 'x'}}},
                     {'role': 'api', 'response': {'f': {'items': [{'name': 'n', 'option': 1}]}}}])
_POST = {'id': 't3', 'subreddit': 's', 'title': 't', 'post': 'p'}
PUBLISHED: dict[str, dict] = {
  'gsm8k': {'question': 'q?', 'answer': '1+1=<<1+1=2>>2\n#### 2'},
  'hh_rlhf': {'chosen': '\n\nHuman: a\n\nAssistant: b', 'rejected': '\n\nHuman: a\n\nAssistant: c'},
  'reddit_tldr': {**_POST, 'summary': 's', 'info': _POST, 'choice': 1, 'split': 'train',
                  'summaries': [{'text': 'a'}, {'text': 'b'}], 'extra': {'confidence': 3}},
  'shp': {'post_id': 'p', 'history': 'h', 'human_ref_A': 'a', 'human_ref_B': 'b', 'labels': 1,
          'score_ratio': 2.0},
  'taskmaster_coffee': {
    'conversation_id': 'c', 'context': _TURNS, 'generation': '{"role": "agent", "text": "ok"}',
    'reward': 1.0, 'utterances': [
      {'speaker': 'user', 'text': 'hi', 'annotations': [
        {'name': 'api_call', 'value': 'f'}, {'name': 'request', 'value': '{"a": "b"}'},
        {'name': 'api_response', 'value': 'f'}, {'name': 'response', 'value': '{"a": 1}'}]}]},
}
"""Dataset -> a row that any part of it can read."""
PUBLISHED['taskmaster_ticketing'] = PUBLISHED['taskmaster_coffee']


@functools.cache
def files() -> dict[str, bytes]:
  """Nothing is there until it is spoilt, but for rows that are right."""
  return {'train.jsonl': b'\n'.join(json.dumps(LAYOUTS[0]).encode() for _ in range(3))}


def spoil(valid: dict[str, bytes], rng: random.Random) -> dict[str, bytes | None]:
  """One file: .jsonl, .jsonl.gz or .parquet of the user's, or a public home's."""
  del valid
  kind = rng.randrange(8)
  if kind == 0:
    return {'train.jsonl': None, 'train.parquet': _parquet(rng)}
  name, row = rng.choice([('', row) for row in LAYOUTS] + list(PUBLISHED.items()))
  stem = f'{name}/{_file(name, rng)}' if name else 'train.jsonl'
  lines = [json.dumps(row).encode() for _ in range(3)]
  if kind < 7:
    spoilt = rng.randrange(len(lines))
    lines[spoilt] = mutations.spoilt_json(lines[spoilt], rng)
  content = b'\n'.join(lines) if rng.random() < 0.8 else b'[' + b','.join(lines) + b']'
  if kind in (5, 6, 7):
    content = gzip.compress(content, mtime=0)
    if kind == 7:
      content = mutations.spoilt_bytes(content, rng)
    return {'train.jsonl': None, stem if name else f'{stem}.gz': content}
  return {'train.jsonl': None, stem: content}


def _source(name: str) -> tfds.Source:
  return choices.find('perl.data.sets', name).SOURCE


def _file(name: str, rng: random.Random) -> str:
  """The first file of a part."""
  parts = _source(name).parts
  return parts[rng.choice(sorted(parts))].files[0]


def _parquet(rng: random.Random) -> bytes:
  import pyarrow
  import pyarrow.parquet

  row, file = dict(rng.choice(LAYOUTS)), io.BytesIO()
  try:
    row = json.loads(mutations.text(mutations.value(row, rng))) if rng.random() < 0.7 else row
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row] * 3), file)
  except (ValueError, TypeError, AttributeError, RecursionError, OverflowError, OSError,
          pyarrow.ArrowException):  # a table cannot hold it
    return mutations.spoilt_bytes(b'PAR1', rng)
  return file.getvalue() if rng.random() < 0.5 else mutations.spoilt_bytes(file.getvalue(), rng)


@functools.cache
def _tokenizer() -> tokenizers.Tokenizer:
  return tokenizers.train_bpe(['a text'] * 2, 300)


def read(folder: pathlib.Path, rng: random.Random) -> Any:
  """The examples of some kind, and the ids of their texts."""
  (file,) = (path for path in folder.rglob('*') if path.is_file())
  if file.parent == folder:
    local.kinds(str(folder))
    examples = local.load('train', rng.choice(['document', *KINDS]), mirror=str(folder))
  else:
    name, _, inner = file.relative_to(folder).as_posix().partition('/')
    part = next(part for part in _source(name).parts.values() if part.files[0] == inner)
    records = [record for _, record in part.read({inner: tfds.read_rows(file)})]
    examples = [example for record in records if 'turns' not in record
                for example in layouts.examples(record, 'document', file.name)]
  texts = [text for example in examples for field in example.TEXTS
           for text in ([getattr(example, field)] if isinstance(getattr(example, field), str)
                        else getattr(example, field))]
  return _tokenizer().encode_batch(texts)
