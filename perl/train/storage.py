"""One checkpoint in one folder: a tree of arrays (Orbax) and a JSON document, whole or refused.

A folder holds `tree/` (Orbax: OCDBT, no pickle), `about/` (JSON) and `files.json`, which lists the
bytes and CRC-32 of the files. The list is written last, before Orbax gives the folder its name, so
a folder that carries its name and agrees with its list is whole. Orbax's own commit alone does not
say so: a flipped bit within an array is read back in silence.
"""

import errno
import json
import os
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from perl import documents, paths
from perl.train.layout import Tree, flatten, handler, is_empty, read_tree, storable

FILES = 'files.json'
# Orbax writes these once more when it commits, after the list; nothing is read from them.
_WHAT = '_CHECKPOINT_METADATA'
UNLISTED = (FILES, _WHAT, 'commit_success.txt')
CHUNK_BYTES = 1 << 24


class CorruptError(ValueError):
  """A checkpoint is not whole: files are missing, cut short or altered."""


class DiskFullError(OSError):
  """No space was left on the device for a checkpoint."""


class Writer:
  """Writes checkpoints, each in a folder of its own, one at a time in a background thread."""

  def __init__(self):
    self._folder: epath.Path | None = None
    self._bytes = 0
    options = ocp.AsyncOptions(post_finalization_callback=lambda: list_files(self._unfinished()))
    self._checkpointer = ocp.AsyncCheckpointer(handler(), async_options=options)

  def start(self, folder: epath.Path, tree: Tree, about: dict) -> None:
    """Copies the arrays to the host, then writes in the background.

    On return the caller may donate or change every buffer of the tree: Orbax has moved device
    arrays to host memory (on CPU it holds a reference, which makes a donation copy, so nothing is
    copied without need) and has copied numpy arrays.

    Raises:
      DiskFullError, TypeError, ValueError: see `wait` and `layout.storable`.
    """
    self.wait()
    flat = {name: storable(name, x) for name, x in flatten(tree).items()}
    about = json.loads(json.dumps(about))  # a copy, and an early error for what is no JSON
    self._bytes = sum(x.nbytes for x in flat.values() if not is_empty(x))
    self._folder = folder
    args = ocp.args.Composite(tree=ocp.args.PyTreeSave(flat), about=ocp.args.JsonSave(about))
    self._guard(lambda: self._checkpointer.save(folder, args=args))

  def wait(self) -> None:
    """Blocks until the folder is whole under its name.

    Raises:
      DiskFullError: no space was left; nothing of the folder remains.
    """
    self._guard(self._checkpointer.wait_until_finished)
    self._folder = None

  def close(self) -> None:
    """Waits, then releases the threads."""
    try:
      self.wait()
    finally:
      self._checkpointer.close()

  def _unfinished(self) -> epath.Path:
    """Where Orbax writes until it commits: beside the folder, or (on object stores) the folder."""
    temporary = sorted(self._folder.parent.glob(f'{self._folder.name}.orbax-checkpoint-tmp*'))
    return temporary[-1] if temporary else self._folder

  def _guard(self, action: Callable[[], Any]) -> None:
    try:
      action()
    except Exception as error:
      folder, self._folder = self._folder, None
      if folder is None or not _is_disk_full(error):
        raise
      for rest in folder.parent.glob(f'{folder.name}.orbax-checkpoint-tmp*'):
        rest.rmtree(missing_ok=True)
      raise DiskFullError(
        errno.ENOSPC,
        f'no space left for the checkpoint: expected about {self._bytes:,} bytes free under '
        f'{folder.parent}, found its device full; remedy: free space there, keep fewer checkpoints '
        'or choose another workdir (earlier checkpoints are untouched, resume from them)',
        str(folder),
      ) from error


def _is_disk_full(error: BaseException | None) -> bool:
  """True when ENOSPC is the cause, be it an OSError or TensorStore's message."""
  if error is None:
    return False
  if getattr(error, 'errno', None) == errno.ENOSPC or 'No space left' in str(error):
    return True
  return _is_disk_full(error.__cause__ or error.__context__)


def _checksum(path: epath.Path) -> list[int]:
  """[bytes, CRC-32] of a file."""
  size, crc = 0, 0
  with path.open('rb') as file:
    while chunk := file.read(CHUNK_BYTES):
      size, crc = size + len(chunk), zlib.crc32(chunk, crc)
  return [size, crc]


def _walk(folder: epath.Path) -> Iterator[epath.Path]:
  """The files under the folder that are listed, in order (epath refuses '**')."""
  for path in sorted(folder.iterdir()):
    if path.is_dir():
      yield from _walk(path)
    elif path.name not in UNLISTED:
      yield path


def list_files(folder: epath.Path) -> None:
  """Writes files.json: {path: [bytes, CRC-32]} of the files under the folder."""
  if jax.process_index() == 0:
    table = {p.relative_to(folder).as_posix(): _checksum(p) for p in _walk(folder)}
    (folder / FILES).write_text(json.dumps(table, indent=1))


_LISTED = documents.mapping(documents.Kind(
  '[bytes, CRC-32]', lambda x: isinstance(x, list) and [type(n) for n in x] == [int, int]))
_REMEDY = 'remedy: use another checkpoint, or make this one again'


def verify(folder: epath.Path, under: str = '') -> None:
  """Requires that every file is there, byte for byte, and that there is no other.

  Args:
    folder: of the checkpoint.
    under: verify the files of this sub-folder alone: 'about'.

  Raises:
    CorruptError: names the first file that is missing, cut short, altered or not listed, or says
      what is wrong with the list.
  """
  try:
    content = (folder / FILES).read_bytes()
    there = {path.relative_to(folder).as_posix() for path in _walk(folder)
             if not path.name.startswith('.')}  # some file systems leave such
  except OSError as error:
    raise CorruptError(
      f'{folder}: expected a readable {FILES}, found {error}; {_REMEDY}') from error
  table = documents.parse(content, folder / FILES, _LISTED, remedy=_REMEDY, error=CorruptError)
  if different := table.keys() ^ there:
    name = min(different)
    found = 'one that is not listed' if name in there else 'it missing'
    raise CorruptError(
      f'{folder}: expected {name:.80} in {FILES} and in the folder, found {found}; {_REMEDY}')
  if (folder / _WHAT).exists():  # Orbax reads what kind of checkpoint it is, and nothing else
    documents.read(folder / _WHAT, documents.OBJECT, remedy=_REMEDY, error=CorruptError)
  for name, expected in table.items():
    if not name.startswith(under):
      continue
    try:
      checksum = _checksum(folder / name)
    except OSError as error:
      raise CorruptError(f'{folder}: expected {name}, found {error}; {_REMEDY}') from error
    if checksum != expected:
      raise CorruptError(
        f'{folder}: expected {name} of {expected[0]} bytes (CRC-32 {expected[1]}), '
        f'found {checksum[0]} bytes (CRC-32 {checksum[1]}); {_REMEDY}')


def read_about(folder: epath.Path) -> dict:
  """The JSON document: data_state, meta, metrics.

  Raises:
    CorruptError: its files are not whole.
  """
  verify(folder, 'about/')
  with ocp.Checkpointer(handler()) as reader:
    return reader.restore(folder, args=ocp.args.Composite(about=ocp.args.JsonRestore())).about


def save_tree(folder: str | os.PathLike, tree: Tree, meta: dict) -> None:
  """Writes the tree and its JSON meta; the folder holds the old or the new, never a part.

  Raises:
    DiskFullError: no space was left; what the folder held is still there.
    TypeError, ValueError: a leaf that cannot be stored, named.
  """
  folder = paths.absolute(folder)
  new, old = (folder.parent / f'{folder.name}.{end}' for end in ('new', 'old'))
  on_first_host(lambda: _prepare(new, folder, old))
  writer = Writer()
  try:
    writer.start(new, tree, {'meta': meta})
  finally:
    writer.close()
  on_first_host(lambda: _swap(new, folder, old))


def load_tree(
  folder: str | os.PathLike, like: Tree | None = None, shardings: Tree | None = None,
  change: Callable[[str, Any], Any] | None = None,
) -> tuple[Tree, dict]:
  """(tree, meta) of `save_tree`; `like`, `shardings` and `change` as in `layout.read_tree`.

  Raises:
    FileNotFoundError: no such folder.
    CorruptError: a file is missing, cut short or altered.
    MismatchError: the tree is not `like` this; the leaves are named.
  """
  folder = paths.absolute(folder)
  if not folder.exists():
    raise FileNotFoundError(
      f'expected a saved tree at {folder}, found nothing; remedy: run the stage that makes it')
  verify(folder)
  return read_tree(folder, like, shardings, change), read_about(folder)['meta']


def on_first_host(action: Callable[[], Any]) -> None:
  """Runs the action on process 0; the others wait for it."""
  if jax.process_index() == 0:
    action()
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices('perl.train.storage')


def remove(*folders: epath.Path) -> None:
  """Deletes those that exist."""
  for folder in folders:
    if folder.exists():
      folder.rmtree()


def _prepare(new: epath.Path, folder: epath.Path, old: epath.Path) -> None:
  """Undoes what a kill in `save_tree` left behind."""
  folder.parent.mkdir(parents=True, exist_ok=True)
  if old.exists() and not folder.exists():
    old.rename(folder)
  remove(new, old)


def _swap(new: epath.Path, folder: epath.Path, old: epath.Path) -> None:
  """Puts `new` in the place of `folder`."""
  if folder.exists():
    folder.rename(old)
  new.rename(folder)
  remove(old)
