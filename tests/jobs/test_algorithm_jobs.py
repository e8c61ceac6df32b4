"""Algorithms as jobs: what only a whole run shows of what they need."""

import json

import numpy as np
import pytest
import toyrun as run
from test_resume import KILLED, from_run, same_result, send_sigterm

from perl.jobs import _run as runs
from perl.jobs import rl
from perl.train import checkpoint, loop


def trained(folder):
  """The rows of metrics.jsonl that are of training, without their prefix."""
  return [{k.removeprefix('train/'): v for k, v in row.items() if k.startswith('train/')}
          for row in run.rows(folder) if 'train/reward' in row]


def of_ppo(toyrun, **given):
  """PPO with all that it may have: an adaptive KL, documents, entropy, running statistics; the
  checkpoint that is nearest to the anchor is the result.
  """
  return from_run(
    toyrun, rl__algorithm='ppo', rl__ptx=0.5, rl__entropy=0.01, rl__kl_target=0.05,
    rl__kl_horizon=20.0, rl__reward_scale='running', rl__critic_from='reward',
    rl__minibatches=2, rl__epochs=2, rl__keep='best', rl__best_metric='kl', rl__best_mode='min',
    **given)


@pytest.fixture(scope='module')
def ppo(toyrun, tmp_path_factory):
  """The folder of a finished run."""
  folder = tmp_path_factory.mktemp('ppo')
  with run.small_world():
    rl.run(of_ppo(toyrun), str(folder / 'rl'))
  return folder


def test_ppo_with_all_that_it_may_have(ppo):
  rows = trained(ppo / 'rl')
  assert len(rows) == 6 and all(np.isfinite(list(row.values())).all() for row in rows)
  assert {'value_loss', 'ptx_loss', 'token_entropy', 'clip_fraction', 'kl'} <= set(rows[0])
  assert all(row['updates'] == 4 for row in rows)
  assert abs(rows[0]['value']) > 1e-4  # it begins as the reward model, in units of the return
  tree = checkpoint.Checkpoints(ppo / 'rl' / 'checkpoints').restore().tree
  assert tree['running']['count'] == 16 + 6 * 8 and tree['running']['beta'] != pytest.approx(0.05)


def test_the_result_is_the_best_checkpoint_by_what_was_asked_for(ppo):
  measured = [row['dev/kl'] for row in run.rows(ppo / 'rl') if 'dev/kl' in row and row['step']]
  summary = run.read(ppo / 'rl' / 'summary.json')
  assert len(measured) == 3 and summary['dev_kl'] == min(measured)


def test_texts_are_left_at_each_evaluation(ppo):
  lines = [json.loads(line) for line in (ppo / 'rl' / 'rollouts.jsonl').read_text().splitlines()]
  assert [line['step'] for line in lines] == [0] * 3 + [2] * 3 + [4] * 3 + [6] * 3
  assert len({line['prompt'] for line in lines}) == 3 and all(line['response'] for line in lines)
  assert all(np.isfinite(line['reward']) for line in lines)


def test_a_resumed_ppo_keeps_its_statistics_and_its_place_in_both_streams(ppo, toyrun, tmp_path):
  with run.small_world() as patch:
    run.in_step(patch, KILLED, send_sigterm)
    with pytest.raises(loop.Interrupted):
      rl.run(of_ppo(toyrun), str(tmp_path / 'rl'))
  with run.small_world():
    rl.run(of_ppo(toyrun), str(tmp_path / 'rl'))
  same_result('rl', tmp_path / 'rl', ppo)


def odd(examples, responses, dataset):
  """A rule of right and wrong, on which half of the prompts' responses agree."""
  return [float(len(r) % 2) if len(e.prompt) % 2 else 1.0 for e, r in zip(examples, responses)]


def test_dynamic_sampling_asks_further_prompts_until_enough_differ(toyrun, tmp_path):
  config = from_run(toyrun, rl__algorithm='dapo', rl__steps=2, rl__samples=2, rl__reward_weight=0.0,
                    rl__overlong=0.0, rl__rules=('test_algorithm_jobs:odd',))
  with run.small_world():
    rl.run(config, str(tmp_path / 'rl'))
  rows = trained(tmp_path / 'rl')
  assert all(1 <= row['rounds'] <= 3 for row in rows) and max(row['rounds'] for row in rows) > 1
  assert all('kl' not in row for row in rows)  # nothing is held to the anchor, nothing reads it
  assert any('dev/kl' in row for row in run.rows(tmp_path / 'rl'))  # but it is measured


def test_remax_takes_the_likeliest_responses_return(toyrun, tmp_path):
  config = from_run(toyrun, rl__algorithm='remax', rl__steps=1, rl__beta=0.0)
  with run.small_world():
    rl.run(config, str(tmp_path / 'rl'))
  row, = trained(tmp_path / 'rl')
  offset = run.rows(tmp_path / 'rl')[0]['dev/reward']
  # All tokens of a row have its advantage; rows differ in length, hence the margin.
  assert row['advantage'] == pytest.approx(row['reward'] - offset - row['greedy'], abs=0.3)


def test_a_stage_knows_what_its_algorithm_decided(toyrun):
  made = runs.decided(from_run(toyrun, rl__algorithm='gspo', rl__clip=0.5))
  assert (made.rl.samples, made.rl.level, made.rl.clip, made.rl.epochs) == (8, 'sequence', 0.5, 1)
  assert made.rl.optim.learning_rate == from_run(toyrun).rl.optim.learning_rate
  assert made.rl.optim.eps == 1e-8
  assert runs.decided(from_run(toyrun, rl__algorithm='ppo')).rl.optim.eps == 1e-5
  mine = from_run(toyrun, rl__algorithm='ppo', rl__optim__eps=1e-3)
  assert runs.decided(mine).rl.optim.eps == 1e-3


def test_a_critic_of_another_shape_than_the_reward_models_is_refused(toyrun, tmp_path):
  config = from_run(toyrun, rl__critic_from='reward', peft__rank=4)
  with run.small_world(), pytest.raises(ValueError, match='expected a reward model of the critic'):
    rl.run(config, str(tmp_path / 'rl'))
