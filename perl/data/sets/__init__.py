"""Datasets, a file each: `load(split, kind, ...) -> examples`, and KINDS, the kinds that it has.

A dataset whose kinds depend on the user's files has `kinds(mirror)` beside KINDS; one of which a
first example can be had long before the last has `stream`, which gives those of `load` in turn.
"""

import functools
import hashlib
import pathlib
from types import ModuleType
from typing import Any

from perl import choices, paths
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


def load(dataset: ModuleType, split: str, kind: str, **options: Any) -> list[examples.Example]:
  """All examples of a split."""
  return dataset.load(split, kind, **options)


def first(dataset: ModuleType, split: str, kind: str, **options: Any) -> examples.Example:
  """The first example of a split; no more is read or made than it takes.

  Raises:
    ValueError, OSError: as `load`.
  """
  stream = getattr(dataset, 'stream', dataset.load)
  return next(iter(stream(split, kind, **options)))


def stamp(mirror: str, data_dir: str) -> str:
  """sha256 (hex) of what examples come from, without reading them: the same gives the same.

  It is of the code of perl/data, of the folder of prepared data, and of size and time of each file
  of the mirror.
  """
  files = paths.stamps(mirror) if mirror else []
  return hashlib.sha256(repr((_code(), data_dir, files)).encode()).hexdigest()


@functools.cache
def _code() -> str:
  folder = pathlib.Path(__file__).parents[1]
  return hashlib.sha256(b''.join(
    file.read_bytes() for file in sorted(folder.rglob('*.py')))).hexdigest()
