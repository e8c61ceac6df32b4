"""What a run reports: metrics.jsonl, TensorBoard, progress, summary.json."""

import io
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TextIO, TypeVar

import jax
import numpy as np
from etils import epath
from tqdm import tqdm

from perl import documents, paths

METRICS, SUMMARY, TENSORBOARD = 'metrics.jsonl', 'summary.json', 'tensorboard'
LINE_SECONDS = 10.
_MOST_BYTES = 2**32


def jsonable(x: Any) -> Any:
  """The value as JSON knows it: arrays as lists, nan and infinities as null.

  Raises:
    TypeError: neither number, string, array, dict nor list.
  """
  if isinstance(x, Mapping):
    return {str(key): jsonable(value) for key, value in x.items()}
  if isinstance(x, list | tuple):
    return [jsonable(value) for value in x]
  if isinstance(x, np.ndarray | np.generic | jax.Array):
    return jsonable(np.asarray(x).tolist())
  if isinstance(x, float) and not math.isfinite(x):
    return None
  if x is None or isinstance(x, str | bool | int | float):
    return x
  if isinstance(x, os.PathLike):
    return os.fspath(x)
  raise TypeError(f'expected what JSON can hold, found {type(x).__name__}; remedy: convert it')


def write_json(path: str | os.PathLike, value: Any) -> None:
  """Writes JSON whole or not at all (a file beside it, then a rename); nan becomes null."""
  text = json.dumps(jsonable(value), indent=2, allow_nan=False, ensure_ascii=False) + '\n'
  paths.write_text(path, text)


def summary(workdir: str | os.PathLike, values: Mapping[str, Any]) -> None:
  """Writes workdir/summary.json; its presence means that the stage is finished."""
  if jax.process_index() == 0:
    write_json(paths.of(workdir) / SUMMARY, values)


def read_jsonl(path: str | os.PathLike) -> list[dict]:
  """The rows of a file of one JSON object a line; a half-written last line is left out.

  Raises:
    ValueError: any other line is no JSON object; file and line are named.
  """
  lines = documents.read_bytes(paths.of(path), most=_MOST_BYTES).split(b'\n')
  rows = []
  for number, line in enumerate(lines, 1):
    if not line.strip():
      continue
    try:
      rows.append(documents.parse(
        line, f'{path}, line {number}', documents.OBJECT, remedy='repair or remove the line'))
    except documents.Malformed:
      if number < len(lines):
        raise
      # No newline after it: a kill cut it short.
  return rows


class Writer:
  """Writes metrics.jsonl and TensorBoard events of one run; on hosts but the first, nothing."""

  def __init__(self, workdir: str | os.PathLike, resumed_step: int | None = None):
    """Opens the files to append.

    Args:
      workdir: gets metrics.jsonl and tensorboard/.
      resumed_step: rows of later steps are dropped, for the run will write them again; -1 drops all
        (a start from scratch), None keeps all.
    """
    self._file = self._board = None
    if jax.process_index() != 0:
      return
    from tensorboardX import SummaryWriter  # seconds to import: only where it is used

    self._workdir = workdir = paths.of(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / METRICS
    kept = ''
    if path.exists():
      rows = read_jsonl(path)
      keep = [r for r in rows if resumed_step is None or r.get('step', 0) <= resumed_step]
      kept = ''.join(json.dumps(row) + '\n' for row in keep)
      paths.write_text(path, kept)
    self._file = path.open('a') if paths.is_local(path) else _Object(path, kept)
    self._events = _Events(workdir / TENSORBOARD)
    purge_step = None if resumed_step is None else resumed_step + 1
    self._board = SummaryWriter(self._events.local, purge_step=purge_step)

  def write(self, step: int, metrics: Mapping[str, Any], prefix: str = '') -> None:
    """Adds a line {"step": n, "time": s, name: value, ...} and scalars; nan is null in the line.

    Args:
      step: the number of steps done.
      metrics: scalars.
      prefix: goes before each name with a '/': 'evaluate' gives 'evaluate/loss'.
    """
    if self._file is None:
      return
    values = {f'{prefix}/{k}' if prefix else k: float(v) for k, v in metrics.items()}
    row = jsonable({'step': int(step), 'time': round(time.time(), 3), **values})
    self._file.write(json.dumps(row, allow_nan=False) + '\n')
    if isinstance(self._file, io.IOBase):
      self._file.flush()  # a kill loses no line that was written
    for name, value in values.items():
      self._board.add_scalar(name, value, int(step))

  def texts(self, name: str, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
    """Adds a line {"step": n, **row} for each row to a file, and a TensorBoard table of them.

    Lines of this step and of later ones are replaced: a resumed run writes them again.

    Args:
      name: of the file in the workdir, of JSON lines.
      step: the number of steps done.
      rows: of one kind: texts and numbers by name.
    """
    if self._file is None or not rows:
      return
    path = self._workdir / name
    kept = [r for r in (read_jsonl(path) if path.exists() else []) if r.get('step', 0) < step]
    lines = [json.dumps(jsonable(row), ensure_ascii=False) + '\n'
             for row in (*kept, *({'step': int(step), **row} for row in rows))]
    paths.write_text(path, ''.join(lines))
    self._board.add_text(path.stem, _markdown(rows), int(step))

  def flush(self) -> None:
    """Puts all that was written where it belongs; an object store gets it here alone."""
    if self._file is not None:
      self._file.flush()
      self._board.flush()
      self._events.copy()

  def close(self) -> None:
    """Flushes and closes both."""
    if self._file is not None:
      self._file.close()
      self._board.close()
      self._events.copy()
      self._file = None

  def __enter__(self) -> 'Writer':
    return self

  def __exit__(self, *exception) -> None:
    self.close()


class _Object:
  """A file of an object store, which cannot be appended to: it is written again as a whole."""

  def __init__(self, path: epath.Path, text: str):
    self._path, self._text = path, [text]

  def write(self, text: str) -> None:
    self._text.append(text)

  def flush(self) -> None:
    self._path.write_text(''.join(self._text))

  close = flush


class _Events:
  """TensorBoard's folder: itself or, for an object store, a local one that is copied there."""

  def __init__(self, folder: epath.Path):
    self._folder = folder
    self._room = None if paths.is_local(folder) else tempfile.TemporaryDirectory()
    self.local = str(folder) if self._room is None else self._room.name

  def copy(self) -> None:
    if self._room is not None:
      self._folder.mkdir(parents=True, exist_ok=True)
      for file in epath.Path(self.local).iterdir():
        (self._folder / file.name).write_bytes(file.read_bytes())


def _markdown(rows: Sequence[Mapping[str, Any]]) -> str:
  """A table of the rows."""
  cell = lambda x: f'{x:.3f}' if isinstance(x, float) else ' '.join(str(x).split())
  line = lambda cells: '|' + '|'.join(text.replace('|', '\\|') for text in cells) + '|'
  return '\n'.join([line(rows[0]), line(['---'] * len(rows[0])),
                    *(line(map(cell, row.values())) for row in rows)])


class _Lines:
  """A file for tqdm that turns its redrawn bar into lines, for logs."""

  def __init__(self, file: TextIO):
    self._file, self._last = file, ''

  def write(self, text: str) -> None:
    line = text.strip()
    if line and line != self._last:
      self._file.write(line + '\n')
      self._last = line

  def flush(self) -> None:
    self._file.flush()


Item = TypeVar('Item')


def watched(items: Sequence[Item], desc: str) -> Iterator[Item]:
  """The items; a bar counts those that are dealt with, where they take more than ten seconds."""
  with progress(len(items), desc=desc, unit='batch', delay=LINE_SECONDS, leave=False) as bar:
    for item in items:
      yield item
      bar.update(1)


def progress(
  total: int, initial: int = 0, desc: str = '', file: TextIO | None = None, unit: str = 'step',
  **options: Any,
) -> tqdm:
  """A tqdm bar with rate and time left; a short line every ~10 s where there is no terminal.

  Args:
    total: steps in all.
    initial: steps done before, in a run that was resumed.
    desc: the stage.
    file: standard error unless given.
    unit: what is counted.
    options: tqdm's own.
  """
  file = sys.stderr if file is None else file
  options = {'total': total, 'initial': initial, 'desc': desc, 'unit': unit, **options}
  if jax.process_index() != 0:
    return tqdm(disable=True, **options)
  if file.isatty():
    return tqdm(file=file, dynamic_ncols=True, **options)
  form = '{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]'
  return tqdm(
    file=_Lines(file), mininterval=LINE_SECONDS, maxinterval=LINE_SECONDS, bar_format=form,
    **options,
  )

