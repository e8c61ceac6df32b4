"""The one finder of choices: an algorithm, a method, a dataset, a family, a rule is a file.

A folder of choices holds them and nothing else: each public file is one, `_helpers.py` are none.
There is no registry, and nothing is imported to know what there is.
"""

import difflib
import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Iterable, Sequence
from types import ModuleType


def names(package: str) -> tuple[str, ...]:
  """The choices of a folder, sorted; none of them is imported.

  Args:
    package: its dotted name, such as 'perl.rl.algorithms'.
  """
  return tuple(sorted(
    module.name for module in pkgutil.iter_modules(_folders(package))
    if not module.name.startswith('_')))


def find(package: str, name: str) -> ModuleType:
  """The module of a choice. What goes wrong while it is imported is raised as it is.

  Args:
    package: as for `names`.
    name: of the file.

  Raises:
    ValueError: there is no such file; the nearest one is suggested.
  """
  known = names(package)
  if name not in known:
    raise ValueError(f'expected a file of {folder(package)} ({", ".join(known)}), found {name!r}'
                     f'{nearest(str(name), known) or "; choose one"}')
  return importlib.import_module(f'{package}.{name}')


def folder(package: str) -> str:
  """'perl.rl.algorithms' -> 'perl/rl/algorithms', as a text names it."""
  return package.replace('.', '/')


def nearest(name: str, known: Iterable[str]) -> str:
  """'; did you mean X?' for the known name most like `name`, or '' when none is near.

  Dotted paths are compared whole first, then by their last part, so that `rl.learnin_rate` finds
  `rl.optim.learning_rate`.
  """
  known = list(known)
  near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
  if not near:
    last = {path.rsplit('.', 1)[-1]: path for path in reversed(known)}
    near = [last[n] for n in difflib.get_close_matches(name.rsplit('.', 1)[-1], last, n=1)]
  return f'; did you mean {near[0]!r}?' if near else ''


def _folders(package: str) -> Sequence[str]:
  """Where the package lies: of one that is imported already, its path as it is now."""
  if package in sys.modules:
    return sys.modules[package].__path__
  return importlib.util.find_spec(package).submodule_search_locations
