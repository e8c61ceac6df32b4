"""The program of every study: flags, runs, what is finished, its table, JSON and chart.

A study is a file of this folder:

    NEEDS = ('config', 'workdir')      flags that it cannot do without; those two unless it says
    add_flags(parser)                  its own flags
    phases(spec, options) -> [[Job]]   what it runs, see _jobs.run; a study without it only measures
    collect(spec, options) -> results  what is finished, as JSON has it; 'rows' is a list
    table(results) -> Table            head, lines and notes, of the results alone
    plot(results, file)                if it draws
"""

import argparse
import json
import pathlib
import re
import shlex
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from experiments import studies
from experiments.studies import _jobs as jobs
from perl import choices
from perl.config import command_line
from perl.config.fields import ConfigError
from perl.report import formats
from perl.train import metrics

Table = tuple[list[str], list[list[str]], list[str]]
"""(head, lines of cells, notes below)."""
NEEDED = {'config': '--config=<file>[:name=value,...]', 'workdir': '--workdir=<folder>'}


@command_line.guarded
def main(name: str, argv: Sequence[str]) -> None:
  """Runs the study of that name; returns the exit code, as launch.main does."""
  study = choices.find(studies.__name__, name)
  needs = getattr(study, 'NEEDS', tuple(NEEDED))
  if 'config' in needs and command_line.asks_to_see(argv):
    command_line.show(argv)
    return
  reader = parser(name, study, needs)
  options, overrides = reader.parse_known_args(argv)
  command_line.check_overrides(overrides, re.findall(r'--\w+', reader.format_usage()))
  if options.plot and not hasattr(study, 'plot'):
    raise ConfigError(f'expected --plot with a study that draws, found {name}; leave it')
  if options.results:
    results = load(options.results)
  else:
    missing = [flag for flag in needs if not getattr(options, flag)]
    if missing:
      raise ConfigError(f'expected {NEEDED.get(missing[0], f"--{missing[0]}")}, found none; '
                        'or --results=<file> to print a result file')
    results = {'command': command(name, argv)} | _results(study, overrides, options)
  print(studies.render(name, results, options.format))
  if options.plot:
    study.plot(results, options.plot)
  if options.json:
    metrics.write_json(options.json, results)


def _results(
  study: ModuleType, overrides: Sequence[str], options: argparse.Namespace
) -> dict[str, Any]:
  """What the study finds, after all that is not finished is run."""
  spec = jobs.Spec(options.config, overrides, options.workdir)
  if hasattr(study, 'phases') and not options.table:
    jobs.run(study.phases(spec, options))
  results = study.collect(spec, options)
  if results.get('rows') == []:
    raise ConfigError(f'expected at least one finished row in {options.workdir}, found none; '
                      'leave out --table to run them')
  place = {'workdir': spec.workdir.as_posix()} if options.workdir else {}
  return place | results


def parser(name: str, study: ModuleType, needs: Sequence[str]) -> argparse.ArgumentParser:
  """What every study takes, and what this one adds."""
  flags = argparse.ArgumentParser(
    prog=f'python -m experiments.studies {name}', description=study.__doc__, allow_abbrev=False,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    epilog='--config.<field>=<value> overrides one field of the config; --help_fields lists them.')
  flags.set_defaults(config='', workdir='', table=False, help_fields=False)
  if 'config' in needs:
    flags.add_argument('--config', metavar='FILE[:name=value,...]',
                      help='config file, and arguments that its header lists')
    flags.add_argument('--help_fields', action='store_true',
                      help='print every field of the config with its value, and stop')
  if 'workdir' in needs:
    flags.add_argument('--workdir', help='folder of the runs')
    flags.add_argument('--table', action='store_true', help='print what is finished; run nothing')
  study.add_flags(flags)
  flags.add_argument('--results', default='', help='print this result file; run nothing')
  flags.add_argument('--format', default='markdown', choices=tuple(formats.FORMATS))
  flags.add_argument('--json', default='', help='write the results to this file')
  flags.add_argument('--plot', default='', help='draw them: a png, svg or pdf')
  return flags


def command(name: str, argv: Sequence[str]) -> str:
  """The command that made what `--table` may have collected later, as a shell takes it."""
  words = shlex.join(word for word in argv if word != '--table')
  return f'python -m experiments.studies {name} {words}'


def load(path: str) -> dict[str, Any]:
  """A result file.

  Raises:
    ConfigError: no such file, or no JSON.
  """
  try:
    return json.loads(pathlib.Path(path).read_text(encoding='utf-8'))
  except (OSError, ValueError) as error:
    raise ConfigError(f'expected a result file in {path}, found {error!r}; '
                      'write one with --json') from None
