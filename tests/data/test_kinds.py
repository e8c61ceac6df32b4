"""Which kinds of example a dataset has is known before anything is loaded."""

import json

import pytest

from perl import choices
from perl.data import sets
from perl.data.examples import KINDS, SPLITS
from perl.data.sets import arithmetic, gsm8k, local, toy

PAIR = {'prompt': 'p', 'chosen': 'c', 'rejected': 'r'}
SAID = {'role': 'user', 'content': 'tea'}, {'role': 'assistant', 'content': 'green?'}
CHAT = {'messages': list(SAID)}
RANKING = {'prompt': 'p', 'responses': ['a', 'b']}


def write(path, *rows):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text('\n'.join(row if isinstance(row, str) else json.dumps(row) for row in rows))
  return path


def test_every_dataset_says_its_kinds_and_loads_no_other():
  for name in choices.names(sets.SETS):
    module = choices.find(sets.SETS, name)
    assert module.KINDS and set(module.KINDS) <= set(KINDS), name
    for kind in set(KINDS) - set(module.KINDS):
      with pytest.raises(ValueError, match=f"{name}: expected a kind among .*; found '{kind}'"):
        module.load('train', kind)


def test_kinds_come_in_one_order_and_load_nothing(monkeypatch):
  def refuse(*_, **options):
    raise AssertionError('loaded')

  for module in (toy, arithmetic, gsm8k):
    monkeypatch.setattr(module, 'load', refuse)
  assert sets.kinds('toy') == sets.kinds(toy) == tuple(KINDS)
  assert sets.kinds('arithmetic', mirror='/nowhere') == ('document', 'demonstration', 'prompt')
  assert sets.kinds(gsm8k) == ('document', 'demonstration', 'prompt')
  with pytest.raises(ValueError, match="found 'toi'; did you mean 'toy'"):
    sets.kinds('toi')


@pytest.mark.parametrize('row, kinds', [
  ({'text': 't'}, 'document'),
  ({'prompt': 'p'}, 'prompt'),
  ({'prompt': 'p', 'completion': 'r'}, 'document demonstration prompt'),
  ({'prompt': 'p', 'response': 'r', 'label': 1}, 'document demonstration labelled prompt'),
  ({'prompt': 'p', 'response': 'r', 'rating': 1}, 'document demonstration rated prompt'),
  (PAIR, 'document demonstration preference prompt'),
  ({'chosen': list(SAID), 'rejected': list(SAID)}, 'document demonstration preference prompt'),
  (RANKING, 'document demonstration ranked prompt'),
  (CHAT, 'document demonstration prompt'),
  (CHAT | PAIR, 'document demonstration preference prompt'),
  ({'label': 1}, '')])
def test_a_first_row_decides_and_loads_as_it_says(row, kinds, tmp_path):
  file = write(tmp_path / 'train.jsonl', row)
  assert sets.kinds('local', mirror=str(tmp_path)) == sets.kinds(
    local, mirror=str(file)) == tuple(kinds.split())
  for kind in KINDS:
    if kind in kinds.split():
      assert local.load('train', kind, mirror=str(tmp_path))
    else:
      with pytest.raises(ValueError, match='expected a row with'):
        local.load('train', kind, mirror=str(tmp_path))


def test_a_folder_of_a_kind_and_files_of_other_splits_count(tmp_path):
  write(tmp_path / 'preference/dev.jsonl', PAIR)
  assert sets.kinds('local', mirror=str(tmp_path)) == ('preference',)
  write(tmp_path / 'test.jsonl', CHAT)
  assert sets.kinds('local', mirror=str(tmp_path)) == (
    'document', 'demonstration', 'preference', 'prompt')


def test_a_malformed_row_is_no_missing_kind(tmp_path):
  """Its kind is there, and loading it fails with the row's own error."""
  write(tmp_path / 'train.jsonl', PAIR, PAIR | {'prompt': 3})
  assert 'prompt' in sets.kinds('local', mirror=str(tmp_path))
  with pytest.raises(ValueError, match="expected 'prompt' to be a string .*line 2"):
    local.load('train', 'prompt', mirror=str(tmp_path))
  write(tmp_path / 'train.jsonl', PAIR | {'prompt': 3})
  assert 'prompt' in sets.kinds('local', mirror=str(tmp_path))


@pytest.mark.parametrize('rows, error, message', [
  (['{"prompt": '], ValueError, 'expected a JSON object .*line 1'),
  ([''], ValueError, 'expected rows in .*train.jsonl; found none'),
  (None, FileNotFoundError, 'expected train.jsonl.*found no such file')])
def test_files_that_say_nothing_are_refused(rows, error, message, tmp_path):
  if rows is not None:
    write(tmp_path / 'train.jsonl', *rows)
  with pytest.raises(error, match=message):
    sets.kinds('local', mirror=str(tmp_path))
  with pytest.raises(ValueError, match='set data.mirror'):
    sets.kinds('local')


def test_one_row_of_a_parquet_file_is_enough(tmp_path):
  pyarrow = pytest.importorskip('pyarrow')
  parquet = pytest.importorskip('pyarrow.parquet')
  table = pyarrow.Table.from_pylist([PAIR | {'label': None}, PAIR | {'label': 1}])
  parquet.write_table(table, tmp_path / 'all.parquet')
  assert sets.kinds('local', mirror=str(tmp_path / 'all.parquet')) == (
    'document', 'demonstration', 'preference', 'prompt')


def test_what_a_generated_set_says_it_has():
  for module in (toy, arithmetic):
    for kind in module.KINDS:
      assert set(module.SIZES[kind]) == set(SPLITS)
