"""Options as keywords: each function is given those that it takes, and no misspelt one passes.

An algorithm or a method names the options that it takes as keywords, in each of its functions. What
none of the folder's files names is refused where options come in (`check`).
"""

import functools
import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from perl import choices


def names(function: Callable) -> tuple[str, ...]:
  """The options that a function takes: its keywords; those that a partial has bound are decided."""
  decided = function.keywords if isinstance(function, functools.partial) else {}
  return tuple(name for name, parameter in inspect.signature(function).parameters.items()
               if parameter.kind is parameter.KEYWORD_ONLY and name not in decided)


def taken(function: Callable, options: Mapping[str, Any]) -> dict[str, Any]:
  """What a function takes of the options."""
  return picked(options, names(function))


def picked(options: Mapping[str, Any], known: Iterable[str]) -> dict[str, Any]:
  """The options that are among the known ones."""
  return {name: options[name] for name in known if name in options}


def bound(function: Callable, options: Mapping[str, Any]) -> functools.partial:
  """The function with what it takes of the options."""
  return functools.partial(function, **taken(function, options))


def declared(package: str, functions: Iterable[str]) -> frozenset[str]:
  """The options that any file of a folder of choices names, in any of these of its functions."""
  files = [choices.find(package, name) for name in choices.names(package)]
  return frozenset(option for file in files for name in functions if hasattr(file, name)
                   for option in names(getattr(file, name)))


def check(options: Iterable[str], known: Collection[str], what: str) -> None:
  """Raises ValueError, with the nearest name, for an option that is not known.

  Args:
    options: the names.
    known: all that there are.
    what: whose they are, as the error says it: 'an algorithm'.
  """
  if unknown := sorted(set(options) - set(known)):
    raise ValueError(f'expected options of {what} among {", ".join(sorted(known))}, found '
                     f'{unknown[0]!r}{choices.nearest(unknown[0], known) or "; leave it out"}')
