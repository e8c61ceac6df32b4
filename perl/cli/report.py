"""Writes report.html of a workdir: results, curves, dialogues, config; one file, no links.

perl-rlhf report --workdir=runs/demo
"""

import argparse
from collections.abc import Sequence

from perl.config import command_line
from perl.report import page


@command_line.guarded
def main(argv: Sequence[str] | None = None) -> None:
  """The program; returns the exit code: 2 for a folder that is not there, else 0."""
  parser = argparse.ArgumentParser(prog='perl-rlhf report', description='Writes '
                                   'report.html of a workdir.')
  parser.add_argument('--workdir', required=True)
  print(page.write(command_line.explaining(parser).parse_args(argv).workdir))
