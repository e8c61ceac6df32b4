"""Seconds per step, ours and the peers' in turn on the same work, and their ratios.

    python -m experiments.benchmarks --suite=rm,rl --size=tiny --rounds=3
    python -m experiments.benchmarks --suite=rm --size=medium --steps=3 --tunix=TUNIX/bin/python

Each measurement is a process of its own, all with the settings of malloc that our own programs set
(experiments/platform.py; ours also sets its flags of XLA, as all our programs do). One round runs
every contestant once, in turn, and a ratio is taken within a round, so that it holds where the
machine's speed drifts. Run nothing else meanwhile.
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import time

import numpy as np

from experiments import platform
from experiments.benchmarks import work


def gemm_gflops(seconds: float = 2.0) -> float:
  """The machine's rate in a float32 product of 2048 x 2048 matrices, through numpy."""
  a = np.random.default_rng(0).standard_normal((2048, 2048), np.float32)
  a @ a
  count, start = 0, time.perf_counter()
  while time.perf_counter() - start < seconds:
    a @ a
    count += 1
  return 2 * 2048**3 * count / (time.perf_counter() - start) / 1e9


def run(command: list[str]) -> dict:
  """The last JSON line that the command prints.

  Raises:
    RuntimeError: it failed, or printed none.
  """
  environment = {**os.environ, **platform.malloc(os.environ), 'JAX_PLATFORMS': 'cpu'}
  done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
  rows = [line for line in done.stdout.splitlines() if line.startswith('{')]
  if done.returncode or not rows:
    raise RuntimeError(
      f'expected a JSON line from {shlex.join(command)}, found exit code {done.returncode} and:\n'
      f'{done.stderr[-2000:]}\nremedy: install the extra `peers`, or run the command by itself')
  return json.loads(rows[-1])


def contest(suite: str, size: str, rounds: int, steps: int, tunix: str = '') -> dict:
  """Every contestant `rounds` times in turn; ratios peer / ours within each round."""
  case = [f'--suite={suite}', f'--size={size}', f'--steps={steps}']
  commands = {
    'perl': [sys.executable, '-m', 'experiments.benchmarks.ours', *case],
    'peer': [sys.executable, '-m', 'experiments.benchmarks.peers', *case]}
  if tunix and suite == 'rm':
    commands['tunix'] = [tunix, '-m', 'experiments.benchmarks.peer_tunix', *case]
  found: dict[str, list[dict]] = {name: [] for name in commands}
  peaks = []
  for number in range(rounds):
    peaks.append(gemm_gflops())
    for name, command in commands.items():
      print(f'round {number + 1}/{rounds}: {suite} {size} {name}', file=sys.stderr, flush=True)
      found[name].append(run(command))
  ours = [row['median_seconds'] for row in found['perl']]
  result = {'suite': suite, 'size': size, 'gflop_per_step': work.gflop(suite, size),
            'gemm_gflops': peaks, 'runs': found}
  result['share_of_gemm_peak'] = statistics.median(
    result['gflop_per_step'] / s / p for s, p in zip(ours, peaks))
  result['speed_against'] = {
    name: statistics.median(row['median_seconds'] / s for row, s in zip(rows, ours))
    for name, rows in found.items() if name != 'perl'}
  return result


def main() -> None:
  """Prints a table and writes the results."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--suite', default='rm,rl', help='rm, rl or both')
  parser.add_argument('--size', default='tiny', help=f'of {", ".join(work.SIZES)}')
  parser.add_argument('--rounds', type=int, default=3)
  parser.add_argument('--steps', type=int, default=8)
  parser.add_argument('--tunix', default='', help='the Python of an environment with '
                      'google-tunix; adds it to the suite rm')
  parser.add_argument('--json', default='', help='write the results to this file')
  args = parser.parse_args()
  cases = [contest(suite, size, args.rounds, args.steps, args.tunix)
           for suite in args.suite.split(',') for size in args.size.split(',')]
  print('| suite | size | ours, s | share of GEMM peak | times the speed of |')
  print('|:--|:--|--:|--:|:--|')
  for case in cases:
    ratios = ', '.join(f'{case["runs"][k][0]["name"]}: {v:.2f}'
                       for k, v in case['speed_against'].items())
    ours = statistics.median(row['median_seconds'] for row in case['runs']['perl'])
    print(f'| {case["suite"]} | {case["size"]} | {ours:.3f} | {case["share_of_gemm_peak"]:.0%} '
          f'| {ratios} |')
  if args.json:
    from perl.train import metrics, provenance

    metrics.write_json(args.json, {
      'command': 'python -m experiments.benchmarks', 'settings': vars(args), 'cases': cases,
      **provenance.record()})


if __name__ == '__main__':
  main()
