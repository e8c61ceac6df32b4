"""The sweep, with jobs that only leave a summary: its folders, its inputs, what is shared."""

import json
import os
import sys
import types

import pytest

from experiments import sweep

COFFEE = 'configs/coffee.py:size=tiny'


@pytest.fixture
def jobs(monkeypatch):
  """Every run as (stage, folder, config), in order."""
  ran = []

  def job(stage):
    def run(config, workdir):
      ran.append((stage, os.path.relpath(os.path.dirname(workdir), jobs.root), config))
      with open(os.path.join(workdir, 'summary.json'), 'w') as file:
        json.dump({'auc': 0.7}, file)
    return run

  def add(name, **members):
    module = types.ModuleType(name)
    vars(module).update(members)
    monkeypatch.setitem(sys.modules, name, module)

  for stage in ('tokenizer', 'pretrain', 'sft', 'reward', 'rl', 'evaluate'):
    add(f'perl.jobs.{stage}', run=job(stage))
  add('experiments.report', write=lambda workdir: None)
  add('experiments.tables', collect=lambda workdir: [workdir],
      render=lambda rows, fmt: f'table of {rows} as {fmt}')
  jobs = types.SimpleNamespace(ran=ran, root='')
  return jobs


def run(jobs, workdir, *more, config=COFFEE):
  jobs.root = str(workdir)
  jobs.ran.clear()
  code = sweep.main([f'--config={config}', f'--workdir={workdir}', *more])
  return code, [(stage, folder) for stage, folder, _ in jobs.ran]


def test_layout_and_order(jobs, tmp_path, capsys):
  code, ran = run(jobs, tmp_path, '--peft=lora,full', '--seeds=0,1')
  assert code == 0
  row = lambda seed: [
    ('sft', f'seed{seed}'), ('reward', f'seed{seed}/lora'), ('reward', f'seed{seed}/full'),
    ('rl', f'seed{seed}/lora'), ('evaluate', f'seed{seed}/lora'),
    ('rl', f'seed{seed}/full'), ('evaluate', f'seed{seed}/full'),
  ]
  assert ran == [('tokenizer', 'base'), ('pretrain', 'base'), *row(0), *row(1)]
  assert f"table of ['{tmp_path}'] as markdown" in capsys.readouterr().out


def test_seeds_may_have_bases_of_their_own(jobs, tmp_path):
  code, ran = run(jobs, tmp_path, '--peft=lora', '--seeds=0,1', '--bases=own')
  assert code == 0
  row = lambda seed: [('pretrain', f'seed{seed}'), ('sft', f'seed{seed}'),
                      *((stage, f'seed{seed}/lora') for stage in ('reward', 'rl', 'evaluate'))]
  assert ran == [('tokenizer', 'base'), *row(0), *row(1)]
  configs = {(stage, folder): config for stage, folder, config in jobs.ran}
  assert configs['pretrain', 'seed1'].seed == 1
  for row in (('pretrain', 'seed1'), ('sft', 'seed1'), ('rl', 'seed1/lora')):
    assert configs[row].inputs.tokenizer == str(tmp_path / 'base' / 'tokenizer')
  assert configs['sft', 'seed1'].inputs.base == ''  # the sibling, which is the one of the rows
  assert configs['reward', 'seed1/lora'].inputs.base == str(tmp_path / 'seed1' / 'pretrain')


def test_what_rows_share_and_what_is_theirs(jobs, tmp_path):
  run(jobs, tmp_path, '--seeds=2', '--config.peft.rank=4', '--config.reward.steps=9')
  configs = {(stage, folder): config for stage, folder, config in jobs.ran}
  lora, full = configs['rl', 'seed2/lora'], configs['rl', 'seed2/full']
  assert (lora.peft.name, full.peft.name, lora.seed, full.seed) == ('lora', 'full', 2, 2)
  assert lora.rl.optim.learning_rate > full.rl.optim.learning_rate
  for config in (lora, full):
    assert config.inputs.anchor == str(tmp_path / 'seed2' / 'sft')
    assert config.inputs.base == str(tmp_path / 'base' / 'pretrain')
    assert (config.peft.rank, config.reward.steps) == (4, 9)
  assert lora.inputs.reward == ''  # the sibling, which is the one that full is given
  assert full.inputs.reward == str(tmp_path / 'seed2' / 'lora' / 'reward')
  assert configs['sft', 'seed2'].peft.name == 'full'


def test_the_reward_model_may_be_that_of_full_tuning(jobs, tmp_path):
  run(jobs, tmp_path, '--seeds=0', '--reward_from=full')
  configs = {(stage, folder): config for stage, folder, config in jobs.ran}
  assert configs['rl', 'seed0/lora'].inputs.reward == str(tmp_path / 'seed0' / 'full' / 'reward')


def test_finished_stages_are_skipped_and_seeds_can_be_added(jobs, tmp_path):
  run(jobs, tmp_path, '--peft=lora', '--seeds=0')
  code, ran = run(jobs, tmp_path, '--peft=lora', '--seeds=0')
  assert (code, ran) == (0, [])
  code, ran = run(jobs, tmp_path, '--peft=lora,full', '--seeds=0,1')
  assert code == 0
  assert ('sft', 'seed0') not in ran and ('reward', 'seed0/lora') not in ran
  assert ('reward', 'seed0/full') in ran and ('sft', 'seed1') in ran


def test_a_changed_method_rate_is_refused(jobs, tmp_path, capsys):
  run(jobs, tmp_path, '--peft=lora', '--seeds=0')
  code, ran = run(jobs, tmp_path, '--peft=lora', '--seeds=0', '--config.reward.steps=3')
  assert code == 2 and ran == []
  assert 'reward.steps: expected 3, found' in capsys.readouterr().err


def test_stages_that_the_config_lacks_are_left_out(jobs, tmp_path):
  _, ran = run(jobs, tmp_path, '--peft=lora', '--seeds=0', config='configs/ticketing.py')
  assert [stage for stage, _ in ran] == ['tokenizer', 'pretrain', 'sft', 'reward']


@pytest.mark.parametrize('flags, said', [
  (['--peft=lora,lora'], 'each once'),
  (['--peft=lora,fulll'], "did you mean 'full'"),
  (['--seeds=a'], '--seeds=0,1,2'),
  (['--seeds='], '--seeds=0,1,2'),
  (['--peft=full'], '--reward_from'),
  (['--config.seed=3'], 'use --peft and --seeds'),
  (['--config.inputs.reward=x'], 'the sweep sets it'),
  (['--config.peft.rank=0'], 'at least 1'),
])
def test_wrong_sweeps_are_explained_before_anything_runs(jobs, tmp_path, flags, said, capsys):
  code, ran = run(jobs, tmp_path, *flags)
  error = capsys.readouterr().err
  assert code == 2 and ran == [] and said in error and error.startswith('error: expected')
