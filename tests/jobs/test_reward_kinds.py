"""Reward models of rankings, ratings and margins, and ensembles, from their data to rl."""

import json

import numpy as np
import pytest
import tiny
import toyrun as run
from test_resume import from_run

from perl import trees
from perl.data.sets import toy
from perl.jobs import _export as export
from perl.jobs import _programs as programs
from perl.jobs import reward, rl
from perl.jobs._artefacts import Artefacts
from perl.jobs._base import Base, over
from perl.jobs._run import Run
from perl.jobs._scoring import Scorer
from perl.peft import adapters, composition
from perl.train import checkpoint, memory


def column(folder, name):
  """A metric over the steps."""
  return [row[name] for row in run.rows(folder) if name in row]


def test_rankings_are_learnt_from_all_their_pairs(toyrun, tmp_path):
  config = from_run(toyrun, reward__kind='ranking', reward__steps=2, reward__centre=0.01,
                    evaluate__max_examples=12)
  with run.small_world():
    found = reward.run(config, str(tmp_path / 'reward'))
    forecast = memory.analysis(programs.stage(config, 'reward').programs['update'].compile())
  assert found['pair_accuracy_low'] <= found['pair_accuracy'] <= found['pair_accuracy_high']
  assert found['examples'] < found['pairs'] <= 6 * found['examples']  # cut, some are the same
  assert found['examples'] <= 12  # of 16
  assert 0 <= column(tmp_path / 'reward', 'train/pair_accuracy')[0] <= 1
  assert forecast['total_bytes'] == found['peak_memory_bytes']


def test_ratings_are_learnt_from_local_files(toyrun, tmp_path):
  (tmp_path / 'data').mkdir()
  for split in ('train', 'dev', 'test'):
    with run.small_world():
      rated = toy.load(split, 'rated')
    lines = [json.dumps({n: getattr(e, n) for n in ('prompt', 'response', 'rating', 'group')})
             for e in rated]
    (tmp_path / 'data' / f'{split}.jsonl').write_text('\n'.join(lines))
  config = from_run(toyrun, reward__kind='regression', reward__steps=2, data__name='local',
                    data__mirror=str(tmp_path / 'data'))
  with run.small_world():
    found = reward.run(config, str(tmp_path / 'reward'))
  for name in ('mean_squared_error', 'pearson', 'spearman'):
    assert found[f'{name}_low'] <= found[name] <= found[f'{name}_high']
  ratings = [e.rating for e in rated]
  assert found['rating_variance'] == pytest.approx(np.var(ratings), rel=1e-5)
  dev = column(tmp_path / 'reward', 'dev/spearman')
  assert len(dev) == 2 and found['dev_spearman'] == dev[-1]


def test_margins_are_subtracted(toyrun, tmp_path):
  """The first loss is of the same scores; a margin can but raise it."""
  config = from_run(toyrun, reward__margin=True, reward__steps=1)
  with run.small_world():
    margins = [pair.margin for pair in toy.load('train', 'preference')]
    reward.run(config, str(tmp_path / 'reward'))
  ours, theirs = (column(f / 'reward', 'train/loss')[0] for f in (tmp_path, toyrun))
  assert theirs + 0.05 < ours < theirs + max(margins)


# --- Ensembles


@pytest.fixture(scope='module')
def ensemble(toyrun, tmp_path_factory):
  """The folder of a reward stage of two members, whose result is the last checkpoint."""
  folder = tmp_path_factory.mktemp('ensemble') / 'reward'
  with run.small_world():
    reward.run(config_of(toyrun), str(folder))
  return folder


def config_of(toyrun, **more):
  return from_run(toyrun, reward__members=2, reward__keep='last', **more)


def test_the_first_of_an_ensemble_is_the_model_that_is_trained_alone(ensemble, toyrun):
  """Step by step: what they saved after the last update agrees."""
  ours, theirs = (
    checkpoint.Checkpoints(folder / 'checkpoints').restore(step=6).tree['adapters']
    for folder in (ensemble, toyrun / 'reward'))
  first, second = (trees.flat(tree) for tree in trees.unstack(ours))
  for name, leaf in trees.flat(theirs).items():
    np.testing.assert_allclose(first[name], leaf, rtol=1e-3, atol=1e-4, err_msg=name)
  assert np.abs(second['head/kernel'] - first['head/kernel']).max() > 0.01


def test_an_ensemble_says_what_its_members_say(ensemble):
  found = run.read(ensemble / 'summary.json')
  assert found['members'] == 2 and found['uncertainty'] > 0
  for name in ('pair_accuracy', 'member_0_pair_accuracy', 'member_1_auc'):
    assert 0 <= found[name] <= 1
  tree, meta = checkpoint.load_tree(ensemble / 'adapter')
  assert meta['members'] == 2 and tree['head']['kernel'].shape[0] == 2


def test_members_have_one_mean_over_the_dev_pairs(ensemble, toyrun):
  config = config_of(toyrun)
  with run.small_world():
    artefacts = Artefacts(Run(config, str(ensemble), 'reward'))
    anchor = artefacts.anchor()
    adapter, _ = artefacts.adapter(str(ensemble), anchor)
    pairs = artefacts.data.examples('dev', 'preference')
    scorer = Scorer(artefacts.run, artefacts.data, anchor)
    scores, mean = scorer.of_members(adapter, pairs), scorer.predict(adapter, pairs)
  assert scores.shape == (2, len(pairs), 2) and adapters.members(adapter) == 2
  first, second = np.nanmean(scores, (1, 2))
  assert first == pytest.approx(second, abs=1e-4)
  np.testing.assert_allclose(mean, scores.mean(0), rtol=1e-6)


def test_an_ensemble_rewards_a_policy_by_its_least_score(ensemble, toyrun, tmp_path):
  config = config_of(toyrun, rl__ensemble='minimum', rl__steps=1)
  config.inputs.reward = str(ensemble)
  with run.small_world():
    found = rl.run(config, str(tmp_path / 'rl'))
    planned = programs.stage(config, 'rl')
  row = next(row for row in run.rows(tmp_path / 'rl') if 'train/reward' in row)
  assert row['train/uncertainty'] > 0 and np.isfinite(found['reward'])
  assert adapters.members(planned.frozen['reward']) == 2
  assert adapters.members(planned.frozen['reference']) == 0


def test_one_reward_model_is_no_ensemble(toyrun, tmp_path):
  config = from_run(toyrun, rl__ensemble='minimum')
  with run.small_world(), pytest.raises(ValueError, match='expected an ensemble in .*reward'):
    rl.run(config, str(tmp_path / 'rl'))


def test_an_ensemble_is_not_exported(ensemble, toyrun, tmp_path):
  with run.small_world(), pytest.raises(ValueError, match='found an ensemble of 2 in .*reward'):
    export.export(
      Run(config_of(toyrun), str(ensemble), 'reward'), str(tmp_path / 'out'))


def test_a_stack_lies_over_what_is_frozen_below_each_of_its_members():
  model, base = tiny.make('llama', layers=1)
  below = tiny.trained(tiny.lora(base, head=False), seed=7)
  members = [tiny.trained(tiny.lora(base, seed), seed=seed) for seed in range(2)]
  frozen = Base(model, base, '', below)
  both = over(frozen, adapters.stack(members))
  tiny.equal(trees.unstack(both), [over(frozen, member) for member in members])
  tiny.equal(composition.upper(both), adapters.stack(members))
