"""Datasets, a file each: `load(split, kind, ...) -> examples`, and KINDS, the kinds that it has.

A dataset whose kinds depend on the user's files has `kinds(mirror)` beside KINDS.
"""

from types import ModuleType

from perl import choices
from perl.data import examples

SETS = 'perl.data.sets'
"""The folder of datasets."""


def kinds(dataset: str | ModuleType, *, mirror: str = '') -> tuple[str, ...]:
  """The kinds of example that a dataset has, in the order of `examples.KINDS`; none is loaded.

  Args:
    dataset: its name, or its module.
    mirror: as for `load`; a dataset of the user's own files looks at the first row of each.

  Raises:
    ValueError: no such dataset, or a file of the user's that has no row or whose first row is
      broken.
    FileNotFoundError: the user's files are not there.
  """
  module = choices.find(SETS, dataset) if isinstance(dataset, str) else dataset
  ask = getattr(module, 'kinds', None)
  known = ask(mirror) if ask else module.KINDS
  return tuple(kind for kind in examples.KINDS if kind in known)
