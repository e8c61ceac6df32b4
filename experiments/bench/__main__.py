"""Seconds per step, ours and the peers' in turn on the same work, and their ratios.

    python -m experiments.bench --suite=rm,sft,decode,rl --size=tiny --rounds=3
    python -m experiments.bench --suite=rm,rl --size=medium --steps=3 --tunix=TUNIX/bin/python
    python -m experiments.bench --suite=load --json=load.json --plot=load.png
    python -m experiments.bench --preset=gpu --json=gpu.json      # one call of ten minutes
    python -m experiments.bench --suite=rl --size=tiny --profile=/tmp/trace

Each measurement is a process of its own, all with the same weights and tokens, with the settings of
malloc that our own programs set (perl/config/platform.py; ours also sets its flags of XLA, as all
our programs do) and with caches of compiled programs that begin empty. One round runs every
contestant of every case once, in turn, and a ratio is taken within a round, so that it holds where
the machine's speed drifts. Run nothing else meanwhile. Contestants that disagree in the first loss,
or in what greedy decoding finds likely, are marked, and the exit code is 1, as when one fails.
"""

import argparse
import pathlib
import sys
import tempfile
from collections.abc import Callable

from experiments.bench import contest, loading, plot, processes, profiles, rivals, work

PRESETS = {
  '': dict(suite='rm,rl', size='tiny', rounds=3, steps=8, budget_seconds=0.0, limit_seconds=0.0),
  'gpu': dict(suite='rm,decode,rl', size='1b', rounds=3, steps=5, budget_seconds=540.0,
              limit_seconds=180.0),
}
"""Defaults of what the command line leaves open; gpu: a machine without TRL and Tunix."""


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
  """The command line, what it leaves open filled in by the preset."""
  parser = work.parser(__doc__)
  add = parser.add_argument
  add('--preset', choices=tuple(PRESETS), default='')
  add('--suite', help=f'of {", ".join(work.SUITES)}, load; comma-separated')
  add('--size', help=f'of {", ".join(work.SIZES)}; comma-separated')
  add('--rounds', type=int)
  add('--steps', type=int, help='timed in each process')
  add('--warmup', type=int, default=2, help='untimed steps after the first')
  add('--dtype', default='', help="float32 or bfloat16; '' is the size's own")
  add('--contestants', default='', help=f'of {", ".join(rivals.CONTESTANTS)}; comma-separated')
  add('--tunix', default='', help='the Python of an environment with google-tunix; adds it')
  add('--budget_seconds', type=float, help='after which nothing new starts; 0 for no end')
  add('--limit_seconds', type=float, help='of one process; 0 for no limit')
  add('--load_size', default='llama-3.2-1b', help='of perl/models/config.py, for the suite load')
  add('--scratch', default=None, help='where the weights are written; removed afterwards')
  add('--json', default='', help='write the results to this file, anew after every process')
  add('--plot', default='', help='draw the ratios into this file')
  add('--profile', default='', help='trace our steps into this folder, and time nothing')
  args = parser.parse_args(argv)
  for name, value in PRESETS[args.preset].items():
    if getattr(args, name) is None:
      setattr(args, name, value)
  for option, known in (('suite', (*work.SUITES, 'load')), ('size', work.SIZES),
                        ('contestants', rivals.CONTESTANTS)):
    wanted = getattr(args, option).split(',') if getattr(args, option) else []
    if unknown := [name for name in wanted if name not in known]:
      parser.error(f'expected --{option} of {", ".join(known)}, found {unknown[0]}; leave it out')
    setattr(args, option, wanted)
  return args


def make_cases(args: argparse.Namespace) -> list[contest.Case]:
  """Suites by sizes, in the order of the command line; load is none of them."""
  return [
    contest.Case(
      suite, size, rivals.chosen(suite, args.contestants, args.preset, args.tunix), args.dtype,
      args.steps, args.warmup, args.tunix)
    for size in args.size for suite in args.suite if suite != 'load']


def write_weights(scratch: str, cases: list[contest.Case]) -> dict[str, str]:
  """{size: the folder of its weights}, written on the CPU."""
  write = lambda size, dtype: processes.run(
    [sys.executable, '-m', 'experiments.bench.weights', f'--size={size}', f'--dtype={dtype}',
     f'--out={scratch}/{size}'], JAX_PLATFORMS='cpu')['folder']
  return {size: write(size, dtype) for size, dtype in {c.size: c.dtype for c in cases}.items()}


def play(args: argparse.Namespace, budget: contest.Budget, save: Callable) -> None:
  """All rounds of all cases; save(results) after every process."""
  cases = make_cases(args)
  results = lambda: [case.result() for case in cases if case.peaks]
  with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
    folders = write_weights(scratch, cases)
    for number in range(1, args.rounds + 1):
      for case in cases:
        if budget.left() > 0:
          case.play(number, folders[case.size], cache=scratch, budget=budget,
                    limit=args.limit_seconds, after=lambda: save(results()))
  if 'load' in args.suite:
    save(results() + loading.compete(args.load_size, args.rounds, args.scratch))


def trace(args: argparse.Namespace) -> dict[str, list[dict]]:
  """Profiles of our own steps; prints the operations that take the most time, returns them all."""
  traces = {}
  with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
    cases = make_cases(args)
    folders = write_weights(scratch, cases)
    for case in cases:
      folder = pathlib.Path(args.profile).resolve() / f'{case.suite}_{case.size}'
      processes.run(rivals.command(rivals.OURS, '', [
        f'--suite={case.suite}', f'--size={case.size}', f'--weights={folders[case.size]}',
        f'--dtype={case.dtype}', '--steps=1', f'--profile={folder}']))
      operations = profiles.operations(folder)
      print(profiles.describe(folder, operations), flush=True)
      traces[folder.name] = [
        {'operation': name, 'milliseconds': round(seconds * 1e3, 3), 'calls': calls}
        for name, (seconds, calls) in operations.items()]
  return traces


def main() -> None:
  """Prints a table and writes the results."""
  args = arguments()
  budget = contest.Budget(args.budget_seconds)
  from perl.train import metrics

  head = {'command': 'python -m experiments.bench', 'settings': vars(args),
          **processes.machine()}
  if args.profile:
    traces = trace(args)
    if args.json:
      metrics.write_json(args.json, {**head, 'profiles': traces})
    return
  held: list[dict] = []

  def save(cases: list[dict]) -> None:
    held[:] = cases
    if args.json:
      metrics.write_json(args.json, {**head, 'cases': cases})

  play(args, budget, save)
  if steps := [case for case in held if case['suite'] != 'load']:
    print(contest.table(steps))
  if loads := [case for case in held if case['suite'] == 'load']:
    print(loading.table(loads))
  if args.plot:
    plot.draw(held, args.plot)
  failed = any('error' in row for case in held for rows in case['runs'].values() for row in rows)
  if failed or any(case.get('agrees') is False for case in held):
    sys.exit('expected contestants that run and agree, found others (results are kept); see the '
             'table; remedy: run the command in their `error`, or look at `checks`')


if __name__ == '__main__':
  main()
