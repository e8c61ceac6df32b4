"""RL variants at equal budgets: what is run, collected, printed and drawn."""

import argparse
import json

import pytest

from experiments.studies import _frontier as frontier
from experiments.studies import algorithms, regularizers
from experiments.studies._jobs import Spec
from perl.config import command_line
from perl.config.fields import ConfigError


def stage(workdir, name, seed, gold, kl):
  folder = workdir / f'seed{seed}' / name.replace('/', '-') / 'rl'
  folder.mkdir(parents=True)
  summary = {'gold_reward': gold, 'gold_reward_start': 0.5, 'kl': kl, 'kl_start': 0.0,
             'reward': 2 * gold, 'reward_start': 1.0, 'step_seconds': 0.1, 'commit': 'c'}
  (folder / 'summary.json').write_text(json.dumps(summary))
  lines = [{'step': step, 'dev/reward': gold * step, 'dev/gold_reward': gold, 'dev/kl': kl * step}
           for step in (0, 4)]
  (folder / 'metrics.jsonl').write_text(
    '\n'.join(json.dumps(line) for line in [*lines, {'step': 3, 'train/reward': 1.0}]))


@pytest.fixture(scope='module')
def results(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('frontier')
  for seed in (0, 1):
    stage(workdir, 'reinforce', seed, 0.7 + 0.01 * seed, 4.0)
    stage(workdir, 'ppo', seed, 0.9 + 0.02 * seed, 1.0)
    stage(workdir, 'reinforce/batch_mean', seed, 0.5 + 0.1 * seed, 0.0)
  options = argparse.Namespace(only='reinforce,ppo,reinforce/batch_mean,grpo', seeds='0,1')
  return algorithms.collect(Spec('configs/demo.py', [], str(workdir)), options)


def test_rows_are_collected_with_their_curves(results):
  assert [(row['name'], row['seed']) for row in results['rows'][:3]] == [
    ('reinforce', 0), ('reinforce', 1), ('ppo', 0)]
  assert results['commit'] == 'c' and 'commit' not in results['rows'][0]['rl']
  assert results['rows'][0]['curve'] == [
    {'step': 0, 'reward': 0.0, 'gold_reward': 0.7, 'kl': 0.0},
    {'step': 4, 'reward': 2.8, 'gold_reward': 0.7, 'kl': 16.0}]
  assert frontier.mean_path(results, 'ppo', 'reward') == [(0.0, 0.0), (2.0, pytest.approx(3.64))]


def test_the_table_is_of_means_with_intervals_and_what_surely_differs(results):
  head, body = frontier.lines(results)
  assert head == ['', 'gold reward', 'reward', 'KL, nats']
  assert [row[0] for row in body] == ['before RL', 'ppo', 'reinforce', 'reinforce/batch_mean']
  # Two seeds: t = 12.706, s / sqrt 2 = 0.01.
  assert body[1][1:3] == ['0.910 ± 0.127', '1.820 ± 0.254'] and body[0][1] == '0.500'
  above, below, last = algorithms.table(results)[2]
  assert above == 'Surely above reinforce in gold reward, by differences of the same seed: ppo.'
  assert below.endswith('none.') and 'seeds 0, 1' in last


def test_the_responses_to_the_optimum_are_those_of_the_slowest_seed(results, tmp_path):
  assert 'optimum' not in results and frontier.responses_to_optimum(results, 'ppo') == '–'
  point = lambda step, gold: {'step': step, 'gold_reward': gold}
  curves = {('ppo', 0): [point(0, 0.1), point(5, 0.9), point(10, 0.8)],
            ('ppo', 1): [point(0, 0.1), point(5, 0.89), point(10, 0.96)],
            ('grpo', 0): [point(0, 0.1), point(5, 0.99)],
            ('grpo', 1): [point(0, 0.1), point(5, 0.89)]}
  known = {'optimum': 1.0, 'batch_size': 200, 'base': {}, 'rows': [
    {'name': name, 'seed': seed, 'curve': curve,
     'rl': {'gold_reward': 0.9, 'gold_reward_start': 0.1}}
    for (name, seed), curve in curves.items()]}
  head, body = frontier.lines(known)
  assert head == ['', 'gold reward', 'responses to 90% of the optimum']
  assert [(row[0], row[-1]) for row in body] == [
    ('before RL', ''), ('ppo', '2,000'), ('grpo', '–')]
  assert 'one anchor for all' in algorithms.table(known)[2][-1]
  (tmp_path / 'seed0' / 'ppo').mkdir(parents=True)
  config = {'data': {'name': 'toy'}, 'rl': {'batch_size': 64}}
  (tmp_path / 'seed0' / 'ppo' / 'config.json').write_text(json.dumps(config))
  assert frontier.setting(tmp_path) == {'batch_size': 64, 'optimum': 1.0}


def test_verdicts_on_sun_et_al_are_by_the_interval():
  golds = {'lora/kl': (0.5, 0.6), 'lora/none': (0.7, 0.801), 'lora/jensen_shannon': (0.4, 0.501),
           'full/kl': (0.9, 0.4)}
  known = {'rows': [{'name': name, 'seed': seed, 'rl': {'gold_reward': gold}, 'curve': []}
                    for name, of_seeds in golds.items() for seed, gold in enumerate(of_seeds)]}
  none, jensen_shannon, full = regularizers.verdicts(known)
  # t of one degree of freedom is 12.706, times s / sqrt 2 = 0.0005.
  assert none == ('Sun et al.: lora/none less lora/kl, theirs +0.6 points of wins; ours +0.201 '
                  '[+0.194, +0.207] of gold reward: agrees.')
  assert 'theirs +1.1' in jensen_shannon and jensen_shannon.endswith(': contradicts theirs.')
  assert 'theirs -0.9' in full and full.endswith(': within our noise.')
  assert not regularizers.verdicts({'rows': known['rows'][:2]})


def test_charts_are_drawn(results, tmp_path):
  algorithms.plot(results, str(tmp_path / 'x.png'))
  assert (tmp_path / 'x.png').stat().st_size > 5000


def test_rows_are_configs_over_one_anchor(tmp_path):
  spec = Spec('configs/demo.py', [], str(tmp_path))
  for study in (algorithms, regularizers):
    assert len(study.rows()) >= 12
    (base,), rows = study.phases(spec, argparse.Namespace(only='all', seeds='0,1'))
    assert base.stages == ['tokenizer', 'pretrain', 'sft', 'reward']
    assert len(rows) == 2 * len(study.rows())
    assert rows[-1].stages == ('rl',) and rows[-1].config.seed == 1
    assert rows[-1].config.inputs.reward == str(tmp_path / 'base' / 'reward')
  options = argparse.Namespace(only='full/jensen_shannon', seeds='0')
  config, own = regularizers.phases(spec, options)[1][0].config, command_line.read(
    'configs/demo.py:peft=full')
  assert (config.peft.name, config.rl.regularizer) == ('full', 'jensen_shannon')
  assert config.rl.optim.learning_rate == own.rl.optim.learning_rate
  with pytest.raises(ConfigError, match="--only=all or some of .*'ppoo'; did you mean 'ppo'"):
    frontier.wanted(algorithms.rows(), argparse.Namespace(only='ppoo'))
