"""Cross-validation: what is shared, what is made anew, and what is said of it."""

import argparse

import pytest

from experiments import studies
from experiments.studies import _finished, crossvalidate
from experiments.studies._jobs import Spec
from perl.report import formats

COFFEE = 'configs/coffee.py:size=tiny'


def results(words=()):
  figures = [(.7, .68, .6), (.8, .75, .7)]
  rows = [
    {'fold': fold, 'peft': peft, 'reward': {'auc': auc, 'probe_auc': probe, 'baseline_auc': bag}}
    for peft in ('lora', 'full') for fold, (auc, probe, bag) in enumerate(figures)
  ]
  return {'rows': rows, 'bag_of_words': words}


def test_the_table_pairs_by_fold_and_shows_shared_rows_once():
  text = studies.render('crossvalidate', results([.61, .71]))
  lines = [line for line in text.splitlines() if line.startswith('| ')]
  shown = {line.split('|')[1].strip(): line for line in lines[2:]}
  assert list(shown) == ['reward model, lora', 'reward model, full',
                         'frozen model and a logistic regression',
                         'bag of words, the same rows', 'bag of words, dev rows too']
  assert '0.750' in shown['reward model, lora'] and '+0.100' in shown['reward model, lora']
  assert '0.650' in shown['bag of words, the same rows']
  assert '0.660' in shown['bag of words, dev rows too']


@pytest.mark.parametrize('fmt', sorted(formats.FORMATS))
def test_every_format_renders(fmt):
  assert '0.750' in studies.render('crossvalidate', results(), fmt)


def test_results_carry_the_means(tmp_path, monkeypatch):
  monkeypatch.setattr(crossvalidate, 'bag_of_words', lambda config, folds: [.5] * folds)
  rows = results()['rows']
  monkeypatch.setattr(_finished, 'folders', lambda workdir, name, unit: [
    (row['fold'], row['reward']) for row in rows if row['peft'] == name])
  monkeypatch.setattr(_finished, 'summaries', lambda folder, stages: {'reward': folder})
  options = argparse.Namespace(peft='lora,full', folds=2)
  collected = crossvalidate.collect(Spec(COFFEE, [], str(tmp_path)), options)
  assert collected['mean_over_folds']['lora']['auc'] == pytest.approx(.75)
  assert [row['fold'] for row in collected['rows']] == [0, 1, 0, 1]
  assert collected['bag_of_words'] == [.5, .5] and collected['folds'] == [0, 1]


def test_named_inputs_are_shared_and_others_are_the_folds_own(tmp_path):
  spec = Spec(COFFEE, ['--config.inputs.base=/b'], str(tmp_path))
  row = crossvalidate.row(spec, 'lora', 3, 2)
  assert (row.data.folds, row.data.fold, row.inputs.base) == (3, 2, '/b')
  assert row.inputs.anchor == str(tmp_path / 'fold2' / 'sft')
  full = crossvalidate.row(spec, 'full', 3, 0)
  assert full.reward.optim.learning_rate != row.reward.optim.learning_rate
  bases, rows = crossvalidate.phases(spec, argparse.Namespace(peft='lora,full', folds=2))
  place = lambda job: (job.folder.relative_to(tmp_path).as_posix(), *job.stages)
  assert list(map(place, bases)) == [('fold0', 'tokenizer', 'sft'), ('fold1', 'tokenizer', 'sft')]
  assert list(map(place, rows)) == [
    (f'fold{k}/{peft}', 'reward') for k in (0, 1) for peft in ('lora', 'full')]
