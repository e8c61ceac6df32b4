"""The experiments: config files, by the name of one that comes with perl or by path.

A checkout has them in configs/, an installed perl in perl/configs/. They are files and no package:
no other folder of that name can take their place.
"""

import importlib.util
import os
import pathlib
from types import ModuleType

from perl import paths
from perl.config.fields import ConfigError, nearest

_PERL = pathlib.Path(__file__).parents[1]
FOLDER = _PERL / 'configs' if (_PERL / 'configs').is_dir() else _PERL.parent / 'configs'


def names() -> tuple[str, ...]:
  """The experiments that come with perl, sorted."""
  return tuple(sorted(path.stem for path in FOLDER.glob('[!_]*.py')))


def find(name: str) -> os.PathLike:
  """The file of an experiment.

  Args:
    name: 'demo', 'configs/demo.py', or the config.json of a finished run.

  Raises:
    ConfigError: there is none; the nearest one is suggested.
  """
  if name in names():
    return FOLDER / f'{name}.py'
  path = paths.of(name)
  if path.suffix not in ('.py', '.json') or not path.is_file():
    siblings = [str(p) for p in sorted(path.parent.glob(f'*{path.suffix}'))] if path.suffix else []
    near = nearest(name, siblings) or nearest(path.stem, names()) or '; choose one'
    raise ConfigError(f'expected a config file (.py, .json) or an experiment among '
                      f'{", ".join(names())}, found {name!r}{near}')
  return path


def load(name: str) -> ModuleType:
  """The module of an experiment, executed anew: its `get_config(text)`, ARGUMENTS, RATES.

  Args:
    name: as for `find`; no config.json.
  """
  path = find(name)
  with paths.local_copy(path) as file:
    spec = importlib.util.spec_from_file_location(f'config_{path.stem}', file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
  if not hasattr(module, 'get_config'):
    raise ConfigError(f'expected {path} to define get_config(), found none; see '
                      f'{FOLDER / "demo.py"}')
  return module
