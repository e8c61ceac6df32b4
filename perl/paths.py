"""Paths as users write them: local ones, `~`, and object stores, all through etils.epath.

Whoever reads or writes where a user says opens it by `of`. A place that nobody can serve is refused
there, by name: an unknown scheme would else become a local folder called 'gs:'.
"""

import contextlib
import functools
import importlib.util
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

from etils import epath

from perl import documents
from perl.documents import Kind

SERVED = {'gs': 'gcsfs'}
"""Scheme -> the package that serves it; those that both epath and Orbax, for checkpoints, can."""

_SCHEME = re.compile(r'([A-Za-z][A-Za-z0-9+.-]+):/')


def of(place: str | os.PathLike) -> epath.Path:
  """The path; '~' is the home folder.

  Raises:
    ValueError: a scheme that nobody serves, or whose package is not installed.
  """
  text = os.fspath(place)
  if (scheme := _SCHEME.match(text)) is not None:
    _check(text, scheme[1])
  return epath.Path(text).expanduser() if text.startswith('~') else epath.Path(text)


@functools.cache
def _check(text: str, scheme: str) -> None:
  known = ', '.join(f'{name}://' for name in SERVED)
  if scheme not in SERVED or not text.startswith(f'{scheme}://'):
    raise ValueError(f'expected a local path or one of {known}, found {text!r}; copy it to one of '
                     'these, or mount it as a folder')
  if not any(map(importlib.util.find_spec, (SERVED[scheme], 'tensorflow'))):
    raise ValueError(f'expected the package {SERVED[scheme]} for {text!r}, found it not installed; '
                     f'pip install {SERVED[scheme]}, or give a local path')


def is_local(place: str | os.PathLike) -> bool:
  """Whether the place is on this machine."""
  return '://' not in os.fspath(place)


def absolute(place: str | os.PathLike) -> epath.Path:
  """The whole path, as TensorStore asks; gs:// and its like are whole already."""
  path = of(place)
  return epath.Path(os.path.abspath(path)) if is_local(path) else path


def same(one: str | os.PathLike, other: str | os.PathLike) -> bool:
  """Whether two texts name one place."""
  return absolute(one) == absolute(other)


def read_json(place: str | os.PathLike, kind: Kind = documents.ANY) -> Any:
  """The JSON in a file, of a kind (perl/documents.py).

  Raises:
    OSError: there is no such file.
    ValueError: it holds no JSON, or another kind of value; the file is named.
  """
  return documents.read(of(place), kind, remedy='write the file again')


def write_text(place: str | os.PathLike, text: str) -> None:
  """Writes a file whole or not at all: readers see the old or the new."""
  path = of(place)
  path.parent.mkdir(parents=True, exist_ok=True)
  if not is_local(path):
    path.write_text(text)  # an object is there when it is whole
    return
  handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f'.{path.name}.')
  try:
    with os.fdopen(handle, 'w', encoding='utf-8') as file:
      file.write(text)
      file.flush()
      os.fsync(file.fileno())
    os.chmod(temporary, 0o644)  # mkstemp makes it private
    os.replace(temporary, path)
  except BaseException:
    pathlib.Path(temporary).unlink(missing_ok=True)
    raise


@contextlib.contextmanager
def local_copy(place: str | os.PathLike) -> Iterator[pathlib.Path]:
  """A file as libraries of other languages can open it: itself, or a copy of it for a while."""
  path = of(place)
  if is_local(path):
    yield pathlib.Path(path)
    return
  with tempfile.TemporaryDirectory() as folder:
    copy = pathlib.Path(folder) / path.name
    with path.open('rb') as source, copy.open('wb') as target:
      shutil.copyfileobj(source, target)
    yield copy


def glob(folder: epath.Path, suffixes: tuple[str, ...]) -> list[epath.Path]:
  """The files below a folder whose names end so, sorted (epath refuses '**')."""
  if not folder.is_dir():
    return []
  paths = sorted(folder.iterdir())
  return [file for path in paths for file in (
    glob(path, suffixes) if path.is_dir() else [path] * path.name.endswith(suffixes))]


def size_bytes(place: str | os.PathLike) -> int:
  """Of a file."""
  return os.path.getsize(place) if is_local(place) else of(place).stat().length


def stamps(place: str | os.PathLike) -> list[tuple]:
  """[(name, bytes, times of change)] of a file, or of all files below a folder: cheap to compare.

  Where they are the same, nobody has written there; the contents were not looked at.
  """
  path = of(place)
  files = glob(path, ('',)) if path.is_dir() else [path] * path.exists()
  if not is_local(path):
    return [(str(file), (s := file.stat()).length, s.mtime) for file in files]
  return [(str(file), (s := os.stat(file)).st_size, s.st_mtime_ns, s.st_ctime_ns)
          for file in files]


def free_bytes(place: str | os.PathLike) -> int | None:
  """Room on the device that holds the place, or its nearest folder that exists; None if remote."""
  if not is_local(of(place)):
    return None
  path = pathlib.Path(absolute(place))
  return shutil.disk_usage(next(p for p in (path, *path.parents) if p.exists())).free
