"""A row that stands in two splits is counted and said, or refused."""

import json
import logging

import pytest
import toyrun as run

from perl import paths
from perl.data.examples import SPLITS
from perl.jobs import _overlap, _preflight


def folder(place, **rows):
  """train, dev and test of demonstrations, by (prompt, response)."""
  place.mkdir(exist_ok=True)
  for split in ('train', 'dev', 'test'):
    lines = [json.dumps({'prompt': p, 'response': r, 'group': f'{split} {i}'})
             for i, (p, r) in enumerate(rows[split])]
    (place / f'{split}.jsonl').write_text('\n'.join(lines))
  return dict(data__name='local', data__mirror=str(place))


LEAKING = dict(
  train=[('a', 'b'), ('c', 'd'), ('e', 'f')],
  dev=[('g', 'h'), ('a', 'other')],
  test=[('c', 'd'), ('i', 'j'), ('c', 'd'), ('g', 'h')])


def check(kind='demonstration', **overrides):
  pairs = [(kind, split) for split in SPLITS]
  return list(_overlap.check(run.config(**overrides), pairs))


def test_the_rows_of_two_splits_are_counted_and_said(tmp_path, caplog):
  assert check(**folder(tmp_path / 'data', **LEAKING)) == []
  said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
  assert len(said) == 2
  assert 'no demonstration of test in train, found 2 of 4' in said[0]
  assert 'test.jsonl, line 1' in said[0] and 'data.overlap=refuse' in said[0]
  assert 'no demonstration of test in dev, found 1 of 4' in said[1]


def test_an_option_refuses_them_before_the_first_stage(tmp_path):
  data = folder(tmp_path / 'data', **LEAKING)
  with pytest.raises(ValueError, match='found 2 of 4 .*remove them, or set data.overlap=say'):
    _preflight.check(run.config(**data, data__overlap='refuse'), ('sft',), paths.of(tmp_path))


def test_prompts_are_rows_of_their_own(tmp_path, caplog):
  check('prompt', **folder(tmp_path / 'data', **LEAKING))
  assert 'no prompt of dev in train, found 1 of 2' in caplog.text


def test_apart_they_are_not_mentioned(tmp_path, caplog):
  rows = dict(train=[('a', 'b')], dev=[('a', 'c')], test=[('d', 'b')])
  assert check(**folder(tmp_path / 'data', **rows), data__overlap='refuse') == []
  assert not caplog.records


def test_our_own_datasets_are_apart():
  with run.small_world():
    for kind in ('demonstration', 'preference', 'prompt'):
      assert check(kind, data__overlap='refuse') == []


def test_large_files_are_compared_on_request(tmp_path, monkeypatch, caplog):
  monkeypatch.setattr(_overlap, 'LOOKED_AT_BYTES', 10)
  data = folder(tmp_path / 'data', **LEAKING)
  assert check(**data) == [] and not [r for r in caplog.records if r.levelno == logging.WARNING]
  assert len(check(**data, data__overlap='refuse')) == 2
