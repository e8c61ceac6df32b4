"""The study of a frozen model's states, on states that tell the label or do not."""

import argparse
import types

import numpy as np
import pytest

from experiments.studies import frozen
from experiments.studies._jobs import Spec
from perl.data.examples import Labelled
from perl.jobs._run import Run


@pytest.fixture
def results(monkeypatch, tmp_path):
  """Of 60 judged rows in 30 groups; the last state knows the label, the others are noise."""
  rng = np.random.default_rng(0)
  labels = rng.permutation(np.repeat([0.0, 1.0], 30))
  examples = [Labelled(f'p{i}', 'yes' if i % 3 else 'no', label, group=str(i // 2))
              for i, label in enumerate(labels)]
  columns = {'last': labels[:, None] + 0.1 * rng.normal(size=(60, 2)),
             'mean': rng.normal(size=(60, 4)), 'likelihood': rng.normal(size=(60, 4))}
  columns['last'][7] = np.nan  # a row that was left out
  anchor = types.SimpleNamespace(digest='abc')
  data = types.SimpleNamespace(
    examples=lambda split, kind: examples if split == 'train' else [])
  monkeypatch.setattr(frozen, 'Artefacts', lambda run: types.SimpleNamespace(
    anchor=lambda: anchor, data=data))
  monkeypatch.setattr(frozen, 'states', lambda *_: columns)
  return frozen.collect(Spec('demo', [], str(tmp_path)), argparse.Namespace(folds=3, table=False))


def test_states_that_know_the_label_tell_it_on_every_fold(results):
  auc = {row['reads']: row['auc'] for row in results['rows']}
  assert list(auc) == list(frozen.PARTS)
  assert auc['last state'] == [1.0, 1.0, 1.0]
  assert np.mean(auc['mean states']) < 0.8
  assert (results['judged'], results['left_out']) == (60, 1)


def test_the_table_has_the_gain_over_the_bag_of_words(results):
  head, body, _ = frozen.table(results)
  assert len(head) == len(body[0]) == 4
  assert body[0][:2] == ['last state', '1.000'] and body[0][3].startswith('+')
  assert body[-1][0] == 'bag of words' and body[-1][3] == ''


def test_the_table_alone_runs_nothing(tmp_path):
  options = argparse.Namespace(folds=3, table=True)
  assert frozen.collect(Spec('demo', [], str(tmp_path)), options) == {'rows': []}


def test_states_are_kept_for_the_same_rows_read_in_the_same_way(tmp_path, monkeypatch):
  asked = []

  def features(self, adapter, examples, reads):
    asked.append(len(examples))
    return np.full((len(examples), 3 * 2 + 4), len(asked), np.float32)

  monkeypatch.setattr(frozen.Scorer, 'features', features)
  run = Run(Spec('demo', [], str(tmp_path)).config(), '', 'reward')
  artefacts = types.SimpleNamespace(run=run, text={'tokenizer': 'a'}, data=None)
  model = types.SimpleNamespace(config=types.SimpleNamespace(width=2))
  anchor, spec = types.SimpleNamespace(digest='abc', model=model), Spec('demo', [], str(tmp_path))
  one, other = ([Labelled('p', words, 1.0)] for words in ('tea', 'no'))
  for examples, expected in ((one, 1), (one, 1), (other, 2)):
    columns = frozen.states(artefacts, anchor, examples, spec)
    assert [columns[name].shape[1] for name in ('last', 'mean', 'likelihood')] == [2, 4, 4]
    assert columns['last'][0, 0] == expected
  with run.config.unlocked():
    run.config.data.max_response_tokens -= 1
  assert frozen.states(artefacts, anchor, other, spec)['last'][0, 0] == 3
