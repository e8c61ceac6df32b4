"""From the command line to a config: the experiment, its arguments, overrides by flag."""

import argparse
import functools
import inspect
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict
from ml_collections.config_flags import config_flags

from perl import paths
from perl.config import brought, experiments, runs, schema
from perl.config.fields import ConfigError, flatten, nearest
from perl.config.schema import FIELDS

TRACEBACK = '--traceback'

PLACES = ('--workdir', '--folder', '--out', '--stage', '--adapter', '--ours', '--theirs',
          '--reward', '--json', '--gguf', '--wheels')
"""Flags of any program that name a file or a folder."""

EXPLAINED = (ValueError, OSError, FloatingPointError)
"""Errors whose text says what was expected, what was found, and the remedy."""


def parser(program: str, description: str) -> argparse.ArgumentParser:
  """A parser with the flags of every program that takes a config; its fields come on top.

  Args:
    program: as its users call it: 'perl-rlhf launch'.
    description: what it does.
  """
  reader = argparse.ArgumentParser(
    prog=program, description=description, allow_abbrev=False,
    epilog='--config.<field>=<value> overrides one field of the config; --help_fields lists them.',
  )
  reader.add_argument('--config', required=True, metavar='NAME|FILE[:name=value,...]',
                    help=f'an experiment ({", ".join(experiments.names())}) or a config file, and '
                    'arguments that its header lists')
  reader.add_argument('--workdir', default='', help='folder of the results')
  reader.add_argument('--help_fields', action='store_true',
                    help='print every field of the config with its value, and stop')
  reader.add_argument('--print_config', action='store_true',
                    help='print the fields that differ from their defaults, and stop')
  return explaining(reader)


def explaining(reader: argparse.ArgumentParser) -> argparse.ArgumentParser:
  """The parser, whose help tells of the flag that `guarded` gives every program."""
  reader.add_argument(TRACEBACK, action='store_true',
                      help='show where an error was raised, not its message alone')
  return reader


def parse(
  reader: argparse.ArgumentParser, argv: Sequence[str] | None = None
) -> tuple[argparse.Namespace, list[str]]:
  """(the program's own flags, the overrides as they were given).

  Raises:
    ConfigError: an unknown flag, an unknown field, or no workdir where one is needed.
    SystemExit: the flags asked to see the config, which is printed.
  """
  argv = sys.argv[1:] if argv is None else argv
  options, overrides = reader.parse_known_args(argv)
  check_overrides(overrides, re.findall(r'--\w+', reader.format_usage()))
  if asks_to_see(argv):
    show(argv)
    raise SystemExit(0)
  if not options.workdir:
    raise ConfigError('expected --workdir=<folder>, found none; results are written there')
  return options, overrides


def asks_to_see(argv: Sequence[str]) -> bool:
  """Whether the flags ask to see the config and for nothing else."""
  return '--help_fields' in argv or '--print_config' in argv


def show(argv: Sequence[str]) -> None:
  """Prints what --help_fields or --print_config asks for, the same in every program.

  Args:
    argv: flags; those of the program itself mean nothing here.
  """
  options, words = parser('perl-rlhf', '').parse_known_args(argv)
  config = read(options.config, [
    word for before, word in zip(['', *words], words)
    if overridden(word) or (overridden(before) and '=' not in before and word[0] != '-')])
  print(help_fields(config) if options.help_fields else differences(config))


def check_overrides(overrides: Sequence[str], flag_names: Sequence[str] = ()) -> None:
  """Raises ConfigError, with the nearest name, for what is no override of a field."""
  takes_value = False
  for text in overrides:
    if not text.startswith('-') and takes_value:
      takes_value = False
      continue
    name, equals, _ = text.partition('=')
    path = overridden(text)
    if path is None:
      raise ConfigError(
        f'expected flags of this program or --config.<field>=<value>, found {text!r}'
        f'{nearest(name, flag_names) or "; see --help"}')
    if path not in FIELDS:
      inside = [p for p in FIELDS if p.startswith(f'{path}.')]
      hint = f'; it is a section of {", ".join(inside)}' if inside else nearest(path, FIELDS)
      raise ConfigError(
        f'expected --config.<field> to name a field, found {path!r}{hint} '
        '(--help_fields lists them all)')
    takes_value = not equals


def overridden(text: str) -> str | None:
  """'--config.peft.rank=16' -> 'peft.rank'; None for what is no override."""
  name = text.partition('=')[0]
  for prefix in ('--config.', '--noconfig.'):
    if name.startswith(prefix):
      return name.removeprefix(prefix)
  return None


def read(spec: str, overrides: Sequence[str] = ()) -> ConfigDict:
  """The config of 'demo:name=value,...' with overrides ('--config.peft.rank=16'), locked.

  A finished run's config.json is a config file too: it repeats that run.

  Raises:
    ConfigError: no such file, wrong arguments, an unknown field or a value of another type.
  """
  check_overrides(overrides)
  config = load(spec).lock()
  config = _override(config, overrides) if overrides else config
  _check_code(config, spec.partition(':')[0], overrides)
  if config.model.checkpoint:
    asked = 'stages' in map(overridden, overrides)
    config.stages = brought.left(config, config.stages, asked=asked)
  return config


def load(spec: str) -> ConfigDict:
  """The config that the experiment's get_config returns, without overrides."""
  name, text = re.fullmatch(r'(?s)((?:\w+://)?[^:]*):?(.*)', spec).groups()
  path = experiments.find(name)
  if path.suffix == '.json':
    return saved(path)
  get_config = experiments.load(name).get_config
  if not text:
    return get_config()
  if not inspect.signature(get_config).parameters:
    raise ConfigError(
      f'expected no arguments for {name}, found {text!r}; override fields with '
      '--config.<field>=<value>')
  return get_config(text)


def saved(path: os.PathLike) -> ConfigDict:
  """The resolved config that a run left in its workdir.

  Raises:
    ConfigError: it is no config, or has fields that there are not.
  """
  config = schema.get_config()
  for name, value in runs.recorded(paths.of(path)).items():
    if name not in FIELDS:
      raise ConfigError(
        f'expected the fields of perl/config/schema.py in {path}, found {name!r}'
        f'{nearest(name, FIELDS)}; '
        'it was saved by another version: check that out, or remove the field')
    fixed = tuple(value) if isinstance(value, list) else value
    config.update_from_flattened_dict({name: fixed})
  return config


def _check_code(config: ConfigDict, spec: str, overrides: Sequence[str]) -> None:
  """A saved config, perhaps somebody else's, may not say which code is imported: the user does.

  Raises:
    ConfigError: it names rules as 'module:function', and the command line does not.
  """
  foreign = [name for name in config.rl.rules if ':' in name]
  if spec.endswith('.json') and foreign and 'rl.rules' not in map(overridden, overrides):
    raise ConfigError(
      f'expected rl.rules of {spec} to be files of perl/rl/rules, found {foreign[0]!r}, which '
      'would be imported and run; if you trust that code, ask for it: '
      f'--config.rl.rules="{config.rl.rules}"')


def _override(config: ConfigDict, overrides: Sequence[str]) -> ConfigDict:
  """ml_collections' own flags, on values of their own so that nothing global changes."""
  argv = [sys.argv[0], *overrides]
  values = flags.FlagValues()
  try:
    config_flags.DEFINE_config_dict('config', config, flag_values=values, sys_argv=argv)
    values(argv)
  except (flags.Error, TypeError, ValueError) as error:
    raise ConfigError(_wrong_type(config, overrides, str(error))) from None
  return values.config


def _wrong_type(config: ConfigDict, overrides: Sequence[str], error: str) -> str:
  """The raw text of config_flags, as expected, found and remedy where the flag can be told."""
  for text in overrides:
    path = overridden(text)
    if path and f'config.{path}' in error:
      value = flatten(config)[path]
      return (f'expected {path} to be of type {type(value).__name__}, found {text!r} ({error}); '
              f'write for example --config.{path}={value}')
  return f'expected overrides as --config.<field>=<value>, found {list(overrides)} ({error})'


def guarded(program: Callable[..., None]) -> Callable[..., int]:
  """The program, whose last argument are its flags, with an exit code.

  What is wrong with a config, a file or the data ends in a message and 2; with --traceback, in the
  traceback of whatever raised it.
  """
  @functools.wraps(program)
  def run(*args: Any) -> int:
    *others, argv = args or (None,)
    argv = sys.argv[1:] if argv is None else argv
    try:
      _check_places(argv)
      program(*others, [text for text in argv if text != TRACEBACK])
    except EXPLAINED as error:
      if TRACEBACK in argv:
        raise
      where = '' if isinstance(error, ConfigError) else f'\n({TRACEBACK} shows where)'
      print(f'error: {error}{where}', file=sys.stderr)
      return 2
    except SystemExit as stop:  # a job left on a signal (train.loop.Interrupted), or --help
      if hasattr(stop, 'message'):
        print(stop.message, file=sys.stderr)
      return stop.code or 0
    return 0

  return run


def _check_places(argv: Sequence[str]) -> None:
  """Raises ValueError for a place that nobody serves, before anything is read or computed."""
  for text, after in zip(argv, [*argv[1:], '']):
    flag, equals, value = text.partition('=')
    if flag in PLACES:
      paths.of(value if equals else after)


def show_logs() -> None:
  """Lets perl's own log lines through (what was cut, resumed, skipped), but not the libraries'."""
  logging.basicConfig(level=logging.INFO, format='%(levelname).1s %(message)s')
  for name in ('absl', 'jax', 'orbax', 'grain', 'matplotlib', 'tensorboardX'):
    logging.getLogger(name).setLevel(logging.WARNING)


def help_fields(config: ConfigDict) -> str:
  """Every field as 'path = value' with its meaning, unit and source below."""
  values = flatten(config)
  return '\n'.join(
    f'{path} = {values[path]!r}\n    {field.doc()}' for path, field in FIELDS.items())


def differences(config: ConfigDict) -> str:
  """The fields that differ from their defaults, a line 'path = value' each.

  The flag --config.<path>=<value> repeats each of them, in a shell with quotes around it.
  """
  values = flatten(config)
  text = lambda value: value if isinstance(value, str) else repr(value)
  return '\n'.join(f'{path} = {text(values[path])}' for path, field in FIELDS.items()
                   if values[path] != field.default)
