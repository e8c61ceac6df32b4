"""Finished runs side by side: their chief figures, and the fields in which their configs differ.

    perl-rlhf compare runs/demo runs/demo_full
    perl-rlhf compare runs/coffee_* --format=csv

A column is a run, a row a figure of a stage or a field of the config.
"""

import argparse
from collections.abc import Sequence
from typing import Any

from etils import epath

from perl import paths
from perl.cli import launch
from perl.config import command_line, runs, schema
from perl.config.fields import ConfigError, flatten, plain
from perl.report import formats, page

FIGURES = ('exact_match', *launch.SHOWN)
NOTES = ('[low, high]: 95 % interval over the examples of that run; –: the run has no such value.',)


def rows(workdirs: Sequence[epath.Path]) -> list[list[str]]:
  """The body of the table, a column a run: figures by stage, then the fields that differ.

  Raises:
    ConfigError: a workdir without a finished stage.
  """
  summaries = [runs.summaries(workdir) for workdir in workdirs]
  for workdir, summary in zip(workdirs, summaries):
    if not summary:
      raise ConfigError(f'expected a run with a finished stage in {workdir}, found none; run '
                        f'perl-rlhf launch --config=<name> --workdir={workdir} first')
  return [*_figures(summaries), *_fields([runs.config(workdir) for workdir in workdirs])]


def _figures(summaries: Sequence[dict[str, dict]]) -> list[list[str]]:
  stages = dict.fromkeys(stage for stage in runs.STAGES for summary in summaries
                         if stage in summary)
  body = []
  for stage, name in ((stage, name) for stage in stages for name in FIGURES):
    results = [summary.get(stage, {}) for summary in summaries]
    cells = [page.figure(s.get(name), s.get(f'{name}_low'), s.get(f'{name}_high')) for s in results]
    if any(page.is_number(s.get(name)) for s in results):
      body.append([f'{stage} {name}', *cells])
  return body


def _fields(configs: Sequence[dict[str, Any]]) -> list[list[str]]:
  """A field that a saved config lacks is younger than the run, and had its default's effect."""
  defaults = flatten(plain(schema.get_config()))
  flat = [{**defaults, **flatten(config)} if config else {} for config in configs]
  names = dict.fromkeys([*schema.FIELDS, *(path for config in flat for path in config)])
  body = [[path, *(str(config.get(path, '–')) for config in flat)] for path in names]
  return [row for row in body if len(set(row[1:])) > 1]


@command_line.guarded
def main(argv: Sequence[str] | None = None) -> None:
  """The program; returns the exit code: 2 for a folder without a run, else 0."""
  parser = argparse.ArgumentParser(
    prog='perl-rlhf compare', description=__doc__.split('\n', 1)[0], allow_abbrev=False)
  parser.add_argument('workdir', nargs='+', help='folder of a run')
  parser.add_argument('--format', default='markdown', choices=tuple(formats.FORMATS))
  options = command_line.explaining(parser).parse_args(argv)
  head = ['', *options.workdir]
  workdirs = [paths.of(workdir) for workdir in options.workdir]
  print(formats.FORMATS[options.format](head, rows(workdirs), NOTES))
