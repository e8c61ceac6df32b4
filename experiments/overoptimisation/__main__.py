r"""Reward models are optimised against until the gold reward falls (Gao et al., arXiv 2210.10760).

    python -m experiments.overoptimisation --config=configs/overoptimisation.py \
        --workdir=runs/overoptimisation --seeds=0,1,2 \
        --json=experiments/results/overoptimisation.json \
        --plot=experiments/results/overoptimisation.png

Reward models of several ranks, numbers of training pairs and sizes; against each, the anchor's best
of n and RL without a KL penalty, by proxy and gold reward over the root of the KL. One thing is
varied at a time; the config's own reward model is in all three families.

<workdir>/base/<size>/{tokenizer,pretrain,sft}      once; the tokenizer is that of the config's size
<workdir>/seed<k>/<row>/{reward,best_of_n}          a reward model, and its choices among samples
<workdir>/seed<k>/<row>/rl                          of rows of the config's size

A reward model of another size has a base and an SFT of its own, so that it is no adapter of the
policy's base: it judges the same samples by their text, and is not put to RL. Seeds share base and
anchor: intervals say how reward models, samples and RL differ, not how bases do. Best-of-n's KL is
the analytic one, an upper bound where responses repeat. All curves are of the dev prompts.

Finished stages are skipped; --table prints what is there and runs nothing. Start the command once
for each core (`taskset -c 0`, `taskset -c 1`, ...): each takes rows that no other has begun.
"""

import pathlib
import sys
from collections.abc import Sequence

from experiments import sweep, tables
from experiments.compare import shared
from experiments.overoptimisation import plot, report, rows
from perl.cli import launch
from perl.config import command_line, platform
from perl.config.fields import ConfigError
from perl.report import formats


def run(study: rows.Study, wanted: dict[str, list[rows.Row]], seeds: Sequence[int]) -> None:
  """Runs all that is not finished; every config is checked before the first stage starts.

  Raises:
    ConfigError: a config is not valid, or a folder holds a stage of another config.
    SystemExit: a signal stopped a stage.
  """
  every = list(dict.fromkeys(row for family in wanted.values() for row in family))
  every.sort(key=lambda row: row != study.row)  # whose samples the others judge
  sizes = list(dict.fromkeys(row.size for row in every))
  of_own_size = [row for row in every if row.size == study.row.size]
  phases = [
    [study.base(sizes[0])],
    [study.base(size) for size in sizes[1:]],
    [study.judged(study.row, seed) for seed in seeds],
    [study.judged(row, seed) for seed in seeds for row in every[1:]],
    [study.optimised(row, seed) for seed in seeds for row in of_own_size],
  ]
  for phase in phases:
    for job in phase:
      launch.check(job.config)
  for phase in phases:
    shared.run(phase)


def main(argv: Sequence[str] | None = None) -> int:
  """The program; returns the exit code, as launch.main does."""
  return launch.guarded(lambda: _main(sys.argv[1:] if argv is None else argv))


def _main(argv: Sequence[str]) -> None:
  made = command_line.parser('overoptimisation', __doc__.split('\n', 1)[0])
  made.add_argument('--seeds', default='0,1,2', help='seeds of each row')
  made.add_argument('--ranks', default='1,8,32', help="ranks of reward models; '' for none")
  made.add_argument('--pairs', default='125,500,2000', help='numbers of training pairs')
  made.add_argument('--sizes', default='nano,micro,tiny', help='names of model.size')
  command_line.add_results(made)
  options, overrides = command_line.parse(made, argv)
  if options.help_fields:
    print(command_line.help_fields(command_line.read(options.config, overrides)))
    return
  study = rows.Study(options.config, overrides, options.workdir)
  wanted = rows.families(study.row, numbers(options.ranks), numbers(options.pairs),
                         [name for name in options.sizes.split(',') if name])
  if not options.table:
    run(study, wanted, sweep.seeds_of(options.seeds))
  found = list(rows.collect(options.workdir, wanted))
  print(formats.markdown(*report.table(found, wanted)))
  if options.plot:
    plot.draw(found, wanted, options.plot)
  if options.json:
    tables.save(options.json, {
      'command': command_line.ran('overoptimisation', argv),
      'workdir': pathlib.PurePath(options.workdir).as_posix(), **report.results(found, wanted)})


def numbers(text: str) -> list[int]:
  """'1,8' -> [1, 8].

  Raises:
    ConfigError: other text, or a number twice.
  """
  pieces = [piece.strip() for piece in text.split(',') if piece.strip()]
  if not all(p.isdecimal() for p in pieces) or len(set(pieces)) < len(pieces):
    raise ConfigError(f'expected numbers with commas, each once, found {text!r}; '
                      'write for example --ranks=1,8,32')
  return [int(piece) for piece in pieces]


if __name__ == '__main__':
  platform.tune()
  command_line.show_logs()
  sys.exit(main())
