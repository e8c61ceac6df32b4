"""The benchmark program: the work that it hands out, and ratios taken within a round."""

import json
import sys

import numpy as np
import pytest

from experiments.benchmarks import __main__ as benchmarks
from experiments.benchmarks import loading, work
from perl.models import config


def test_operations_of_a_reward_step_are_those_counted_by_hand(monkeypatch):
  monkeypatch.setitem(work.SIZES, 'one', dict(
    layers=1, width=2, heads=1, mlp_width=3, vocab=5, pairs=1))
  weights = 4 * 2 * 2 + 3 * 2 * 3
  attention = 4 * 2 * 256  # scores and weighted values, 2 operations a multiply-add
  assert work.gflop('rm', 'one') * 1e9 == pytest.approx(2 * 256 * (4 * weights + 3 * attention))


@pytest.mark.parametrize('size', work.SIZES)
def test_pairs_are_16_of_256_tokens_and_prompts_16_of_64(size):
  chosen, rejected = work.pairs(size)
  assert chosen.shape == rejected.shape == (16, 256)
  assert (chosen != rejected).any(1).all()
  prompts = work.prompts(size)
  assert prompts.shape == (16, 64) and len(np.unique(prompts, axis=0)) == 4
  assert chosen.min() >= 3 and chosen.max() < work.SIZES[size]['vocab']


def test_steps_are_timed_after_the_first_and_the_warmup():
  calls = []
  row = work.measure(lambda: calls.append(1), steps=4, warmup=2)
  assert len(calls) == 7 and row['steps'] == 4
  assert row['min_seconds'] <= row['median_seconds'] <= row['max_seconds']


def test_speed_is_the_median_of_the_ratios_within_rounds(monkeypatch):
  seconds = {'ours': iter([1., 2., 4.]), 'peers': iter([2., 2., 2.]),
             'peer_tunix': iter([3., 8., 8.])}

  def run(command):
    name = command[2].rsplit('.')[-1]
    return {'name': name, 'median_seconds': next(seconds[name])}

  monkeypatch.setattr(benchmarks, 'run', run)
  monkeypatch.setattr(benchmarks, 'gemm_gflops', lambda: 100.)
  found = benchmarks.contest('rm', 'tiny', rounds=3, steps=1, tunix='python-of-tunix')
  assert found['speed_against'] == {'peer': 1., 'tunix': 3.}
  assert found['share_of_gemm_peak'] == pytest.approx(work.gflop('rm', 'tiny') / 2 / 100)


def test_the_last_json_line_of_a_contestant_counts():
  script = 'print("noise"); print(\'{"a": 1}\'); print(\'{"a": 2}\')'
  assert benchmarks.run([sys.executable, '-c', script]) == {'a': 2}


def test_everybody_has_the_same_malloc(monkeypatch):
  monkeypatch.delenv('MALLOC_TOP_PAD_', raising=False)
  script = 'import json, os; print(json.dumps({"pad": os.environ["MALLOC_TOP_PAD_"]}))'
  assert int(benchmarks.run([sys.executable, '-c', script])['pad']) > 0


def test_a_contestant_that_fails_is_quoted():
  with pytest.raises(RuntimeError, match='exit code 1 and:(?s:.*)no such thing(?s:.*)remedy'):
    benchmarks.run([sys.executable, '-c', 'raise SystemExit("no such thing")'])


def test_a_row_names_the_versions_of_its_packages(capsys):
  work.report({'name': 'x'}, 'numpy')
  assert json.loads(capsys.readouterr().out) == {'name': 'x', 'versions': {'numpy': np.__version__}}


def test_both_load_the_same_numbers(tmp_path, monkeypatch, capsys):
  pytest.importorskip('transformers')
  monkeypatch.setitem(config.SIZES, 'one', dict(
    layers=3, width=64, heads=4, kv_heads=2, head_dim=16, mlp_width=96, vocab_size=512))
  about = loading.write(tmp_path, 'one', 'bfloat16')
  assert about['shards'] == loading.SHARDS
  assert sum(f.stat().st_size for f in tmp_path.glob('*.safetensors')) > about['bytes']
  sums = []
  for who in loading.WHO:
    loading.contestant(who, str(tmp_path), 'float32')
    row = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert row['name'] == who and row['seconds'] > 0
    sums.append(row['sum'])
  assert sums[0] == pytest.approx(sums[1], rel=1e-4) and sums[0] != 0
