"""The study of reward hacking: its configs, its forms, its table and figure, on made-up curves."""

import json
import math
import pathlib

import numpy as np
import pytest

from experiments.overoptimisation import __main__ as program
from experiments.overoptimisation import fits, plot, report, rows
from experiments.overoptimisation.rows import Row
from perl.config import identity, validate
from perl.config.fields import ConfigError
from perl.report import formats

OWN = Row('micro', 8, 500)
WANTED = rows.families(OWN, [1, 8], [500, 2000], ['nano', 'micro'])
SPEC = 'configs/overoptimisation.py'


def curve(kind, alpha, beta, *, noise=0.0):
  """What a stage's metrics.jsonl would hold, of a gold reward of Gao et al.'s form."""
  d = np.linspace(0, 3, 13)
  gold = fits.predicted(kind, fits.Fit(alpha, beta, 0, 1, 0), d) + 0.5 + noise * (d > 0)
  return [{'step': i, 'dev/kl': x * x, 'dev/reward': 0.7 + x, 'dev/gold_reward': float(y),
           'dev/entropy': 0.2, 'train/kl': 9.0} for i, (x, y) in enumerate(zip(d, gold))]


def finished(row, seed, *, beta=0.1, kinds=('best_of_n', 'rl')):
  return {**row._asdict(), 'seed': seed, 'reward': {'pair_accuracy': 0.7}, 'seconds': {},
          **{kind: rows.points(curve(kind, 0.3, beta, noise=0.001 * seed)) for kind in kinds}}


@pytest.mark.parametrize('kind, highest', [('best_of_n', 1.5), ('rl', math.exp(2))])
def test_forms_are_recovered(kind, highest):
  d = np.linspace(0, 4, 9)
  found = fits.fit(kind, d, fits.predicted(kind, fits.Fit(0.3, 0.1, 0, 1, 0), d))
  np.testing.assert_allclose(found[:3], (0.3, 0.1, 0.0), atol=1e-12)
  assert found.explained == pytest.approx(1) and found.points == 8  # d = 0 says nothing
  assert fits.peak(kind, found) == pytest.approx(highest)
  near = fits.predicted(kind, found, [0.99 * highest, highest, 1.01 * highest])
  assert near[1] == near.max()
  assert fits.peak(kind, found._replace(beta=-0.1)) == math.inf


def test_forms_by_hand():
  assert fits.predicted('best_of_n', fits.Fit(2, 0.5, 0, 1, 0), [0, 3]).tolist() == [0, 1.5]
  assert fits.predicted('rl', fits.Fit(2, 0.5, 0, 1, 0), [1])[0] == 2.0
  found = fits.fit('best_of_n', [1, 1, 2, 2], [1, 3, 2, 2])  # means 2 and 2: 2 = a - b, 1 = a - 2 b
  np.testing.assert_allclose(found[:4], (3, 1, math.sqrt(0.5), 0), atol=1e-12)
  assert fits.fit('rl', [0, 1, 2], [0, 1, 2]) is None


def test_gains_are_over_the_anchor():
  points = [{'step': 0, 'kl': -0.01, 'reward': 1.0, 'gold_reward': 0.5},
            {'step': 5, 'kl': 4.0, 'reward': 3.0, 'gold_reward': 0.25}]
  assert rows.gains(points) == [
    {'step': 0, 'd': 0.0, 'reward': 0.0, 'gold_reward': 0.0},
    {'step': 5, 'd': 2.0, 'reward': 2.0, 'gold_reward': -0.25}]


def test_seeds_are_joined_by_step_and_the_fall_is_theirs():
  made = lambda *gold: [{'step': i, 'd': float(i), 'reward': 0.0, 'gold_reward': g}
                        for i, g in enumerate(gold)]
  curves = [made(0.0, 0.4, 0.1), made(0.0, 0.2, 0.1, 9.0)]
  joined = rows.over_seeds(curves)
  assert [p['step'] for p in joined] == [0, 1, 2]
  assert joined[1]['gold_reward'].mean == pytest.approx(0.3)
  top, loss = rows.fall([curves[0], curves[1][:3]])
  assert top['step'] == 1 and loss.mean == pytest.approx(0.2)


def test_each_family_varies_one_thing():
  assert WANTED['rank'] == [Row('micro', 1, 500), OWN]
  assert WANTED['pairs'] == [OWN, Row('micro', 8, 2000)]
  assert WANTED['size'] == [Row('nano', 8, 500), OWN]
  with pytest.raises(ConfigError, match="config's own rank, 8, among .* found 1, 4"):
    rows.families(OWN, [1, 4], [], [])


def test_configs_share_base_anchor_and_samples(tmp_path):
  study = rows.Study(SPEC, [], str(tmp_path))
  own, other, small = (study.judged(row, 3) for row in
                       (study.row, study.row._replace(rank=2, pairs=9), Row('nano', 8, 500)))
  assert study.row == OWN and own.config.best_of_n.sampled == ''
  assert other.config.best_of_n.sampled == str(own.folder / 'best_of_n')
  assert (other.config.peft.rank, other.config.peft.alpha) == (2, own.config.peft.alpha / 4)
  assert other.config.inputs.anchor == own.config.inputs.anchor != small.config.inputs.anchor
  assert small.config.inputs.tokenizer == own.config.inputs.tokenizer
  rl = study.optimised(study.row._replace(rank=2, pairs=9), 3)
  assert rl.config.inputs.reward == str(other.folder / 'reward') and rl.config.peft.rank == 8
  assert study.base('micro').stages == ['tokenizer', 'pretrain', 'sft']
  assert study.base('nano').stages == ['pretrain', 'sft']
  for job in (own, other, small, rl, study.base('nano')):
    assert validate.validate(job.config) == []


def test_a_result_of_best_of_n_is_its_reward_models(tmp_path):
  """Another rank is another result, though the stage has no adapter of its own."""
  study = rows.Study(SPEC, [], str(tmp_path))
  one, two = (study.judged(study.row._replace(rank=r), 0).config for r in (1, 2))
  assert identity.identity(one, 'best_of_n') != identity.identity(two, 'best_of_n')


def test_the_order_is_bases_samples_judges_and_then_rl(tmp_path, monkeypatch):
  ran = []
  monkeypatch.setattr(program.shared, 'run', lambda jobs: ran.append(
    [(job.folder.relative_to(tmp_path).as_posix(), job.stages[-1]) for job in jobs]))
  program.run(rows.Study(SPEC, [], str(tmp_path)), WANTED, [0])
  assert ran == [
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
  found, = rows.collect(tmp_path, WANTED)
  assert found['seed'] == 4 and found['reward']['pair_accuracy'] == 0.7
  assert len(found['rl']) == 13 and 'best_of_n' not in found
  assert set(found['rl'][0]) == {'step', 'kl', 'reward', 'gold_reward', 'entropy'}


@pytest.mark.parametrize('seeds', [[0], [0, 1, 2]])
def test_table_figure_and_results_of_what_is_there(seeds, tmp_path):
  found = [finished(row, seed, beta=0.2 if row.pairs == 500 else -0.1)
           for seed in seeds for row in report.every(WANTED) if row.size == 'micro']
  found += [finished(Row('nano', 8, 500), seed, kinds=('best_of_n',)) for seed in seeds]
  text = formats.markdown(*report.table(found, WANTED))
  assert text.count('\n| micro, ') == 6 and text.count('\n| nano, rank 8, 500 pairs |') == 1
  falling = [line for line in text.splitlines() if line.startswith('* best of n: gold falls')]
  assert len(falling) == (len(seeds) > 1)
  assert not falling or ('for 3 of 4' in falling[0] and '2000 pairs' not in falling[0])
  shown = WANTED if len(seeds) > 1 else {'pairs': WANTED['pairs']}  # drawing takes a second
  plot.draw(found, shown, str(tmp_path / 'curves.svg'))
  drawn = (tmp_path / 'curves.svg').read_text()
  assert '<!-- 2000 pairs -->' in drawn and ('<!-- nano -->' in drawn) == (len(seeds) > 1)
  saved = json.loads(json.dumps(report.results(found, WANTED), allow_nan=False))
  own = next(f for f in saved['fits'] if (f['pairs'], f['kind'], f['rank']) == (500, 'rl', 8))
  assert own['beta'] == pytest.approx(0.2, abs=0.01) and saved['seeds'] == seeds
  assert {'commit', 'versions', 'hardware', 'rows'} <= saved.keys()


def test_wrong_numbers_are_explained(capsys):
  assert program.main([f'--config={SPEC}', '--workdir=x', '--table', '--ranks=1,one']) == 2
  assert 'expected numbers with commas' in capsys.readouterr().err


def test_the_docs_have_what_the_program_says_of_the_committed_file():
  root = pathlib.Path(__file__).resolve().parents[2]
  known = json.loads((root / 'experiments/results/overoptimisation.json').read_text())
  wanted = rows.families(OWN, [1, 8, 32], [125, 500, 2000], ['nano', 'micro', 'tiny'])
  names = {name: [row.name for row in family] for name, family in wanted.items()}
  assert names == known['families']
  said = formats.markdown(*report.table(known['rows'], wanted))
  assert said in (root / 'docs/results/reward_hacking.md').read_text()
