"""GSM8K's checker over a small mirror: counts, shares, and changes that are none."""

import json

import documents
import pytest

from experiments.studies import __main__ as program
from experiments.studies import verifier
from experiments.studies.verifier import CORRUPTED, REWRITTEN, Solved

ROWS = [{'question': f'How many are {n}?', 'answer': f'Tom has {n}-1=<<{n}-1={n - 1}>>{n - 1}.\n'
                                                     f'#### {n:,}'}
        for n in (7, 11, 48, 100, 1234, 70000, -12, 0)]
COUNTS = {'one more': 8, 'sign flipped': 7, 'digits transposed': 5, 'digit dropped': 6,
          'thousands separator misplaced': 6, 'decimal point': 7, 'empty': 8}


@pytest.fixture
def mirror(tmp_path):
  folder = tmp_path / 'home/grade_school_math/data'
  folder.mkdir(parents=True)
  for name, rows in (('train', ROWS[:5]), ('test', ROWS[5:])):
    (folder / f'{name}.jsonl').write_text('\n'.join(map(json.dumps, rows)))
  return tmp_path / 'home'


def test_right_solutions_are_accepted_and_corrupted_ones_are_not(mirror, tmp_path, capsys):
  file = tmp_path / 'found.json'
  assert program.main(['verifier', f'--mirror={mirror}', f'--json={file}']) == 0
  report = json.loads(file.read_text())
  assert list(report['files'].values()) == [5, 3] and report['commit'] and report['hardware']
  assert report['published']['as published'] == {
    'count': 8, 'accepted': 8, 'share': 1.0, 'surprises': []}
  assert all(one['accepted'] == one['count'] for one in report['rewritten'].values())
  assert all(one['accepted'] == 0 for one in report['corrupted'].values())
  assert {kind: report['corrupted'][kind]['count'] for kind in COUNTS} == COUNTS
  assert report['rewritten']['typographic minus']['count'] == 1
  whole = report['corrupted'].pop('all')
  assert whole['count'] == sum(one['count'] for one in report['corrupted'].values())
  assert '| published | as published | 8 | 8 | 100.00 % |' in capsys.readouterr().out


def test_a_checker_that_reads_the_wrong_number_is_noticed(monkeypatch):
  monkeypatch.setattr(verifier, 'accepted', lambda texts, answers: [
    str(answer) in text.replace(',', '') for text, answer in zip(texts, answers)])
  report = verifier.check(ROWS)
  assert report['corrupted']['right first, then wrong']['share'] == 1.0
  assert len(report['corrupted']['right first, then wrong']['surprises']) == 3
  assert report['corrupted']['empty'] == {'count': 8, 'accepted': 0, 'share': 0.0, 'surprises': []}


@pytest.mark.parametrize('kind, answer, line', [
  ('digits transposed', 7000, '#### 0700'), ('digits transposed', 11, None),
  ('digits transposed', -112, '#### -121'), ('digit changed', 7, '#### 2'),
  ('thousands separator misplaced', 70000, '#### 7000,0'), ('decimal point', 48, '#### 4.8'),
  ('digit dropped', 7, None), ('sign flipped', -12, '#### 12'), ('ten times', 0, None)])
def test_a_corruption_by_hand(kind, answer, line):
  text = CORRUPTED[kind](Solved('Thus.', answer))
  assert text == (None if line is None else f'Thus.\n{line}')


def test_no_change_is_a_copy_and_none_is_two_things():
  for row in ROWS:
    solved = verifier.solved(row)
    rewritten = {change(solved) for change in REWRITTEN.values()} - {None}
    corrupted = {change(solved) for change in CORRUPTED.values()} - {None}
    assert not rewritten & corrupted and row['answer'] not in corrupted


def test_a_mirror_without_gsm8k_is_refused(tmp_path, capsys):
  assert program.main(['verifier', f'--mirror={tmp_path}']) == 2
  assert 'expected grade_school_math/data/train.jsonl' in capsys.readouterr().err


def test_the_published_counts_are_those_of_the_committed_file():
  file = documents.ROOT / 'experiments/results/gsm8k_verifier.json'
  report, text = json.loads(file.read_text()), ' '.join(documents.published().split())
  for name, row in (('published', 'as published'), ('rewritten', 'all'), ('corrupted', 'all')):
    total = report[name][row]
    assert f'{total["accepted"]:,} of {total["count"]:,} ' in text
    if name != 'published':
      assert f'{len(report[name]) - 1} kinds)' in text
