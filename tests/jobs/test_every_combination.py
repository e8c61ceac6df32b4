"""Every algorithm with what it may be combined with: two finite steps, or refused before the first.

All combinations are validated; of those that are valid a part runs, which has every choice for
every algorithm, and every pair of two choices for some. PERL_EVERY_COMBINATION=1 runs all of them.
"""

import itertools
import os

import numpy as np
import pytest
import toyrun as run
from test_resume import from_run

from perl import choices
from perl.cli import launch
from perl.config.fields import ConfigError
from perl.rl import algorithms

NAMES = choices.names('perl.rl.algorithms')
CHOICES = {
  'critic': ({}, {'rl__baseline': 'value'}),
  'place': ({'rl__regularizer': 'kl', 'rl__regularize': 'reward'},
            {'rl__regularizer': 'squared_error', 'rl__regularize': 'loss'}),
  'updates': ({}, {'rl__minibatches': 2, 'rl__epochs': 2, 'rl__stop_kl': 0.5}),
  'samples': ({'rl__samples': 1, 'rl__rounds': 1}, {'rl__samples': 2, 'rl__rounds': 2}),
  'judge': ({'rl__reward_centre': False},
            {'rl__reward_weight': 0.0, 'rl__rules': ('length', 'test_every_combination:some')}),
}
COMBINATIONS = list(itertools.product((0, 1), repeat=len(CHOICES)))


def some(examples, responses, dataset):
  """A rule that cannot judge every response."""
  return [None if i % 4 == 3 else float(len(text) % 3) for i, text in enumerate(responses)]


def config(toyrun, name, combination):
  """Two steps of it."""
  fields = {k: v for which, options in zip(combination, CHOICES.values())
            for k, v in options[which].items()}
  judged = 'scores' in (getattr(algorithms.find(name), 'JUDGES_BY', ''),)
  if judged:
    fields.pop('rl__reward_centre', None)  # it would be refused: scores are compared as they are
  own = algorithms.find(name).OWN
  if name == 'ppo' or not combination[2]:
    fields = {'rl__epochs': 1, 'rl__minibatches': 1} | fields
  if 'baseline' in own and not combination[0]:
    fields['rl__baseline'] = 'batch_mean'
  return from_run(toyrun, rl__algorithm=name, rl__steps=2, evaluate__max_examples=4,
                  evaluate__batch_size=4, **fields)


def refused(name, combination):
  """Whether it means nothing."""
  critic, place, updates, samples, _ = combination
  module = algorithms.find(name)
  grouped = module.OWN.get('samples', 1) > 1
  return (bool(critic) and 'baseline' not in module.OWN
          or bool(updates) and getattr(module, 'ON_POLICY', False)
          or not samples and grouped
          or not place and module.JUDGES_BY == 'scores')


@pytest.mark.parametrize('name', NAMES)
def test_what_means_nothing_is_refused_and_nothing_else(name, toyrun):
  for combination in COMBINATIONS:
    made = config(toyrun, name, combination)
    if refused(name, combination):
      with pytest.raises(ConfigError, match=r'expected rl\.'):
        launch.check(made)
    else:
      launch.check(made)


def covering():
  """(algorithm, combination): every choice of each algorithm, and every pair of some."""
  valid = {name: [c for c in COMBINATIONS if not refused(name, c)] for name in NAMES}
  if os.environ.get('PERL_EVERY_COMBINATION'):
    return [(name, c) for name in NAMES for c in valid[name]]
  singles, pairs = (lambda c, n=n: set(itertools.combinations(enumerate(c), n)) for n in (1, 2))
  chosen, paired = [], set()
  for name in NAMES:
    missing = set().union(*map(singles, valid[name]))
    while missing:
      best = max(valid[name], key=lambda c: (len(singles(c) & missing), len(pairs(c) - paired)))
      chosen.append((name, best))
      missing -= singles(best)
      paired |= pairs(best)
  return chosen


@pytest.mark.parametrize('name, combination', covering())
def test_two_steps_are_finite(name, combination, toyrun, tmp_path):
  made = launch.check(config(toyrun, name, combination))
  with run.small_world():
    launch.run_stages(made, ('rl',), tmp_path)
  rows = [row for row in run.rows(tmp_path / 'rl') if 'train/reward' in row]
  assert len(rows) == 2
  for row in rows:
    assert all(np.isfinite(value) for value in row.values()), row
  summary = run.read(tmp_path / 'rl' / 'summary.json')
  assert summary['reward'] is not None and (made.rl.reward_weight or rows[0]['train/left_out'] > 0)
