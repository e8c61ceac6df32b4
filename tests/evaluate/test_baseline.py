"""The bag of words: learns what words tell, and shares its folds with everyone."""

import os
import pathlib

import numpy as np
import pytest

from perl.data.examples import Labelled
from perl.evaluate import baseline, classification

DATA = pathlib.Path(os.environ.get(
  'PERL_TEST_DATA', pathlib.Path(__file__).resolve().parents[3] / 'shared' / 'data'
)) / 'taskmaster'


def _examples(count: int) -> list[Labelled]:
  """The label follows from a word of the response and one of the prompt's end, apart."""
  rng = np.random.default_rng(0)
  rows = []
  for i in range(count):
    polite, late = rng.integers(0, 2, 2)
    label = float(polite if i % 2 else late)
    response = f'your order {i} ' + ('thank you' if polite else 'go away')
    prompt = 'x' * 500 + (' please hurry' if late else ' no rush')
    rows.append(Labelled(prompt, response, label, group=f'g{i // 2}'))
  return rows


def test_it_learns_from_response_and_context():
  train, test = _examples(200), _examples(60)
  auc = classification.auc(baseline.fit_predict(train, test), [e.label for e in test])
  assert auc > 0.85


def test_it_sees_only_the_end_of_the_prompt():
  rows = [Labelled(('good ' if i % 2 else 'bad ') + 'x' * 400, 'ok', float(i % 2), group=f'{i}')
          for i in range(20)]
  scores = baseline.fit_predict(rows, rows)
  assert np.allclose(scores, scores[0])


def test_response_and_prompt_words_are_apart():
  drinks = ('tea', 'coffee')
  rows = [Labelled(drinks[1 - i % 2], drinks[i % 2], float(i % 2), group=f'{i}')
          for i in range(20)]
  assert classification.auc(baseline.fit_predict(rows, rows), [e.label for e in rows]) == 1.0


def test_folds_hold_each_row_once_and_no_group_twice():
  rows = _examples(100)
  labels, groups = [e.label for e in rows], np.array([e.group for e in rows])
  found = baseline.folds(labels, groups, 5)
  outside = np.concatenate([out for _, out in found])
  assert sorted(outside) == list(range(100)) and len(found) == 5
  for inside, out in found:
    assert not set(groups[inside]) & set(groups[out])
    assert len(inside) + len(out) == 100


def test_folds_are_the_same_every_time():
  rows = _examples(40)
  labels, groups = [e.label for e in rows], [e.group for e in rows]
  once, again = baseline.folds(labels, groups), baseline.folds(labels, groups)
  assert all(np.array_equal(a[1], b[1]) for a, b in zip(once, again))


def test_too_few_groups_or_classes_are_refused():
  with pytest.raises(ValueError, match='between 2 and 1 folds'):
    baseline.folds([1, 0, 1], ['', '', ''], 5)
  with pytest.raises(ValueError, match='both labels'):
    baseline.fit([Labelled('a', 'b', 1.0)] * 3)


@pytest.mark.skipif(not DATA.is_dir(), reason='no Taskmaster files beside the repository')
def test_the_published_figure_is_reached(tmp_path):
  """0.713 on the files' JSON strings (data.md), 0.723 on our rendering of them."""
  from perl.data.sets import taskmaster_coffee

  load = lambda split: taskmaster_coffee.load(
    split, 'labelled', mirror=str(DATA), data_dir=str(tmp_path))
  rows = [e for split in ('train', 'dev', 'test') for e in load(split)]
  assert 0.69 < np.mean(baseline.cross_validate(rows)) < 0.74
