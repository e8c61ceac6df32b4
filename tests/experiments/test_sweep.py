"""The sweep: its folders and inputs, with jobs that only leave a summary; its table by hand."""

import csv
import io
import json
import math
import os
import pathlib
import sys
import types

import pytest

from experiments import studies
from experiments.studies import __main__ as program
from experiments.studies import sweep as study
from experiments.studies._jobs import SHARED, Spec
from perl.jobs import _preflight

COFFEE = 'configs/coffee.py:size=tiny'
AUC = {'lora': (0.70, 0.72, 0.74), 'full': (0.71, 0.73, 0.75)}
T_2 = 4.302652729749464  # 97.5 % of Student's t with 2 degrees of freedom (any table)


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
  monkeypatch.setattr(_preflight, 'check', lambda *_: None)  # these jobs need nothing
  jobs = types.SimpleNamespace(ran=ran, root='')
  return jobs


def run(jobs, workdir, *more, config=COFFEE):
  jobs.root = str(workdir)
  jobs.ran.clear()
  code = program.main(['sweep', f'--config={config}', f'--workdir={workdir}', *more])
  return code, [(stage, folder) for stage, folder, _ in jobs.ran]


def test_layout_and_order(jobs, tmp_path, capsys):
  code, ran = run(jobs, tmp_path, '--peft=lora,full', '--seeds=0,1')
  assert code == 0
  rows = [f'seed{seed}/{peft}' for seed in (0, 1) for peft in ('lora', 'full')]
  assert ran == [
    ('tokenizer', 'base'), ('pretrain', 'base'), ('sft', 'seed0'), ('sft', 'seed1'),
    *(('reward', row) for row in rows),
    *((stage, row) for row in rows for stage in ('rl', 'evaluate'))]
  assert '| RM AUC, test | 0.700 | 0.700 | – | – |' in capsys.readouterr().out


def test_seeds_may_have_bases_of_their_own(jobs, tmp_path):
  code, ran = run(jobs, tmp_path, '--peft=lora', '--seeds=0,1', '--bases=own')
  assert code == 0
  assert ran[:5] == [('tokenizer', 'base'), *(
    (stage, f'seed{seed}') for seed in (0, 1) for stage in ('pretrain', 'sft'))]
  assert {folder for _, folder in ran[5:]} == {'seed0/lora', 'seed1/lora'}
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


def test_an_anchor_that_is_named_serves_all_seeds(jobs, tmp_path):
  given = tmp_path / 'another' / 'sft'
  given.mkdir(parents=True)
  (given / 'summary.json').write_text('{}')
  _, ran = run(jobs, tmp_path, '--peft=lora', '--seeds=0,1', f'--config.inputs.anchor={given}')
  assert [stage for stage, _ in ran[:4]] == ['tokenizer', 'pretrain', 'reward', 'reward']
  configs = [config for stage, _, config in jobs.ran if stage in ('reward', 'rl')]
  assert [config.inputs.anchor for config in configs] == 4 * [str(given)]
  assert {config.inputs.base for config in configs} == {str(tmp_path / 'base' / 'pretrain')}


@pytest.mark.parametrize('named, made', [
  ('base', ['tokenizer', 'sft', 'reward']),
  ('anchor', ['tokenizer', 'pretrain', 'reward']),
  ('reward', ['tokenizer', 'pretrain', 'sft']),
])
def test_what_rows_share_is_not_made_where_it_is_named(tmp_path, named, made):
  spec = Spec(COFFEE, [f'--config.inputs.{named}=elsewhere'], str(tmp_path))
  assert spec.shared(spec.config(), (*SHARED, 'reward'), 'base').stages == made


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


# --- The table


def save(path: pathlib.Path, value: dict) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(value))


def finished(workdir: pathlib.Path, seeds=(0, 1, 2), methods=('lora', 'full')) -> pathlib.Path:
  """Finished runs, laid out as the sweep does."""
  about = {'commit': 'abc', 'versions': {'jax': '0.10.2'}, 'hardware': {'cores': 2}}
  save(workdir / 'base' / 'pretrain' / 'summary.json', {'loss': 2.0, **about})
  for k in seeds:
    save(workdir / f'seed{k}' / 'sft' / 'summary.json', {'loss': 1.0, **about})
    for peft in methods:
      full = peft == 'full'
      row = workdir / f'seed{k}' / peft
      cost = {'parameters_trainable': 1_000_000 if full else 20_000, 'parameters_total': 1_000_000,
              'peak_memory_bytes': (200 if full else 100) * 2**20,
              'step_seconds': .6 if full else .4}
      save(row / 'reward' / 'summary.json', {
        'auc': AUC[peft][k], 'baseline_auc': .65, 'accuracy': .8, 'balanced_accuracy': .6,
        'probe_auc': .66, **cost, **about})
      save(row / 'rl' / 'summary.json', {'reward_start': 0., 'reward': 1. + k, 'kl': 2., **cost,
                                         **about})
      save(row / 'evaluate' / 'summary.json', {
        'exact_match_before': .3, 'exact_match': .2 - .01 * k, 'valid_api_call_before': .9,
        'valid_api_call': .9 + .01 * (k - 1), 'reward_before': .1, 'reward': 1.1 + .1 * k, **about})
  return workdir


def cells(text: str) -> dict[str, list[str]]:
  """{first cell: the others} of a Markdown table."""
  rows = [line.strip('| ').split(' | ') for line in text.splitlines() if line.startswith('| ')]
  return {row[0]: row[1:] for row in rows}


def collected(workdir):
  return study.collect(Spec(COFFEE, [], str(workdir)), None)


def rendered(workdir, fmt='markdown'):
  return studies.render('sweep', collected(workdir), fmt)


def test_collects_every_seed_and_method_full_first(tmp_path):
  rows = collected(finished(tmp_path))['rows']
  assert [(r['peft'], r['seed']) for r in rows] == [
    ('full', 0), ('full', 1), ('full', 2), ('lora', 0), ('lora', 1), ('lora', 2)]
  assert rows[3]['reward']['auc'] == 0.70


def test_the_table_by_hand(tmp_path):
  text = rendered(finished(tmp_path))
  lines = cells(text)
  half = T_2 * 0.02 / math.sqrt(3)
  assert lines['RM AUC, test'][:3] == [f'0.730 ± {half:.3f}', f'0.720 ± {half:.3f}', '–']
  assert lines['RL reward, test'][0] == f'0.100 → 1.200 ± {T_2 * .1 / math.sqrt(3):.3f}'
  assert lines['RM trainable parameters'][:2] == ['1,000,000', '20,000']
  assert lines['RM trainable, % of the model'][:2] == ['100.00', '2.00']
  assert lines['RM peak memory, MiB'] == [
    '200.0', '100.0', '50 % of full', '43 to 56 % of full']
  assert lines['RM step, ms'] == ['600', '400', '1.50 times full', '1.5 to 1.9 times full']
  assert lines['RL peak memory, MiB'][-1] == '74 to 80 % of full'
  assert lines['RL step, ms'][-1] == '1.05 to 1.3 times full'
  assert 'RM pair accuracy, test' not in lines and 'Gold reward, test' not in lines
  assert 'paper (other tasks and models)' in text


def test_claims_are_computed(tmp_path):
  text = rendered(finished(tmp_path))
  half = T_2 * 0.02 / math.sqrt(3)
  assert (f'lora within the interval of full, RM AUC on test: yes (lora 0.720, n=3; full '
          f'[{.73 - half:.3f}, {.73 + half:.3f}], n=3).') in text
  assert 'RM of lora beats a bag of words, on test: yes (AUC +0.070' in text
  assert 'RL with lora, exact match: falls (-0.110' in text
  assert 'RL with lora, the valid-API-call rate: unclear (+0.000' in text
  assert 'RL with full, reward on test: rises (+1.100' in text


def test_lora_below_full_is_said(tmp_path):
  results = collected(finished(tmp_path))
  for row in results['rows']:
    if row['peft'] == 'lora':
      row['reward']['auc'] = 0.5
  text = studies.render('sweep', results)
  assert 'RM AUC on test: no, below it' in text
  assert 'RM of lora beats a bag of words, on test: no' in text


def test_one_seed_is_printed_without_interval(tmp_path):
  text = rendered(finished(tmp_path, seeds=(0,)))
  assert cells(text)['RM AUC, test'][:2] == ['0.710', '0.700']
  assert 'unknown' in text and 'has no interval' in text


def test_unfinished_stages_and_missing_methods(tmp_path):
  finished(tmp_path, methods=('lora',))
  (tmp_path / 'seed2' / 'lora' / 'reward' / 'summary.json').unlink()
  for stage in ('rl', 'evaluate'):
    (tmp_path / 'seed2' / 'lora' / stage / 'summary.json').unlink()
  (tmp_path / 'seed1' / 'lora' / 'evaluate' / 'summary.json').unlink()
  text = rendered(tmp_path)
  assert 'against full' not in text
  assert cells(text)['RL reward, test'][0] == '0.100 → 1.100 (n=1)'


def test_ratios_are_of_seeds_that_both_have(tmp_path):
  finished(tmp_path)
  (tmp_path / 'seed0' / 'full' / 'reward' / 'summary.json').unlink()
  path = tmp_path / 'seed0' / 'lora' / 'reward' / 'summary.json'
  save(path, {**json.loads(path.read_text()), 'step_seconds': 100.})
  lines = cells(rendered(tmp_path))
  assert lines['RM step, ms'][2] == '1.50 times full'


def test_csv_and_latex(tmp_path):
  text = rendered(finished(tmp_path), 'csv')
  parsed = list(csv.reader(io.StringIO(
    '\n'.join(line for line in text.splitlines() if not line.startswith('# ')))))
  assert len({len(row) for row in parsed}) == 1 and parsed[0][1] == 'full (n=3)'
  assert ['RM trainable parameters', '1,000,000', '20,000', '–', '–'] in parsed
  tex = rendered(tmp_path, 'latex')
  assert r'\begin{tabular}{lrrrl}' in tex and r'50 \% of full' in tex and r'$\pm$' in tex
  body = tex[tex.index(r'\midrule'):tex.index(r'\bottomrule')].splitlines()[1:]
  assert all(line.count(' & ') == 4 and line.endswith(r'\\') for line in body)


def test_result_file_renders_as_the_runs_do(tmp_path, capsys):
  workdir, file = finished(tmp_path / 'runs'), tmp_path / 'results' / 'coffee.json'
  assert program.main(['sweep', f'--config={COFFEE}', f'--workdir={workdir}', '--table',
                       f'--json={file}']) == 0
  first = capsys.readouterr().out
  saved = json.loads(file.read_text())
  assert saved['seeds'] == [0, 1, 2] and saved['methods'] == ['full', 'lora']
  assert saved['commit'] == 'abc' and saved['hardware'] == {'cores': 2}
  assert saved['workdir'] == str(workdir) and '--table' not in saved['command']
  assert 'commit' not in saved['rows'][0]['reward']
  assert program.main(['sweep', f'--results={file}']) == 0
  assert capsys.readouterr().out == first


def test_results_hold_the_stages_that_rows_share(tmp_path):
  results = collected(finished(tmp_path))
  assert list(results['shared_stages']) == ['base/pretrain', 'seed0/sft', 'seed1/sft', 'seed2/sft']
  assert results['shared_stages']['base/pretrain'] == {'loss': 2.0}
