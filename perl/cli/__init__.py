"""The programs that users run, a file each: `perl-rlhf <command>`.

A command has `main(argv) -> exit code`. The environment is set before it is imported, and jax with
it (perl/config/platform.py): commands import what they need at their top.
"""

import ast
import pathlib
import sys
from collections.abc import Sequence
from typing import NoReturn

from perl import choices
from perl.config import command_line, platform


def main(argv: Sequence[str] | None = None) -> int:
  """The program; returns the exit code, 2 for a command that there is not.

  Args:
    argv: the command and its flags; None is what the process was called with.
  """
  command, *rest = (sys.argv[1:] if argv is None else argv) or ['--help']
  if command in ('-h', '--help'):
    print(usage())
    return 0
  if command not in (known := names()):
    print(f'error: expected a command among {", ".join(known)}, found {command!r}'
          f'{choices.nearest(command, known)}', file=sys.stderr)
    return 2
  if command_line.asks_to_see(rest):  # at once: that needs no jax
    return command_line.guarded(command_line.show)(rest)
  platform.tune(rest)
  command_line.show_logs()
  return choices.find(__name__, _file(command)).main(rest)


def names() -> tuple[str, ...]:
  """The commands as users type them: example-model is the file example_model.py."""
  return tuple(name.replace('_', '-') for name in choices.names(__name__))


def _file(command: str) -> str:
  return command.replace('-', '_')


def run(*command: str) -> NoReturn:
  """Ends the process with the exit code of the command under the flags that it was called with."""
  sys.exit(main([*command, *sys.argv[1:]]))


def usage() -> str:
  """The commands with the first line of what each says of itself."""
  width = max(map(len, names()))
  lines = [f'  {name:<{width}}  {_about(name)}' for name in names()]
  return '\n'.join(['usage: perl-rlhf <command> [flags]', '', *lines, '',
                    'perl-rlhf <command> --help tells the flags of one.'])


def _about(command: str) -> str:
  file = pathlib.Path(__file__).parent / f'{_file(command)}.py'
  source = file.read_text(encoding='utf-8')
  return ast.get_docstring(ast.parse(source)).split('\n', 1)[0]
