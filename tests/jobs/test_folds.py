"""Folds in place of the fixed split: every group on one side, in every kind of example."""

import json

import numpy as np
import pytest
import toyrun as run

from experiments.studies import __main__ as studies
from perl.data.examples import SPLITS
from perl.data.sets import toy
from perl.evaluate import baseline
from perl.jobs import _folds as folds
from perl.jobs import _run as runs
from perl.jobs._data import Data


def load(split, kind):
  return toy.load(split, kind)[:60]


@pytest.fixture(scope='module')
def labelled():
  return folds.everything(load, 'labelled')


def test_a_fold_tests_the_groups_that_the_baseline_holds_out(labelled):
  labels, groups = [e.label for e in labelled], np.array([e.group for e in labelled])
  for fold, (_, outside) in enumerate(baseline.folds(labels, groups, 3)):
    found = folds.splits(labelled, 3, fold)
    assert {g for g, split in found.items() if split == 'test'} == set(groups[outside])
    assert set(found.values()) == set(SPLITS)


def test_every_labelled_row_is_tested_in_one_fold(labelled):
  tested = [
    e for fold in range(3)
    for e in folds.examples(load, 'test', 'labelled', folds.splits(labelled, 3, fold))
  ]
  assert sorted(map(str, tested)) == sorted(map(str, labelled))


@pytest.mark.parametrize('kind', ['document', 'demonstration', 'labelled', 'prompt'])
def test_no_group_is_on_two_sides(labelled, kind):
  assigned = folds.splits(labelled, 3, 1)
  parts = {split: folds.examples(load, split, kind, assigned) for split in SPLITS}
  assert sum(map(len, parts.values())) == sum(len(load(split, kind)) for split in SPLITS)
  held = {group for group, split in assigned.items() if split == 'test'}
  assert not held & {e.group for e in parts['train'] + parts['dev']}


def test_groups_without_a_label_stay_where_they_were():
  found = folds.examples(load, 'dev', 'document', {})
  assert found == load('dev', 'document')


def test_the_data_of_a_run_are_those_of_the_fold(tmp_path):
  made = run.config(data__folds=3, data__fold=2)
  with run.small_world():
    data = Data(runs.begin(made, str(tmp_path / 'reward'), 'reward'), None)
    parts = {split: data.examples(split, 'labelled') for split in SPLITS}
    fixed = [e for split in SPLITS for e in toy.load(split, 'labelled')]
  assert sum(map(len, parts.values())) == len(fixed)
  assert len(parts['test']) == pytest.approx(len(fixed) / 3, abs=8)


def test_documents_of_another_dataset_come_along(tmp_path):
  made = run.config(data__also=('toy',))
  with run.small_world():
    data = Data(runs.begin(made, str(tmp_path / 'pretrain'), 'pretrain'), None)
    assert data.examples('dev', 'document') == 2 * toy.load('dev', 'document')
    assert data.examples('dev', 'labelled') == toy.load('dev', 'labelled')


def test_an_unknown_dataset_is_named(tmp_path):
  made = run.config(data__also=('no_such',))
  data = Data(runs.begin(made, str(tmp_path / 'pretrain'), 'pretrain'), None)
  with pytest.raises(ValueError, match="found 'no_such'"):
    data.examples('dev', 'document')


def test_it_runs_every_fold_and_skips_what_is_finished(toyrun, tmp_path, capsys):
  config = tmp_path / 'tiny.py'
  saved = run.config(
    inputs__tokenizer=str(toyrun / 'tokenizer'), inputs__base=str(toyrun / 'pretrain'),
    inputs__anchor=str(toyrun / 'sft'), reward__kind='pointwise', reward__steps=2,
  )
  (tmp_path / 'saved.json').write_text(saved.to_json())
  config.write_text(
    'from perl.config import command_line\n'
    'def get_config(text=""):\n'
    f'  made = command_line.read({str(tmp_path / "saved.json")!r})\n'
    '  with made.unlocked():\n'
    '    made.peft.name = text.partition("=")[2]\n'
    '  return made\n')
  argv = ['crossvalidate', f'--config={config}', f'--workdir={tmp_path / "folds"}',
          '--peft=lora', '--folds=2', f'--json={tmp_path / "out.json"}']
  with run.small_world():
    assert studies.main(argv) == 0
    first = json.loads((tmp_path / 'out.json').read_text())
    assert studies.main(argv) == 0
  assert json.loads((tmp_path / 'out.json').read_text()) == first
  assert capsys.readouterr().out.count('skipped') == 2
  assert [row['fold'] for row in first['rows']] == [0, 1]
  assert all(0 <= row['reward']['baseline_auc'] <= 1 for row in first['rows'])
  assert len(first['bag_of_words']) == 2 and all(0 <= v <= 1 for v in first['bag_of_words'])
