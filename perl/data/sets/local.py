"""Examples from the user's own files: JSONL (plain or gzipped) and Parquet, in the usual layouts.

`mirror` is a file or a folder.
  A folder holds train, dev and test files (train.jsonl, dev.jsonl.gz, test.parquet, ...), at its
  top or in a folder per kind (preference/train.jsonl), which comes first.
  A file holds all splits: a row belongs to the split of its `group`, or else of its prompt
  (`dialogue.split_of`), so that examples that share a prompt stay together.

perl/data/sources/layouts.py has the layouts of a row. Which kinds there are, the first row of a
file decides: all rows of a file are meant to have one layout.
"""

import functools
import logging
from collections.abc import Iterator
from typing import Any

from etils import epath

from perl import documents, paths
from perl.data.examples import KINDS, SPLITS, Example, check_request
from perl.data.sources import layouts, row_files
from perl.data.text import dialogue

_SUFFIXES = ('.jsonl', '.jsonl.gz', '.parquet')


def load(split: str, kind: str, *, mirror: str = '', data_dir: str = '',
         seed: int = 0) -> list[Example]:
  """The examples of one split ('train', 'dev', 'test') and kind from the files at `mirror`.

  Raises:
    ValueError: an unknown split or kind, no mirror, a malformed row (named by file and line), a
      layout that the kind cannot use, or an empty split.
    FileNotFoundError: there is no file for the split.
  """
  return list(stream(split, kind, mirror=mirror, data_dir=data_dir, seed=seed))


def stream(split: str, kind: str, *, mirror: str = '', data_dir: str = '',
           seed: int = 0) -> Iterator[Example]:
  """The examples of `load` in turn; raises as it does, and of an empty split at its end."""
  del data_dir, seed  # nothing is prepared, nothing is drawn
  check_request('local', split, kind, KINDS)
  file, whole = _file(mirror, split, kind)
  count, unknown = 0, set()
  for where, row in _rows(file):
    unknown |= layouts.unknown(row)
    for example in layouts.examples(row, kind, where):
      if not whole or dialogue.split_of(example.group) == split:
        count += 1
        yield example
  if unknown:
    _warn_once(f'local: {file} has fields that no layout has: {", ".join(sorted(unknown))}; they '
               "stay with the examples (in 'meta', or in the messages that a template reads)")
  if not count:
    raise ValueError(f'local: expected examples of kind {kind!r} in split {split!r}; found none in '
                     f'{file}; add rows, or give a folder with a file for each split')


@functools.cache
def _warn_once(message: str) -> None:
  logging.warning(message)


def kinds(mirror: str = '') -> tuple[str, ...]:
  """The kinds that the files at `mirror` can give, by the names of the fields of a first row each.

  A kind is looked for in the file of train, or else of dev or test.

  Raises:
    ValueError: no mirror, a file without rows, a first row that is no JSON object.
    FileNotFoundError: there is no file of any split.
  """
  path = _place(mirror)
  files = {kind: path if path.is_file() else next(
    filter(None, (_of_split(path, split, kind) for split in SPLITS)), None) for kind in KINDS}
  if not any(files.values()):
    raise _missing(path, 'train', 'document')
  known = {file: layouts.kinds(_first(file)) for file in files.values() if file}
  return tuple(kind for kind, file in files.items() if file and kind in known[file])


def _place(mirror: str) -> epath.Path:
  """The file or folder."""
  if not mirror:
    raise ValueError("local: expected the path of a file or folder; found ''; set data.mirror")
  path = paths.of(mirror)
  if path.is_file() and not path.name.endswith(_SUFFIXES):
    raise ValueError(f'local: expected a file that ends in {", ".join(_SUFFIXES)}; found {path}; '
                     'convert it, or rename it')
  return path


def _file(mirror: str, split: str, kind: str) -> tuple[epath.Path, bool]:
  """(the file that holds the split, whether it holds the other splits too)."""
  path = _place(mirror)
  if path.is_file():
    return path, True
  file = _of_split(path, split, kind)
  if file is None:
    raise _missing(path, split, kind)
  return file, False


def _of_split(path: epath.Path, split: str, kind: str) -> epath.Path | None:
  """The file of a folder that holds a split of a kind."""
  files = (folder / f'{split}{suffix}' for folder in (path / kind, path) for suffix in _SUFFIXES)
  return next((file for file in files if file.is_file()), None)


def _missing(path: epath.Path, split: str, kind: str) -> FileNotFoundError:
  names = sorted(str(p.relative_to(path)) for p in paths.glob(path, _SUFFIXES))
  return FileNotFoundError(
    f'local: expected {split}.jsonl, {split}.jsonl.gz or {split}.parquet in {path} or in '
    f'{path / kind}; found {", ".join(names[:10]) or "no such file"}; add the file of this split')


# --- Rows


def _first(file: epath.Path) -> dict[str, Any]:
  for _, row in _rows(file):
    return row
  raise ValueError(f'local: expected rows in {file}; found none; add rows, or delete the file')


def _rows(file: epath.Path) -> Iterator[tuple[str, dict[str, Any]]]:
  """('FILE, line 3', row) for each row."""
  if file.name.endswith('.parquet'):
    for number, row in enumerate(_columns(file)):
      yield f'{file}, row {number}', row
    return
  for number, line in enumerate(row_files.lines(file), start=1):
    if line.strip():
      where = f'{file}, line {number}'
      yield where, documents.parse(
        line, where, documents.OBJECT, remedy='repair or delete the line')


def _columns(file: epath.Path) -> Iterator[dict[str, Any]]:
  """The rows of a Parquet file, a batch in memory at a time."""
  import pyarrow
  import pyarrow.parquet  # here: heavy, and only for those who have such files

  try:
    with file.open('rb') as stream, pyarrow.parquet.ParquetFile(stream) as table:
      for batch in table.iter_batches():
        yield from batch.to_pylist()
  except (pyarrow.ArrowException, ValueError, OSError) as error:  # ValueError: text that is none
    raise ValueError(f'local: expected a Parquet file in {file}; found {error}; '
                     'write the file again') from error
