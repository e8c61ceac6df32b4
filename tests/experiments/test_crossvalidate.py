"""Cross-validation: what is shared, what is made anew, and what is said of it."""

import json

import pytest

from experiments import crossvalidate
from perl.report import formats


def rows():
  figures = [(.7, .68, .6), (.8, .75, .7)]
  return [
    {'fold': fold, 'peft': peft, 'reward': {'auc': auc, 'probe_auc': probe, 'baseline_auc': bag}}
    for peft in ('lora', 'full') for fold, (auc, probe, bag) in enumerate(figures)
  ]


def test_the_table_pairs_by_fold_and_shows_shared_rows_once():
  text = crossvalidate.render(rows(), words=[.61, .71])
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
  assert '0.750' in crossvalidate.render(rows(), fmt)


def test_results_carry_the_means():
  found = crossvalidate.results(rows(), 'runs/x')
  assert found['mean_over_folds']['lora']['auc'] == pytest.approx(.75)
  assert [row['fold'] for row in found['rows']] == [0, 1, 0, 1]
  json.dumps(found)


def test_named_inputs_are_shared_and_others_are_the_folds_own(tmp_path):
  spec = crossvalidate.Folds(
    'configs/coffee.py:size=tiny', ['--config.inputs.base=/b'], str(tmp_path), folds=3)
  row = spec.row('lora', 2)
  assert (row.data.folds, row.data.fold, row.inputs.base) == (3, 2, '/b')
  assert row.inputs.anchor == str(tmp_path / 'fold2' / 'sft')
  assert spec.row('full', 0).reward.optim.learning_rate != row.reward.optim.learning_rate
