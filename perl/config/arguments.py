"""The argument string of an experiment: `coffee:size=tiny,peft=lora`."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

from perl.config.fields import ConfigError, nearest

_TRUE, _FALSE = ('true', '1', 'yes'), ('false', '0', 'no')


class Argument(NamedTuple):
  """A declared argument: its type is that of its default."""

  default: Any
  meaning: str
  choices: tuple = ()
  unless: str = ''  # another argument, beside which this one has no effect


ON_PUBLIC_DATA = {
  'checkpoint': Argument('', 'published model; a small one of our own without'),
  'seed': Argument(0, 'seed of the run'),
  'mirror': Argument('', 'folder laid out as the public home'),
}
"""Of an experiment on a public dataset, over a published model."""


def split(text: str) -> dict[str, str]:
  """'a=1,b=x' -> {'a': '1', 'b': 'x'}; '' -> {}. A value may hold '=', but no comma.

  Raises:
    ConfigError: a piece is no name=value, or a name occurs twice.
  """
  out: dict[str, str] = {}
  for piece in filter(None, (p.strip() for p in text.split(','))):
    name, equals, value = piece.partition('=')
    if not equals or not name:
      raise ConfigError(
        f'expected name=value,name=value after the experiment, found {piece!r}; '
        'write for example coffee:size=tiny,peft=lora')
    if name in out:
      raise ConfigError(f'expected each argument once, found {name!r} twice; keep one')
    out[name] = value
  return out


def merge(text: str, **replaced: Any) -> str:
  """The argument string with some arguments replaced or added: ('size=tiny', seed=1)."""
  pieces = {**split(text), **{name: str(value) for name, value in replaced.items()}}
  return ','.join(f'{name}={value}' for name, value in pieces.items())


def parse(text: str, declared: Mapping[str, Argument]) -> SimpleNamespace:
  """The declared arguments with the values that `text` gives them, typed.

  Raises:
    ConfigError: an unknown name (the nearest is suggested), a value of another type, one that is
      not among the choices, or an argument that another one leaves without effect.
  """
  values = {name: argument.default for name, argument in declared.items()}
  for name, value in split(text).items():
    if name not in declared:
      raise ConfigError(
        f'expected an argument among {", ".join(declared)}, found {name!r}'
        f'{nearest(name, declared)}')
    values[name] = _typed(name, value, declared[name])
  for name in split(text):
    other = declared[name].unless
    if values.get(other):
      raise ConfigError(f'expected no argument {name} beside {other}={values[other]}, found '
                        f'{name}={values[name]}: it would have no effect; leave it out')
  return SimpleNamespace(**values)


def _typed(name: str, text: str, argument: Argument) -> Any:
  kind = type(argument.default)
  try:
    value = _boolean(text) if kind is bool else kind(text)
  except ValueError:
    raise ConfigError(
      f'expected argument {name} to be of type {kind.__name__}, found {text!r}; '
      f'write for example {name}={argument.default}'
    ) from None
  if argument.choices and value not in argument.choices:
    names = [str(choice) for choice in argument.choices]
    raise ConfigError(
      f'expected argument {name} to be one of {", ".join(names)}, found {text!r}'
      f'{nearest(text, names) or "; choose one"}')
  return value


def _boolean(text: str) -> bool:
  if text.lower() not in _TRUE + _FALSE:
    raise ValueError(text)
  return text.lower() in _TRUE
