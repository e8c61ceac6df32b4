"""The study of reward hacking: its configs, its forms, its table and figure, on made-up curves."""

import argparse
import json
import math

import numpy as np
import pytest

from experiments import studies
from experiments.studies import _gold_curves as curves
from experiments.studies import _gold_forms as fits
from experiments.studies import overoptimisation as study
from experiments.studies._jobs import Spec
from experiments.studies.overoptimisation import Judge
from perl.config import identity, validate
from perl.config.fields import ConfigError

OWN = Judge('micro', 8, 500)
OPTIONS = argparse.Namespace(ranks='1,8', pairs='500,2000', sizes='nano,micro', seeds='0')
WANTED = study.families(OWN, OPTIONS)
SPEC = 'configs/overoptimisation.py'


def spec(workdir):
  return Spec(SPEC, [], str(workdir))


def curve(kind, alpha, beta, *, noise=0.0):
  """What a stage's metrics.jsonl would hold, of a gold reward of Gao et al.'s form."""
  d = np.linspace(0, 3, 13)
  gold = fits.predicted(kind, fits.Fit(alpha, beta, 0, 1, 0), d) + 0.5 + noise * (d > 0)
  return [{'step': i, 'dev/kl': x * x, 'dev/reward': 0.7 + x, 'dev/gold_reward': float(y),
           'dev/entropy': 0.2, 'train/kl': 9.0} for i, (x, y) in enumerate(zip(d, gold))]


def finished(row, seed, *, beta=0.1, kinds=('best_of_n', 'rl')):
  return {**row._asdict(), 'seed': seed, 'reward': {'pair_accuracy': 0.7}, 'seconds': {},
          **{kind: study.points(curve(kind, 0.3, beta, noise=0.001 * seed)) for kind in kinds}}


@pytest.mark.parametrize('kind, highest', [('best_of_n', 1.5), ('rl', math.exp(2))])
def test_forms_are_recovered(kind, highest):
  d = np.linspace(0, 4, 9)
  fit = fits.fit(kind, d, fits.predicted(kind, fits.Fit(0.3, 0.1, 0, 1, 0), d))
  np.testing.assert_allclose(fit[:3], (0.3, 0.1, 0.0), atol=1e-12)
  assert fit.explained == pytest.approx(1) and fit.points == 8  # d = 0 says nothing
  assert fits.peak(kind, fit) == pytest.approx(highest)
  near = fits.predicted(kind, fit, [0.99 * highest, highest, 1.01 * highest])
  assert near[1] == near.max()
  assert fits.peak(kind, fit._replace(beta=-0.1)) == math.inf


def test_forms_by_hand():
  assert fits.predicted('best_of_n', fits.Fit(2, 0.5, 0, 1, 0), [0, 3]).tolist() == [0, 1.5]
  assert fits.predicted('rl', fits.Fit(2, 0.5, 0, 1, 0), [1])[0] == 2.0
  fit = fits.fit('best_of_n', [1, 1, 2, 2], [1, 3, 2, 2])  # means 2 and 2: 2 = a - b, 1 = a - 2 b
  np.testing.assert_allclose(fit[:4], (3, 1, math.sqrt(0.5), 0), atol=1e-12)
  assert fits.fit('rl', [0, 1, 2], [0, 1, 2]) is None


def test_gains_are_over_the_anchor():
  points = [{'step': 0, 'kl': -0.01, 'reward': 1.0, 'gold_reward': 0.5},
            {'step': 5, 'kl': 4.0, 'reward': 3.0, 'gold_reward': 0.25}]
  assert curves.gains(points) == [
    {'step': 0, 'd': 0.0, 'reward': 0.0, 'gold_reward': 0.0},
    {'step': 5, 'd': 2.0, 'reward': 2.0, 'gold_reward': -0.25}]


def test_seeds_are_joined_by_step_and_the_fall_is_theirs():
  curve_of = lambda *gold: [{'step': i, 'd': float(i), 'reward': 0.0, 'gold_reward': g}
                        for i, g in enumerate(gold)]
  seeds = [curve_of(0.0, 0.4, 0.1), curve_of(0.0, 0.2, 0.1, 9.0)]
  joined = curves.over_seeds(seeds)
  assert [p['step'] for p in joined] == [0, 1, 2]
  assert joined[1]['gold_reward'].mean == pytest.approx(0.3)
  top, loss = curves.fall([seeds[0], seeds[1][:3]])
  assert top['step'] == 1 and loss.mean == pytest.approx(0.2)


def test_each_family_varies_one_thing():
  assert WANTED['rank'] == [Judge('micro', 1, 500), OWN]
  assert WANTED['pairs'] == [OWN, Judge('micro', 8, 2000)]
  assert WANTED['size'] == [Judge('nano', 8, 500), OWN]
  with pytest.raises(ConfigError, match="config's own rank, 8, among .* found 1, 4"):
    study.families(OWN, argparse.Namespace(ranks='1,4', pairs='', sizes=''))


def test_a_reward_model_is_known_by_its_folder():
  assert all(Judge.named(judge.name) == judge for judge in study.every(WANTED))
  assert str(OWN) == 'micro, rank 8, 500 pairs' and 'all pairs' in str(Judge('x_y', 1, 0))
  assert Judge.named('x_y_r1_n0') == Judge('x_y', 1, 0)


def test_configs_share_base_anchor_and_samples(tmp_path):
  own, other, small = (study.judged(spec(tmp_path), judge, 3) for judge in
                       (OWN, OWN._replace(rank=2, pairs=9), Judge('nano', 8, 500)))
  assert study.own(spec(tmp_path)) == OWN and own.config.best_of_n.sampled == ''
  assert other.config.best_of_n.sampled == str(own.folder / 'best_of_n')
  assert (other.config.peft.rank, other.config.peft.alpha) == (2, own.config.peft.alpha / 4)
  assert other.config.inputs.anchor == own.config.inputs.anchor != small.config.inputs.anchor
  assert small.config.inputs.tokenizer == own.config.inputs.tokenizer
  rl = study.optimised(spec(tmp_path), OWN._replace(rank=2, pairs=9), 3)
  assert rl.config.inputs.reward == str(other.folder / 'reward') and rl.config.peft.rank == 8
  assert study.base(spec(tmp_path), 'micro').stages == ['tokenizer', 'pretrain', 'sft']
  assert study.base(spec(tmp_path), 'nano').stages == ['pretrain', 'sft']
  for job in (own, other, small, rl, study.base(spec(tmp_path), 'nano')):
    assert validate.validate(job.config) == []


def test_a_result_of_best_of_n_is_its_reward_models(tmp_path):
  """Another rank is another result, though the stage has no adapter of its own."""
  one, two = (study.judged(spec(tmp_path), OWN._replace(rank=r), 0).config for r in (1, 2))
  assert identity.identity(one, 'best_of_n') != identity.identity(two, 'best_of_n')


def test_the_order_is_bases_samples_judges_and_then_rl(tmp_path):
  phases = [[(job.folder.relative_to(tmp_path).as_posix(), job.stages[-1]) for job in phase]
            for phase in study.phases(spec(tmp_path), OPTIONS)]
  assert phases == [
    [('base/micro', 'sft')], [('base/nano', 'sft')], [('seed0/micro_r8_n500', 'best_of_n')],
    [(f'seed0/{name}', 'best_of_n') for name in
     ('micro_r1_n500', 'micro_r8_n2000', 'nano_r8_n500')],
    [(f'seed0/{name}', 'rl') for name in ('micro_r8_n500', 'micro_r1_n500', 'micro_r8_n2000')]]


def test_runs_are_read_from_their_folders(tmp_path):
  for name, summary in (('reward', {'pair_accuracy': 0.7, 'wall_seconds': 2}), ('rl', {'kl': 1})):
    folder = tmp_path / 'seed4' / OWN.name / name
    folder.mkdir(parents=True)
    (folder / 'summary.json').write_text(json.dumps(summary))
  (folder / 'metrics.jsonl').write_text(''.join(map('{}\n'.format, map(
    json.dumps, [*curve('rl', 1, 0.5), {'step': 1, 'train/reward': 3}]))))
  results = study.collect(spec(tmp_path), OPTIONS)
  row, = results['rows']
  assert row['seed'] == 4 and row['reward']['pair_accuracy'] == 0.7
  assert len(row['rl']) == 13 and 'best_of_n' not in row
  assert set(row['rl'][0]) == {'step', 'kl', 'reward', 'gold_reward', 'entropy'}
  assert row['seconds'] == {'reward': 2, 'rl': None} and results['seeds'] == [4]
  fit, = results['fits']
  assert (fit['kind'], fit['pairs']) == ('rl', 500)
  assert fit['alpha'] == pytest.approx(1) and fit['peak'] == pytest.approx(math.e)
  assert {'commit', 'versions', 'hardware'} <= results.keys()
  json.dumps(results, allow_nan=False)


@pytest.mark.parametrize('seeds', [[0], [0, 1, 2]])
def test_table_and_figure_of_what_is_there(seeds, tmp_path):
  rows = [finished(judge, seed, beta=0.2 if judge.pairs == 500 else -0.1)
          for seed in seeds for judge in study.every(WANTED) if judge.size == 'micro']
  rows += [finished(Judge('nano', 8, 500), seed, kinds=('best_of_n',)) for seed in seeds]
  names = {name: [judge.name for judge in family] for name, family in WANTED.items()}
  text = studies.render('overoptimisation', {'rows': rows, 'families': names})
  assert text.count('\n| micro, ') == 6 and text.count('\n| nano, rank 8, 500 pairs |') == 1
  falling = [line for line in text.splitlines() if line.startswith('* best of n: gold falls')]
  assert len(falling) == (len(seeds) > 1)
  assert not falling or ('for 3 of 4' in falling[0] and '2000 pairs' not in falling[0])
  shown = names if len(seeds) > 1 else {'pairs': names['pairs']}  # drawing takes a second
  study.plot({'rows': rows, 'families': shown}, str(tmp_path / 'curves.svg'))
  drawn = (tmp_path / 'curves.svg').read_text()
  assert '<!-- 2000 pairs -->' in drawn and ('<!-- nano -->' in drawn) == (len(seeds) > 1)


def test_wrong_numbers_are_explained():
  with pytest.raises(ConfigError, match='expected numbers with commas'):
    study.families(OWN, argparse.Namespace(ranks='1,one', pairs='', sizes=''))
