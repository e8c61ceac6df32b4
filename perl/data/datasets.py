"""Datasets by name: a file of perl/data that has a `load`."""

import importlib
from types import ModuleType


def find(name: str) -> ModuleType:
  """The module perl.data.<name>.

  Raises:
    ValueError: there is none.
  """
  try:
    return importlib.import_module(f'perl.data.{name}')
  except ModuleNotFoundError as error:
    if error.name != f'perl.data.{name}':
      raise
    raise ValueError(
      f'expected the name of a module of perl/data in config.data, found {name!r}'
    ) from error
