"""What a field of the config is, and how an error about one reads."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict, config_dict

from perl import documents
from perl.choices import nearest
from perl.jobs._identity import flatten

__all__ = [
  'ConfigError', 'Field', 'default', 'flatten', 'kind', 'nearest', 'nest', 'pick', 'plain']


class ConfigError(ValueError):
  """The user's config, arguments or flags are wrong; the text says expected, found and remedy."""


class Field(NamedTuple):
  """One field: its default, what it means, and what it may be.

  `choices`, `low` and `high` (inclusive) bound the value; `package` is a folder of choices, whose
  files are the values. A default of None is somebody else's value, of type `kind`; a tuple is of
  such values, of text if `kind` does not say.
  """

  default: Any
  meaning: str
  unit: str = ''
  source: str = 'ours'
  choices: tuple = ()
  low: float | None = None
  high: float | None = None
  package: str = ''
  kind: type | None = None

  def doc(self) -> str:
    """'meaning [unit] (source)', as --help_fields prints it."""
    unit = f' [{self.unit}]' if self.unit else ''
    choices = f' One of {", ".join(map(str, self.choices))}.' if self.choices else ''
    return f'{self.meaning}{choices}{unit} ({self.source})'


def default(field: Field) -> Any:
  """The default as a ConfigDict holds it: None with its type, which overrides are read as."""
  return field.default if field.default is not None else config_dict.placeholder(field.kind)


_OF_TYPES = {bool: documents.FLAG, int: documents.whole(-2**53, 2**53), str: documents.TEXT,
             float: documents.number(-1e300, 1e300)}


def kind(field: Field) -> documents.Kind:
  """What a value of the field has to be."""
  if isinstance(field.default, tuple):
    return documents.items(_OF_TYPES[field.kind or str])
  if field.default is None:
    return documents.either(_OF_TYPES[field.kind], documents.NULL)
  return _OF_TYPES[type(field.default)]


def pick(value: Any, names: list[str]) -> str:
  """`nearest`, or an invitation to choose."""
  return nearest(str(value), names) or '; choose one'


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
  """The inverse of `flatten`."""
  out: dict[str, Any] = {}
  for path, value in flat.items():
    *parents, last = path.split('.')
    node = out
    for parent in parents:
      node = node.setdefault(parent, {})
    node[last] = value
  return out


def plain(config: ConfigDict | Mapping) -> dict[str, Any]:
  """The config as JSON gives it back: nested dicts, tuples as lists."""
  return json.loads(json.dumps(nest(flatten(config))))
