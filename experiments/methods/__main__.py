"""What every PEFT method costs at some size, before anything is loaded; what publications claim.

    python -m experiments.methods --config=configs/coffee.py:size=tiny --methods=all \
        --targets='q;q,v;q,k,v,o' --ranks=1,2,4,8 --stage=rl --json=methods.json
    python -m experiments.methods --config=configs/coffee.py:size=tiny \
        --config.model.size=llama-2-7b --methods=lora,vera --no_forecast
    python -m experiments.methods --published --json=published.json

The first prints a row for each method, set of targets (patterns with commas, sets with semicolons)
and rank: trainable parameters, bytes of adapter and optimizer, peak memory and operations of the
compiled step. --no_forecast compiles nothing. The last counts what publications print.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from ml_collections import ConfigDict

from perl.cli import launch
from perl.config import command_line, platform
from perl.config.fields import ConfigError, plain
from perl.jobs import ADAPTED


def main(argv: Sequence[str] | None = None) -> int:
  """The program; returns the exit code: 2 for a wrong config or flag, else 0."""
  return launch.guarded(lambda: _main(sys.argv[1:] if argv is None else argv))


def _main(argv: Sequence[str]) -> None:
  if '--published' in argv:
    reader = argparse.ArgumentParser(prog='python -m experiments.methods', allow_abbrev=False)
    reader.add_argument('--published', action='store_true', help='count what publications print')
    reader.add_argument('--json', default='', help='also write the figures to this file')
    _published(reader.parse_args(argv).json)
    return
  made = command_line.parser('methods', __doc__.split('\n', 1)[0])
  made.set_defaults(workdir=os.devnull)  # nothing is read or written there
  made.add_argument('--methods', default='all', help='files of perl/peft with commas, or all')
  made.add_argument('--targets', default='', help='patterns with commas, sets of them with '
                    'semicolons; the config\'s unless given')
  made.add_argument('--ranks', default='', help='with commas; the config\'s unless given')
  made.add_argument('--stage', default='sft', choices=ADAPTED)
  made.add_argument('--no_forecast', '--no-forecast', action='store_true',
                    help='counts alone: compile nothing')
  made.add_argument('--json', default='', help='also write the rows to this file')
  options, overrides = command_line.parse(made, argv)
  config = command_line.read(options.config, overrides)
  if options.help_fields:
    print(command_line.help_fields(config))
    return
  launch.check(config)
  _costs(config, options)


def _costs(config: ConfigDict, options: argparse.Namespace) -> None:
  from experiments.methods import costs, table  # jax, which must follow platform.tune
  from perl import trees
  from perl.jobs import _programs as programs
  from perl.train import metrics, provenance

  stage, forecast = options.stage, not options.no_forecast
  chosen = costs.candidates(config, stage, costs.methods(options.methods),
                         sets(options.targets) or [tuple(config.peft.targets)],
                         ranks(options.ranks) or [config.peft.rank])
  with metrics.progress(len(chosen), desc='methods') as bar:
    rows = costs.rows(config, stage, chosen, forecast=forecast, tick=lambda choice: bar.update())
  parameters = trees.count(programs.learner(config, stage)[0])
  heading = table.title(config, stage, parameters)
  notes = table.notes(config, stage, forecast=forecast)
  print(f'{heading}\n\n{table.markdown(rows, notes, forecast=forecast)}')
  if options.json:
    metrics.write_json(options.json, {
      'command': 'python -m experiments.methods', 'title': heading, 'config': plain(config),
      'stage': stage, 'base_parameters': parameters, 'notes': notes, 'rows': rows,
      **provenance.record(),
    })


def _published(path: str) -> None:
  from experiments.methods import published  # jax, which must follow platform.tune
  from perl.train import metrics, provenance

  figures = published.figures()
  print(published.markdown(figures))
  if path:
    metrics.write_json(path, {
      'command': 'python -m experiments.methods --published', 'notes': published.NOTES,
      'figures': figures, **provenance.record(),
    })


def sets(text: str) -> list[tuple[str, ...]]:
  """'q;q,v' -> [('q',), ('q', 'v')].

  Raises:
    ConfigError: a pattern is empty.
  """
  found = [tuple(part.split(',')) for part in text.split(';')] if text else []
  if any(not pattern for part in found for pattern in part):
    raise ConfigError(f'expected --targets like q;q,v;q,k,v,o, found {text!r}; leave no part empty')
  return found


def ranks(text: str) -> list[int]:
  """'1,2' -> [1, 2].

  Raises:
    ConfigError: something is no positive number.
  """
  parts = text.split(',') if text else []
  if not all(part.isdecimal() and int(part) for part in parts):
    raise ConfigError(f'expected --ranks like 1,2,4,8, found {text!r}; give positive numbers')
  return [int(part) for part in parts]


if __name__ == '__main__':
  platform.tune()
  sys.exit(main())
