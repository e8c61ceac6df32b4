"""Preference optimisation as a job: what it learns, hands on, precomputes and refuses."""

import types

import jax
import numpy as np
import pytest
import tiny
import toyrun as run
from test_resume import from_run

from perl import trees
from perl.cli import convert
from perl.config import validate
from perl.config.fields import ConfigError
from perl.data.examples import Preference
from perl.jobs import evaluate, preference
from perl.jobs._artefacts import Artefacts
from perl.jobs._data import Data
from perl.jobs._run import Run
from perl.peft import adapters
from perl.preference import methods


def column(folder, name):
  """A metric over the steps."""
  return [row[name] for row in run.rows(folder) if name in row]


def ran(toyrun, folder, **overrides):
  config = from_run(toyrun, **{f'preference__{k}': v for k, v in overrides.items()})
  with run.small_world():
    return preference.run(config, str(folder / 'preference'))


@pytest.fixture(scope='module')
def finished(toyrun, tmp_path_factory):
  """(workdir, summary) of DPO with its reference in the step."""
  folder = tmp_path_factory.mktemp('dpo')
  return folder, ran(toyrun, folder)


def test_dpo_starts_at_the_anchor_and_learns(finished):
  folder, found = finished
  first, *_, last = column(folder / 'preference', 'dev/loss')
  assert first == pytest.approx(np.log(2.0), rel=1e-4) and last < first
  assert column(folder / 'preference', 'train/loss')[0] == pytest.approx(np.log(2.0), rel=1e-4)
  assert column(folder / 'preference', 'dev/chosen_log_ratio')[0] == pytest.approx(0.0, abs=1e-4)
  assert 0 <= found['pair_accuracy_low'] <= found['pair_accuracy'] <= 1
  assert abs(found['kl_start']) < 1e-4 and 0 <= found['gold_reward'] <= 1
  assert found['gold_optimum'] == 1.0 and found['dev_loss'] == last


def test_a_precomputed_reference_gives_the_same_losses(finished, toyrun, tmp_path):
  ran(toyrun, tmp_path, reference='precomputed', microbatches=2, share_prompt=True)
  for name in ('train/loss', 'dev/loss', 'train/margin', 'dev/accuracy'):
    ours, theirs = (column(f / 'preference', name) for f in (tmp_path, finished[0]))
    assert len(ours) >= 4
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)


def test_thumbs_are_learnt_without_pairs(toyrun, tmp_path):
  found = ran(toyrun, tmp_path, method='kto', steps=2)
  assert column(tmp_path / 'preference', 'dev/loss')[0] == pytest.approx(0.5, rel=1e-4)
  assert 0 <= found['auc'] <= 1 and found['drift'] >= 0 and 'pair_accuracy' not in found


def test_its_result_is_a_policy_for_evaluation_and_export(finished, toyrun, tmp_path):
  folder = finished[0] / 'preference'
  with run.small_world():
    found = evaluate.run(from_run(toyrun, inputs__policy=str(folder)), str(tmp_path / 'evaluate'))
    assert abs(found['kl_before']) < 1e-4 < abs(found['kl'])
    convert.export(str(folder), str(tmp_path / 'out'), 'alone', False)
    # From there RL can go on, over the same anchor.
    setting = Run(from_run(toyrun), str(tmp_path / 'rl'), 'rl')
    anchor = Artefacts(setting).anchor()
    again = Artefacts(setting).new_adapter(anchor, setting.key, start=str(tmp_path / 'out'))
    saved, _ = Artefacts(setting).adapter(str(folder), anchor)
  assert adapters.count(again) == finished[1]['parameters_trainable']
  tiny.close(*(trees.flat(jax.tree.map(np.asarray, tree)) for tree in (again, saved)))


def test_both_sides_of_pairs_are_thumbs_where_there_are_none():
  def load(split, kind, **_):
    if kind != 'preference' or split != 'train':
      raise ValueError(f'no {kind} in {split}')
    return [Preference('a', 'good', 'bad', group='g')]

  data = Data(Run(run.config(), '', 'preference'), None)
  data.__dict__['dataset'] = types.SimpleNamespace(load=load, KINDS=('preference',))
  up, down = preference.examples(data, methods.find('kto'), 'train')
  assert (up.response, up.label, down.response, down.label) == ('good', 1.0, 'bad', 0.0)
  assert up.group == down.group == 'g'
  for method in ('dpo', 'kto'):  # what is wrong with the pairs is told, not taken for a lack
    with pytest.raises(ValueError, match='no preference in dev'):
      preference.examples(data, methods.find(method), 'dev')


def test_a_policy_that_goes_on_from_an_adapter_has_it_as_its_reference():
  setting = Run(run.config(preference__adapter='some'), '', 'preference')
  policy = {'a': np.ones(2)}
  np.testing.assert_array_equal(Artefacts(setting).reference(None, policy)['a'], policy['a'])


@pytest.mark.parametrize('fields, said', [
  ({'method': 'dop'}, "did you mean 'dpo'"),
  ({'method': 'kto', 'microbatches': 2}, 'drift is of the whole batch'),
  ({'method': 'kto', 'share_prompt': True}, 'a thumb has one response'),
  ({'method': 'kto', 'batch_size': 1}, 'there must be another prompt'),
  ({'reference': 'never'}, 'preference.reference to be one of'),
  ({'dpo__smoothing': 0.5}, 'preference.dpo.smoothing to be at most'),
  ({'dpo__beta': 0.0}, 'preference.dpo.beta to be at least'),
])
def test_wrong_fields_are_explained(fields, said):
  config = run.config(**{f'preference__{name}': value for name, value in fields.items()})
  with pytest.raises(ConfigError, match=said):
    validate.validate(config)
