"""Runs a study, or prints what was found by one.

    python -m experiments.studies <study> --config=FILE --workdir=FOLDER [flags]
    python -m experiments.studies <study> --results=experiments/results/FILE.json

Finished stages are skipped; --table prints what is there and runs nothing. Start a command once for
each core (`taskset -c 0`, `taskset -c 1`, ...): each process takes what no other has begun, and a
model too small for two cores gains by it.
"""

import importlib
import sys
from collections.abc import Sequence

from perl import choices
from perl.config import command_line, platform

PACKAGE = 'experiments.studies'


def main(argv: Sequence[str] | None = None) -> int:
  """The program; returns the exit code, 2 for a study that there is not.

  The environment is set before the study is imported, and jax with it (perl/config/platform.py).
  """
  name, *rest = (sys.argv[1:] if argv is None else argv) or ['--help']
  known = choices.names(PACKAGE)
  if name in ('-h', '--help'):
    print(f'{__doc__}\nStudies: {", ".join(known)}. <study> --help tells the flags of one.')
    return 0
  if name not in known:
    print(f'error: expected a study among {", ".join(known)}, found {name!r}'
          f'{choices.nearest(name, known)}', file=sys.stderr)
    return 2
  platform.tune(rest)
  command_line.show_logs()
  return importlib.import_module(f'{PACKAGE}._engine').main(name, rest)


if __name__ == '__main__':
  sys.exit(main())
