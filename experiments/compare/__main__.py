r"""PEFT methods, or ranks and matrices, or learning rates, side by side over seeds.

    python -m experiments.compare methods --config=configs/coffee_methods.py:size=tiny \
        --workdir=runs/compare --seeds=0,1,2 --json=experiments/results/coffee_methods.json
    python -m experiments.compare grid --config=configs/coffee_methods.py:size=tiny \
        --workdir=runs/compare --seeds=0,1,2 --json=experiments/results/coffee_grid.json
    python -m experiments.compare rates --config=configs/coffee_methods.py:size=tiny \
        --workdir=runs/compare --seeds=0 --json=experiments/results/coffee_rates.json

methods  SFT (loss and greedy exact match, test) and a reward model (AUC, test), a row a method
grid     LoRA of ranks 1, 2, 4, 8, 64 over q; q, v; q, k, v, o, beside Hu et al.'s Table 6: SFT
rates    SFT of every method at several times its learning rates (perl/config/rates.py), by dev loss

<workdir>/base/{tokenizer,pretrain}    of all rows
<workdir>/seed<k>/anchor/sft           under the reward models of seed k, by full tuning (methods)
<workdir>/seed<k>/<row>/{sft,reward}   SFT lies over the base, the reward model over the anchor

The three may share a folder, and with it the base. Finished stages are skipped; --table prints what
is there and runs nothing. Start a command once for each core (`taskset -c 0`, `taskset -c 1`, ...):
each process takes rows that no other has begun, and a model too small for two cores gains by it.
"""

import functools
import pathlib
import sys
from collections.abc import Sequence

from experiments import sweep, tables
from experiments.compare import plot, report, rows, shared
from perl.cli import launch
from perl.config import command_line, platform
from perl.config.fields import ConfigError
from perl.report import formats

TABLES = {'methods': report.methods, 'grid': report.grid, 'rates': report.rates}
PLOTS = {'methods': plot.methods, 'grid': plot.grid}


def run(made: sweep.Sweep, what: str, wanted: Sequence[rows.Row], seeds: Sequence[int]) -> None:
  """Runs all that is not finished; every config is checked before the first stage starts.

  Raises:
    ConfigError: a config is not valid, or a folder holds a stage of another config.
    SystemExit: a signal stopped a stage.
  """
  base = launch.check(made.base())
  anchors = {seed: launch.check(rows.config(made, rows.ANCHOR, seed, test=False))
             for seed in seeds} if what == 'methods' else {}
  jobs = []
  for seed in seeds:
    for row in wanted:
      config = launch.check(rows.config(made, row, seed, test=what != 'rates'))
      if seed in anchors:
        config.inputs.anchor = str(made.workdir / f'seed{seed}' / rows.ANCHOR.name / 'sft')
      jobs.append(shared.Job(config, rows.STAGES if seed in anchors else ('sft',),
                             made.workdir / f'seed{seed}' / row.name))
  shared.run([shared.Job(base, sweep.BASE_STAGES, made.workdir / 'base')])
  shared.run([shared.Job(config, ('sft',), made.workdir / f'seed{seed}' / rows.ANCHOR.name)
              for seed, config in anchors.items()])
  shared.run(jobs)


def main(argv: Sequence[str] | None = None) -> int:
  """The program; returns the exit code, as launch.main does."""
  return launch.guarded(lambda: _main(sys.argv[1:] if argv is None else argv))


def _main(argv: Sequence[str]) -> None:
  made = command_line.parser('compare', __doc__.split('\n', 1)[0])
  made.add_argument('what', choices=tuple(TABLES), help='what the rows are')
  made.add_argument('--methods', default='all', help='some, with commas (methods, rates)')
  made.add_argument('--seeds', default='0,1,2', help='seeds of each row')
  made.add_argument('--factors', default='0.3,1,3', help='times the learning rates (rates)')
  command_line.add_results(made)
  options, overrides = command_line.parse(made, argv)
  if options.help_fields:
    print(command_line.help_fields(command_line.read(options.config, overrides)))
    return
  if options.plot and options.what not in PLOTS:
    raise ConfigError(f'expected --plot with {" or ".join(PLOTS)}, found {options.what}; leave it')
  factors = [float(text) for text in options.factors.split(',')]
  wanted = {
    'methods': functools.partial(rows.methods, options.methods), 'grid': rows.grid,
    'rates': functools.partial(rows.rates, options.methods, factors),
  }[options.what]()
  setting = sweep.Sweep(options.config, overrides, options.workdir, reward_from='')
  if not options.table:
    run(setting, options.what, wanted, sweep.seeds_of(options.seeds))
  found = list(rows.collect(options.workdir, wanted))
  head, body, notes = TABLES[options.what](found)
  print(formats.markdown(head, body, notes))
  if options.plot:
    PLOTS[options.what](found, options.plot)
  if options.json:
    tables.save(options.json, {
      'command': command_line.ran('compare', argv),
      'workdir': pathlib.PurePath(options.workdir).as_posix(), **report.slim(found)})


if __name__ == '__main__':
  platform.tune()
  command_line.show_logs()
  sys.exit(main())
