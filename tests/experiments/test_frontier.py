"""RL variants at equal budgets: what is run, collected, printed and drawn."""

import json
import pathlib

import pytest

from experiments.frontier import __main__ as program
from experiments.frontier import plot, published, rows, variants
from perl.config import command_line
from perl.config.fields import ConfigError

ROOT = pathlib.Path(__file__).resolve().parents[2]
COMMITTED = [(file, study) for study in variants.STUDIES
             for file in sorted((ROOT / 'experiments' / 'results').glob(f'*_{study}.json'))]


def stage(workdir, name, seed, gold, kl):
  folder = rows.folder(workdir, name, seed) / 'rl'
  folder.mkdir(parents=True)
  summary = {'gold_reward': gold, 'gold_reward_start': 0.5, 'kl': kl, 'kl_start': 0.0,
             'reward': 2 * gold, 'reward_start': 1.0, 'step_seconds': 0.1, 'commit': 'c'}
  (folder / 'summary.json').write_text(json.dumps(summary))
  lines = [{'step': step, 'dev/reward': gold * step, 'dev/gold_reward': gold, 'dev/kl': kl * step}
           for step in (0, 4)]
  (folder / 'metrics.jsonl').write_text(
    '\n'.join(json.dumps(line) for line in [*lines, {'step': 3, 'train/reward': 1.0}]))


@pytest.fixture(scope='module')
def found(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('frontier')
  for seed in (0, 1):
    stage(workdir, 'reinforce', seed, 0.7 + 0.01 * seed, 4.0)
    stage(workdir, 'ppo', seed, 0.9 + 0.02 * seed, 1.0)
    stage(workdir, 'reinforce/batch_mean', seed, 0.5 + 0.1 * seed, 0.0)
  names = ['reinforce', 'ppo', 'reinforce/batch_mean', 'not_run']
  return rows.collect(workdir, names, (0, 1))


def test_rows_are_collected_with_their_curves(found):
  assert [(row['name'], row['seed']) for row in found['rows'][:3]] == [
    ('reinforce', 0), ('reinforce', 1), ('ppo', 0)]
  assert found['commit'] == 'c' and 'commit' not in found['rows'][0]['rl']
  assert found['rows'][0]['curve'] == [
    {'step': 0, 'reward': 0.0, 'gold_reward': 0.7, 'kl': 0.0},
    {'step': 4, 'reward': 2.8, 'gold_reward': 0.7, 'kl': 16.0}]
  assert plot.mean_path(found, 'ppo', 'reward') == [(0.0, 0.0), (2.0, pytest.approx(3.64))]


def test_the_table_is_of_means_with_intervals_and_what_surely_differs(found):
  head, body = rows.table(found)
  assert head == ['', 'gold reward', 'reward', 'KL, nats']
  assert [row[0] for row in body] == ['before RL', 'ppo', 'reinforce', 'reinforce/batch_mean']
  # Two seeds: t = 12.706, s / sqrt 2 = 0.01.
  assert body[1][1:3] == ['0.910 ± 0.127', '1.820 ± 0.254'] and body[0][1] == '0.500'
  above, below, last = rows.notes(found, 'algorithms')
  assert above == 'Surely above reinforce in gold reward, by differences of the same seed: ppo.'
  assert below.endswith('none.') and 'seeds 0, 1' in last


def test_the_responses_to_the_optimum_are_those_of_the_slowest_seed(found, tmp_path):
  assert 'optimum' not in found and rows.responses_to_optimum(found, 'ppo') == '–'
  point = lambda step, gold: {'step': step, 'gold_reward': gold}
  curves = {('ppo', 0): [point(0, 0.1), point(5, 0.9), point(10, 0.8)],
            ('ppo', 1): [point(0, 0.1), point(5, 0.89), point(10, 0.96)],
            ('grpo', 0): [point(0, 0.1), point(5, 0.99)],
            ('grpo', 1): [point(0, 0.1), point(5, 0.89)]}
  known = {'optimum': 1.0, 'batch_size': 200, 'base': {}, 'rows': [
    {'name': name, 'seed': seed, 'curve': curve,
     'rl': {'gold_reward': 0.9, 'gold_reward_start': 0.1}}
    for (name, seed), curve in curves.items()]}
  head, body = rows.table(known)
  assert head == ['', 'gold reward', 'responses to 90% of the optimum']
  assert [(row[0], row[-1]) for row in body] == [
    ('before RL', ''), ('ppo', '2,000'), ('grpo', '–')]
  assert 'one anchor for all' in rows.notes(known, 'algorithms')[-1]
  (tmp_path / 'seed0' / 'ppo').mkdir(parents=True)
  config = {'data': {'name': 'toy'}, 'rl': {'batch_size': 64}}
  (tmp_path / 'seed0' / 'ppo' / 'config.json').write_text(json.dumps(config))
  assert rows.setting(tmp_path) == {'batch_size': 64, 'optimum': 1.0}


def test_verdicts_on_sun_et_al_are_by_the_interval():
  golds = {'lora/kl': (0.5, 0.6), 'lora/none': (0.7, 0.801), 'lora/jensen_shannon': (0.4, 0.501),
           'full/kl': (0.9, 0.4)}
  known = {'rows': [{'name': name, 'seed': seed, 'rl': {'gold_reward': gold}, 'curve': []}
                    for name, of_seeds in golds.items() for seed, gold in enumerate(of_seeds)]}
  none, jensen_shannon, full = published.verdicts(known)
  # t of one degree of freedom is 12.706, times s / sqrt 2 = 0.0005.
  assert none == ('Sun et al.: lora/none less lora/kl, theirs +0.6 points of wins; ours +0.201 '
                  '[+0.194, +0.207] of gold reward: agrees.')
  assert 'theirs +1.1' in jensen_shannon and jensen_shannon.endswith(': contradicts theirs.')
  assert 'theirs -0.9' in full and full.endswith(': within our noise.')
  assert not published.verdicts({'rows': known['rows'][:2]})


def test_charts_are_drawn(found, tmp_path):
  plot.frontier(found, str(tmp_path / 'x.png'))
  assert (tmp_path / 'x.png').stat().st_size > 5000


def test_rows_are_configs_over_one_anchor(tmp_path):
  study = program.Study('configs/demo.py', [], str(tmp_path))
  for name in variants.STUDIES:
    wanted = variants.chosen(name, 'all')
    assert len(wanted) >= 12
    job = study.row(wanted[-1], 1)
    assert job.stages == ('rl',) and job.config.seed == 1
    assert job.config.inputs.reward == str(tmp_path / 'base' / 'reward')
  full, = variants.chosen('regularizers', 'full/jensen_shannon')
  config, own = study.row(full, 0).config, command_line.read('configs/demo.py:peft=full')
  assert (config.peft.name, config.rl.regularizer) == ('full', 'jensen_shannon')
  assert config.rl.optim.learning_rate == own.rl.optim.learning_rate
  assert study.base().stages == ['tokenizer', 'pretrain', 'sft', 'reward']
  with pytest.raises(ConfigError, match="--only among .*'ppoo'; did you mean 'ppo'"):
    variants.chosen('algorithms', 'ppoo')


@pytest.mark.parametrize('file, study', COMMITTED, ids=lambda x: getattr(x, 'stem', x))
def test_the_docs_have_what_the_program_says_of_a_committed_file(file, study):
  known = json.loads(file.read_text())
  assert program.said(known, study).strip() in ''.join(
    page.read_text() for page in (ROOT / 'docs/results').glob('*.md'))
  assert known['command'].startswith(f'python -m experiments.frontier {study}')
