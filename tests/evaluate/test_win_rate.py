"""Win rates: both orders, ties, intervals; judges by score and by another program."""

import sys

import numpy as np
import pytest

from perl.evaluate import win_rate

PROMPTS, OURS, THEIRS = ['p', 'q', 'r'], ['long', 'a', 'bb'], ['x', 'long', 'yy']
BY_LENGTH = win_rate.by_score(lambda prompts, texts: [len(text) for text in texts])


def judging(text):
  """A judge that is a Python program; `answer(pair)` is for it to define."""
  code = f'import json, sys\n{text}\nfor line in sys.stdin: print(answer(json.loads(line)))'
  return win_rate.by_command([sys.executable, '-c', code])


def test_a_score_is_the_same_in_both_orders():
  first, second = win_rate.verdicts(BY_LENGTH, PROMPTS, OURS, THEIRS)
  np.testing.assert_array_equal(first, [1, -1, 0])
  np.testing.assert_array_equal(first, second)


def test_who_prefers_what_is_first_has_no_preference():
  judge = lambda prompts, first, second: np.ones(len(prompts))
  found = win_rate.report(*win_rate.verdicts(judge, PROMPTS, OURS, THEIRS), PROMPTS)
  assert found['tie'] == found['order_dependent'] == 1.0 and found['win_rate'] == 0.5


def test_shares_by_hand():
  first, second = np.asarray([1, 1, 1, -1, 0, 1]), np.asarray([1, 1, -1, -1, 0, 0])
  found = win_rate.report(first, second, list('abcdef'), bootstrap=0)
  assert found == {'win': 2 / 6, 'tie': 3 / 6, 'loss': 1 / 6, 'win_rate': 3.5 / 6,
                   'order_dependent': 2 / 6, 'pairs': 6}


def test_the_other_side_has_the_other_shares():
  ours, theirs = (win_rate.report(*win_rate.verdicts(BY_LENGTH, PROMPTS, *pair), PROMPTS)
                  for pair in ((OURS, THEIRS), (THEIRS, OURS)))
  assert ours['win_rate'] == pytest.approx(1 - theirs['win_rate'])
  assert (ours['win'], ours['loss']) == (theirs['loss'], theirs['win'])


def test_intervals_are_over_groups():
  first = np.tile([1, -1], 50)
  apart = win_rate.report(first, first, np.arange(100))
  assert apart['win_rate_low'] < 0.5 < apart['win_rate_high']
  paired = win_rate.report(first, first, np.arange(100) // 2)  # each group has one of both
  assert paired['win_rate_low'] == paired['win_rate_high'] == 0.5


def test_a_program_judges():
  judge = judging('answer = lambda pair: "first" if len(pair["first"]) > 2 else "tie"')
  np.testing.assert_array_equal(judge(PROMPTS, OURS, THEIRS), [1, 0, 0])
  first, second = win_rate.verdicts(judge, PROMPTS, OURS, THEIRS)
  np.testing.assert_array_equal((first, second), [[1, 0, 0], [0, -1, 0]])


@pytest.mark.parametrize('program, said', [
  ('answer = lambda pair: "maybe"', "expected 3 lines .*'maybe' among them"),
  ('answer = lambda pair: ""', 'found 0 words'),
  ('sys.exit("no model")', 'to end with 0, found 1: no model')])
def test_a_program_that_does_not_judge_is_an_error(program, said):
  with pytest.raises(ValueError, match=said):
    judging(program)(PROMPTS, OURS, THEIRS)


def test_a_program_that_is_not_there_is_an_error():
  with pytest.raises(ValueError, match='expected a program to run as judge'):
    win_rate.by_command(['/nowhere/judge'])(PROMPTS, OURS, THEIRS)


@pytest.mark.parametrize('ours, judge, said', [
  (OURS[:2], BY_LENGTH, 'found 2 and 3 to 3'),
  (OURS, lambda *_: np.asarray([1.0, np.nan, 0.0]), 'expected a finite number'),
  (OURS, lambda *_: np.ones(2), 'for each of the 3 pairs')])
def test_what_cannot_be_compared_is_an_error(ours, judge, said):
  with pytest.raises(ValueError, match=said):
    win_rate.verdicts(judge, PROMPTS, ours, THEIRS)
