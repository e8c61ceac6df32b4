"""Writes report.html of a workdir: results, curves, dialogues, config; one file, no links.

perl-rlhf report --workdir=runs/demo
"""

import argparse
import sys
from collections.abc import Sequence

from perl.report import page


def main(argv: Sequence[str] | None = None) -> int:
  """The program; returns the exit code."""
  parser = argparse.ArgumentParser(prog='perl-rlhf report', description='Writes '
                                   'report.html of a workdir.')
  parser.add_argument('--workdir', required=True)
  try:
    print(page.write(parser.parse_args(argv).workdir))
  except FileNotFoundError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  return 0
