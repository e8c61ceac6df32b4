"""The benchmark program: the work that it hands out, what it counts, agreement, ratios, drawings.

PERL_TUNIX names the Python of an environment with google-tunix 0.1.7: its contestants are run too.
"""

import argparse
import contextlib
import gzip
import importlib
import io
import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from experiments.bench import __main__ as benchmarks
from experiments.bench import (
  contest,
  cost,
  loading,
  plot,
  processes,
  profiles,
  rivals,
  weights,
  work,
)
from perl.models import config

TUNIX = os.environ.get('PERL_TUNIX', '')
ROOT = pathlib.Path(__file__).parents[2]
ONE = work.Size(layers=3, width=2, heads=2, kv_heads=1, head_dim=5, mlp_width=3, vocab=7, pairs=4,
                length=6, prompts=2, samples=3, prompt=4, new=3)


@pytest.fixture
def one(monkeypatch):
  """A size of small primes, for counting by hand."""
  monkeypatch.setitem(work.SIZES, 'one', ONE)


@pytest.fixture
def inside(monkeypatch):
  """Contestants run in this process, which has imported everything already."""

  def run(command, **_):
    monkeypatch.setattr(sys, 'argv', command[2:])
    with contextlib.redirect_stdout(io.StringIO()) as out:
      importlib.import_module(command[2]).main()
    return json.loads(out.getvalue().splitlines()[-1])

  monkeypatch.setattr(processes, 'run', run)
  monkeypatch.setattr(processes, 'gemm_gflops', lambda dtype: 100.0)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Weights of the size 'check'."""
  place = tmp_path_factory.mktemp('weights')
  weights.write(place, 'check', 'float32')
  return place


def play(monkeypatch, *arguments):
  """The program with these arguments; returns the results that it wrote."""
  monkeypatch.setattr(sys, 'argv', ['benchmarks', *arguments])
  benchmarks.main()
  return json.loads(next(pathlib.Path(a[7:]) for a in arguments if a[:7] == '--json=').read_text())


# --- Counting


def matrices(s):
  """Rows times columns of every matrix of a layer, one by one."""
  d, q, kv, m = s.width, s.heads * s.head_dim, s.kv_heads * s.head_dim, s.mlp_width
  return [d * q, d * kv, d * kv, q * d, d * m, d * m, m * d]


def passed(s, rows, tokens, keys, read, weight=2, attention=4, unembed=2):
  """Operations, a layer, a token and a key at a time."""
  total = rows * read * unembed * s.width * s.vocab
  for _ in range(s.layers):
    total += rows * tokens * weight * sum(matrices(s))
    total += rows * tokens * keys * attention * s.heads * s.head_dim  # scores, weighted values
  return total


def test_operations_of_a_training_step_are_those_counted_by_hand(one):
  learnt = dict(weight=4, attention=12, unembed=4)  # forward, and backward to the input alone
  assert cost.gflop('rm', 'one') * 1e9 == pytest.approx(passed(ONE, 8, 6, 6, 0, **learnt))
  assert cost.gflop('sft', 'one') * 1e9 == pytest.approx(passed(ONE, 8, 6, 6, 5, **learnt))


def test_operations_of_sampling_are_those_counted_by_hand(one):
  # Prefill of 4 tokens gives the first of 3; two more steps see 5 and 6 keys.
  sampled = passed(ONE, 6, 4, 4, 1) + passed(ONE, 6, 1, 5, 1) + passed(ONE, 6, 1, 6, 1)
  assert cost.gflop('decode', 'one') * 1e9 == pytest.approx(sampled)
  rest = passed(ONE, 6, 7, 7, 3) + passed(ONE, 6, 7, 7, 0) + passed(
    ONE, 6, 7, 7, 3, weight=4, attention=12, unembed=4)
  assert cost.gflop('rl', 'one') * 1e9 == pytest.approx(sampled + rest)


def test_gflop_of_the_tiny_reward_step_is_known():
  per_token = 4 * 4 * (4 * 128 * 128 + 3 * 128 * 384) + 3 * 4 * 4 * 128 * 256
  assert cost.gflop('rm', 'tiny') == pytest.approx(32 * 256 * per_token / 1e9)


def test_bytes_of_decoding_are_weights_for_each_token_and_the_cache_so_far(one):
  elements = 3 * (3 * sum(matrices(ONE)) + 7 * 2)  # three tokens, each reads all matrices
  elements += sum(6 * 3 * 2 * 5 * keys for keys in (5, 6))  # rows, layers, keys and values
  assert cost.decode_bytes('one', 'bfloat16') == pytest.approx(2 * elements)


def test_the_peak_of_a_device_is_found_by_its_name():
  assert cost.stated('NVIDIA H100 80GB HBM3') == (989_000.0, 3.35e12)
  assert cost.stated('NVIDIA H200')[1] == 4.8e12 and cost.stated('cpu') is None


# --- The work


@pytest.mark.parametrize('size', sorted(set(work.SIZES) - {'1b'}))
def test_batches_have_the_shapes_that_the_size_says(size):
  s, (chosen, rejected) = work.SIZES[size], work.pairs(size)
  assert chosen.shape == rejected.shape == (s.pairs, s.length)
  assert (chosen != rejected).any(1).all()
  prompts = work.prompts(size)
  assert prompts.shape == (s.rows, s.prompt) and len(np.unique(prompts, axis=0)) == s.rows
  assert work.rl_prompts(size).shape == (s.prompts, s.prompt)
  assert min(chosen.min(), prompts.min()) > work.EOS and chosen.max() < s.vocab
  assert (work.rows(size)[s.pairs:] == rejected).all()


def test_sizes_are_those_of_the_library():
  for size, name in (('tiny', 'tiny'), ('medium', 'medium'), ('1b', 'llama-3.2-1b')):
    s, known = work.SIZES[size], config.sized(name, vocab_size=work.SIZES[size].vocab)
    fields = 'layers', 'width', 'heads', 'kv_heads', 'head_dim', 'mlp_width'
    assert [getattr(s, f) for f in fields] == [getattr(known, f) for f in fields]
    assert s.vocab == known.vocab_size and known.tied


def test_words_are_tokens_again():
  assert work.ids(work.text([3, 17, 0])) == [3, 17, 0]


def test_steps_are_timed_after_the_first_and_the_warmup():
  calls = []

  def step():
    calls.append(1)
    return float(len(calls))

  row = work.measure(step, steps=4, warmup=2)
  assert len(calls) == 7 and row['steps'] == 4 and row['first_loss'] == 1.0
  assert row['min_seconds'] <= row['median_seconds'] <= row['max_seconds']
  assert 'first_loss' not in work.measure(lambda: None, steps=1, warmup=0)


def test_times_between_the_starts_of_steps_leave_out_the_first_and_the_warm_up():
  args = argparse.Namespace(warmup=1, steps=2)
  row = work.between([0.0, 1.0, 3.0, 6.0, 10.0], args)
  assert (row['first_seconds'], row['min_seconds'], row['max_seconds']) == (1.0, 3.0, 4.0)
  assert row['median_seconds'] == 3.5 and row['steps'] == 2
  with pytest.raises(RuntimeError, match='expected 4 steps, found 3'):
    work.between([0.0, 1.0, 3.0, 6.0], args)


def test_a_row_names_the_versions_of_its_packages(capsys):
  work.report({'name': 'x'}, 'numpy', 'no-such-package')
  assert json.loads(capsys.readouterr().out) == {'name': 'x', 'versions': {'numpy': np.__version__}}


# --- Processes


def test_the_last_json_line_of_a_contestant_counts():
  script = 'print("noise"); print(\'{"a": 1}\'); print(\'{"a": 2}\')'
  assert processes.run([sys.executable, '-c', script]) == {'a': 2}


def test_everybody_has_the_same_malloc_and_an_empty_cache(monkeypatch, tmp_path):
  monkeypatch.delenv('MALLOC_TOP_PAD_', raising=False)
  environment = processes.environment(str(tmp_path))
  assert int(environment['MALLOC_TOP_PAD_']) > 0 and environment['JAX_PLATFORMS'] == 'cpu'
  assert environment['JAX_COMPILATION_CACHE_DIR'].startswith(str(tmp_path))


def test_a_contestant_that_fails_or_does_not_end_is_quoted():
  with pytest.raises(RuntimeError, match='exit code 1 and:(?s:.*)no such thing(?s:.*)remedy'):
    processes.run([sys.executable, '-c', 'raise SystemExit("no such thing")'])
  with pytest.raises(RuntimeError, match='still? ?running|running after(?s:.*)remedy'):
    processes.run([sys.executable, '-c', 'import time; time.sleep(60)'], seconds=0.2)


def test_contestants_are_those_that_the_machine_has(monkeypatch):
  install = lambda have: monkeypatch.setattr(
    rivals.importlib.util, 'find_spec', lambda name: name in have or None)
  install({'peft', 'trl'})
  assert rivals.chosen('rm', (), '', '') == ['perl', 'peft', 'trl']
  assert rivals.chosen('rl', (), '', 'python')[-1] == 'tunix'
  install({'peft'})
  assert rivals.chosen('rl', (), 'gpu', '') == ['perl', 'peft', 'perl_full', 'peft_compiled']
  assert rivals.chosen('rm', ('peft_merged', 'peft', 'perl'), '', '') == ['perl', 'peft']


def test_a_command_names_python_module_and_variant():
  assert rivals.command('trl_grpo', '', ['--suite=rl']) == [
    sys.executable, '-m', 'experiments.bench.peer_trl', '--suite=rl', '--variant=grpo']
  assert rivals.command('tunix', 'other/python', [])[0] == 'other/python'


def test_every_aim_is_of_a_contestant_of_the_suite():
  for aims in (rivals.AIMS, rivals.MEMORY_AIMS):
    for (suite, size), wanted in aims.items():
      assert size in work.SIZES and set(wanted) <= set(rivals.CPU[suite])


# --- Cases: rounds, ratios, agreement, budgets


def scripted(monkeypatch, rows):
  """Contestants whose rows are given: {module: rows or errors in turn}."""
  turns = {name: iter(results) for name, results in rows.items()}
  started = []

  def run(command, **options):
    name = command[2].rsplit('.')[-1]
    started.append(name)
    row = next(turns[name])
    if isinstance(row, str):
      raise RuntimeError(row)
    return {'name': name, 'first_seconds': 9.0, 'peak_memory_bytes': 2**20, **row}

  monkeypatch.setattr(processes, 'run', run)
  monkeypatch.setattr(processes, 'gemm_gflops', lambda dtype: 100.0)
  return started


def seconds(*values, loss=1.0):
  return [{'median_seconds': v, 'first_loss': loss} for v in values]


def played(names, rounds=1, **options):
  case = contest.Case('rm', 'tiny', names, **options)
  for number in range(1, rounds + 1):
    case.play(number, '/weights')
  return case.result()


def test_speed_is_the_median_of_the_ratios_within_rounds(monkeypatch):
  scripted(monkeypatch, {'ours': seconds(1., 2., 4.), 'peer_peft': seconds(2., 2., 2.),
                         'peer_tunix': seconds(3., 8., 8.)})
  result = played(['perl', 'peft', 'tunix'], 3, tunix='python-of-tunix')
  assert result['speed_against'] == {'peft': 1., 'tunix': 3.}
  assert result['ratios']['peft'] == [2., 1., .5] and result['memory_against']['peft'] == 1.
  assert result['share_of_gemm_rate']['perl'] == pytest.approx(cost.gflop('rm', 'tiny') / 2 / 100)
  assert result['runs']['perl'][0]['tokens_per_second'] == 32 * 256 and result['agrees']
  assert '| rm | tiny | tunix | 8 |' in contest.table([result])
  assert '| 3.00 (2.00 to 4.00) | 2.0 |' in contest.table([result])


def test_shares_of_a_gpu_are_of_its_stated_peak_and_bandwidth(monkeypatch):
  row = {'median_seconds': 2.0, 'device': 'NVIDIA H200'}
  scripted(monkeypatch, {'ours': [row]})
  case = contest.Case('decode', '1b', ['perl'])
  case.play(1, '/weights')
  result = case.result()
  assert result['share_of_stated_peak']['perl'] == pytest.approx(
    cost.gflop('decode', '1b') / 2 / 989_000)
  assert result['share_of_bandwidth']['perl'] == pytest.approx(
    cost.decode_bytes('1b', 'bfloat16') / 4.8e12 / 2)


def test_contestants_that_compute_something_else_are_marked(monkeypatch):
  scripted(monkeypatch, {'ours': seconds(1.), 'peer_peft': seconds(1., loss=1.0009),
                         'peer_trl': seconds(1., loss=1.002)})
  result = played(['perl', 'peft', 'trl'])
  assert result['agrees'] is False and result['disagree'] == ['trl']
  assert 'DISAGREES' in contest.table([result]) and plot.bars([result])[1]['agrees'] is False


def test_agreement_is_relative_to_ours_and_nan_disagrees():
  check = contest.disagreeing
  assert check({'perl': -2.0, 'peft': -2.0019}, 1e-3) == []
  assert check({'peft': 1.0, 'perl': 2.0, 'trl': 2.0}, 1e-3) == ['peft']
  assert check({'peft': 1.0, 'trl': float('nan')}, 1e-3) == ['trl'] and check({}, 1e-3) == []


def test_who_disagrees_ends_the_program_with_an_error(monkeypatch, tmp_path):
  scripted(monkeypatch, {'ours': seconds(1.), 'peer_peft': seconds(1., loss=3.0),
                         'processes': [{}], 'weights': [{'folder': '/weights'}]})
  monkeypatch.setattr(processes, 'machine', dict)
  file = tmp_path / 'found.json'
  with pytest.raises(SystemExit, match='agree'):
    play(monkeypatch, '--suite=rm', '--size=check', '--rounds=1', '--contestants=perl,peft',
         f'--json={file}')
  assert json.loads(file.read_text())['cases'][0]['disagree'] == ['peft']


def test_a_contestant_that_fails_is_kept_as_an_error_and_does_not_end_the_rest(monkeypatch):
  started = scripted(monkeypatch, {
    'ours': seconds(1., 1.), 'peer_peft': ['no room', {}], 'peer_trl': seconds(2., 2.)})
  result = played(['perl', 'peft', 'trl'], 2)
  assert result['runs']['peft'][0]['error'] == 'no room' and len(result['runs']['peft']) == 1
  assert started.count('peer_peft') == 1 and result['speed_against'] == {'trl': 2.0}
  assert 'failed' in contest.table([result]) and result['agrees']


def test_nothing_starts_after_the_budget(monkeypatch):
  started = scripted(monkeypatch, {'ours': seconds(1.), 'peer_peft': seconds(1.)})
  clock = iter([0.0, 1.0, 2.0, 11.0])
  monkeypatch.setattr(contest.time, 'monotonic', lambda: next(clock))
  budget = contest.Budget(10.0)
  case = contest.Case('rm', 'tiny', ['perl', 'peft'])
  saved = []
  case.play(1, '/weights', budget=budget, after=lambda: saved.append(case.result()))
  assert len(saved) == 1 and saved[0]['runs']['perl']
  assert started == ['ours'] and case.result()['runs']['peft'] == []
  assert 'not run' in contest.table([case.result()])


def test_a_wrong_name_on_the_command_line_is_refused(capsys):
  with pytest.raises(SystemExit):
    benchmarks.arguments(['--suite=rm,sleep'])
  assert 'found sleep' in capsys.readouterr().err
  args = benchmarks.arguments(['--preset=gpu', '--size=check'])
  assert args.size == ['check'] and args.budget_seconds == 540 and args.suite[0] == 'rm'


# --- Contestants themselves, on models of a few thousand parameters


def test_the_gpu_preset_runs_ours_and_peft_in_every_suite(inside, folder, monkeypatch, tmp_path):
  pytest.importorskip('peft')
  monkeypatch.setattr(benchmarks, 'write_weights', lambda *_: {'check': str(folder)})
  result = play(
    monkeypatch, '--preset=gpu', '--size=check', '--suite=rm,sft,decode,rl', '--rounds=1',
    '--steps=1', '--warmup=0', '--contestants=perl,peft', f'--json={tmp_path}/found.json',
    f'--plot={tmp_path}/found.png')
  assert [case['suite'] for case in result['cases']] == ['rm', 'sft', 'decode', 'rl']
  assert result['commit'] and result['hardware']['platform'] == 'cpu'
  for case in result['cases']:
    ours, theirs = (case['runs'][name][0] for name in ('perl', 'peft'))
    for row in (ours, theirs):
      assert row['median_seconds'] > 0 and row['peak_memory_bytes'] > 0 and row['versions']
    assert case['agrees'] is not False and list(case['ratios']) == ['peft']
    if case['suite'] != 'rl':
      assert case['checks']['perl'] == pytest.approx(case['checks']['peft'], rel=1e-5)
  assert (tmp_path / 'found.png').read_bytes().startswith(b'\x89PNG')


def test_full_tuning_begins_with_the_same_loss_in_bfloat16(inside, monkeypatch, tmp_path):
  pytest.importorskip('peft')
  result = play(
    monkeypatch, '--preset=gpu', '--size=check', '--suite=rm', '--rounds=1', '--steps=1',
    '--warmup=0', '--dtype=bfloat16', '--contestants=perl_full,peft',
    f'--json={tmp_path}/found.json')
  (case,) = result['cases']
  assert case['agrees'] and set(case['checks']) == {'perl_full', 'peft'}
  assert 'perl_full' not in case['share_of_gemm_rate']


@pytest.mark.parametrize('suite, contestant', [
  ('rm', 'trl'), ('sft', 'trl'), ('rl', 'trl_rloo'), ('rl', 'trl_grpo'), ('decode', 'peft_merged'),
])
def test_a_peer_runs_and_agrees_with_peft(suite, contestant, inside, folder, monkeypatch):
  pytest.importorskip(rivals.CONTESTANTS[contestant].needs)
  names = ['peft', contestant] if suite != 'rl' else [contestant]
  case = contest.Case(suite, 'check', names, steps=1, warmup=0)
  case.play(1, str(folder))
  assert case.result()['agrees'] is not False, case.result()['checks']
  assert all('error' not in row for rows in case.runs.values() for row in rows)


@pytest.mark.skipif(not TUNIX, reason='PERL_TUNIX names no Python with google-tunix')
@pytest.mark.parametrize('suite', work.SUITES)
def test_tunix_runs_and_agrees_with_peft(suite, folder):
  case = contest.Case(suite, 'check', ['peft', 'tunix'], steps=1, warmup=0, tunix=TUNIX)
  case.play(1, str(folder))
  assert case.result()['agrees'] is not False, case.result()['checks']
  assert all('error' not in row for rows in case.runs.values() for row in rows)


def test_ours_needs_no_package_that_a_bare_gpu_machine_lacks():
  script = '''
import sys
for name in ('tensorflow_datasets', 'ml_collections', 'grain', 'sklearn', 'tensorboardX'):
  sys.modules[name] = None  # any import of it fails
import experiments.bench.ours
'''
  done = subprocess.run([sys.executable, '-c', script], cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr[-600:]


# --- Drawings and profiles


def test_bars_have_the_spread_over_rounds_and_the_aim(tmp_path):
  case = {'suite': 'rm', 'size': 'tiny', 'ratios': {'peft': [1.0, 3.0, 2.0]}, 'aims': {'peft': 1.1}}
  (bar,) = plot.bars([case])
  assert (bar['low'], bar['ratio'], bar['high'], bar['aim']) == (1.0, 2.0, 3.0, 1.1)
  plot.draw([case, {**case, 'aims': {}}], str(tmp_path / 'a.svg'))
  assert '<svg' in (tmp_path / 'a.svg').read_text()
  with pytest.raises(ValueError, match='a peer in one round'):
    plot.draw([{**case, 'ratios': {}}], str(tmp_path / 'b.png'))


def test_several_files_are_drawn_in_one_chart(tmp_path, monkeypatch):
  for name in ('a', 'b'):
    case = {'suite': 'rm', 'size': name, 'ratios': {'tunix': [2.0]}}
    (tmp_path / f'{name}.json').write_text(json.dumps({'cases': [case]}))
  monkeypatch.setattr(sys, 'argv', ['plot', f'--json={tmp_path}/a.json', f'{tmp_path}/b.json',
                                    f'--out={tmp_path}/both.svg'])
  plot.main()
  assert {'rm a: tunix', 'rm b: tunix'} <= set(
    re.findall(r'<!-- (.*?) -->', (tmp_path / 'both.svg').read_text()))


def test_own_time_of_an_operation_leaves_out_what_runs_inside_it(tmp_path):
  event = lambda name, ts, dur, tid=1: dict(ph='X', pid=1, tid=tid, name=name, ts=ts, dur=dur)
  events = [event('while.3', 0, 100), event('dot.1', 10, 30), event('dot.2', 50, 20),
            event('dot.2', 5, 5, tid=2), event('$file.py:1 wait', 0, 500), {'ph': 'M', 'name': 'x'}]
  assert profiles.own_seconds(events) == {'dot': (55e-6, 3), 'while': (50e-6, 1)}
  with pytest.raises(FileNotFoundError, match='--profile=FOLDER'):
    profiles.describe(tmp_path)
  with gzip.open(tmp_path / 'vm.trace.json.gz', 'wt') as stream:
    json.dump({'traceEvents': events}, stream)
  assert '| dot | 0.06 | 3 |' in profiles.describe(tmp_path)
  assert 'perfetto' in (tmp_path / 'README.md').read_text()


def test_a_profile_of_a_step_is_printed_and_written(inside, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(sys, 'argv', [
    'benchmarks', '--suite=rm', '--size=check', f'--profile={tmp_path}/trace',
    f'--json={tmp_path}/profile.json'])
  benchmarks.main()
  result = json.loads((tmp_path / 'profile.json').read_text())
  assert {'operation', 'milliseconds', 'calls'} == set(result['profiles']['rm_check'][0])
  assert result['versions'] and '| operation |' in capsys.readouterr().out


# --- Loading


def test_both_load_the_same_numbers_and_are_compared(inside, tmp_path, monkeypatch):
  pytest.importorskip('transformers')
  monkeypatch.setitem(config.SIZES, 'one', dict(
    layers=3, width=64, heads=4, kv_heads=2, head_dim=16, mlp_width=96, vocab_size=512))
  cases = loading.compete('one', 1, str(tmp_path))
  assert [case['size'] for case in cases] == [
    'float32 as float32', 'bfloat16 as bfloat16', 'bfloat16 as float32']
  for case in cases:
    assert case['shards'] == loading.SHARDS and list(case['ratios']) == ['transformers']
    sums = [case['runs'][who][0]['sum'] for who in loading.WHO]
    assert sums[0] == pytest.approx(sums[1], rel=1e-4) and sums[0] != 0
  assert len(loading.table(cases).splitlines()) == 5 and len(plot.bars(cases)) == 3
