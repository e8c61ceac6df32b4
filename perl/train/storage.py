"""One checkpoint in one folder: a tree of arrays (Orbax) and a JSON document, whole or refused.

A folder holds `tree/` (Orbax: OCDBT, no pickle), `about/` (JSON) and `files.json`, which lists the
bytes and CRC-32 of every file. The list is written last, before Orbax gives the folder its name, so
a folder that carries its name and agrees with its list is whole. Orbax's own commit alone does not
say so: a flipped bit within an array is read back in silence.
"""

import errno
import json
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

Tree = Any
FILES = 'files.json'
CHUNK_BYTES = 1 << 24
SHOWN = 8  # differing leaves that one message names


class MismatchError(ValueError):
  """What was stored does not fit what is asked for."""


class CorruptError(ValueError):
  """A checkpoint is not whole: files are missing, cut short or altered."""


class DiskFullError(OSError):
  """No space was left on the device for a checkpoint."""


def check_meta(expected: dict, found: dict) -> None:
  """Requires that every field of `expected` is in `found` with the same value (as JSON).

  Fields of `found` that are not expected are not compared.

  Raises:
    MismatchError: names every field that differs, what was expected, what was found.
  """
  expected, found = json.loads(json.dumps(expected)), json.loads(json.dumps(found))
  lines = [
    f'  {name}: expected {value!r}, found {found.get(name, "nothing")!r}'
    for name, value in expected.items()
    if name not in found or found[name] != value
  ]
  if lines:
    raise MismatchError(
      'the checkpoint was made with other settings:\n' + '\n'.join(lines)
      + '\nremedy: give the settings of the checkpoint, or another workdir or input'
    )


def flatten(tree: Tree, name: str = 'tree') -> dict[str, Any]:
  """{'tree/a/b': leaf} of nested dicts; {} and None are leaves, so that the structure is kept.

  Orbax joins names by '.', and so confuses {'a.b': x} with {'a': {'b': x}}: '.' is escaped, as is
  our own '/'.
  """
  if not isinstance(tree, dict) or not tree:
    return {name: tree}
  flat = {}
  for key in sorted(tree):
    safe = str(key).replace('%', '%25').replace('.', '%2E').replace('/', '%2F')
    flat |= flatten(tree[key], f'{name}/{safe}')
  return flat


def unflatten(flat: dict[str, Any]) -> Tree:
  """The inverse of `flatten`."""
  root: dict = {}
  for name, leaf in flat.items():
    keys = [k.replace('%2F', '/').replace('%2E', '.').replace('%25', '%') for k in name.split('/')]
    node = root
    for key in keys[:-1]:
      node = node.setdefault(key, {})
    node[keys[-1]] = leaf
  return root['tree']


def is_empty(leaf: Any) -> bool:
  """True for {} and None, which hold no array."""
  return leaf is None or isinstance(leaf, dict)


def _storable(path: str, x: Any) -> Any:
  """The leaf as an array that Orbax can store; Python's numbers become numpy arrays of shape ().

  Raises:
    TypeError: no array of numbers, or a typed PRNG key.
    ValueError: an array without elements.
  """
  if is_empty(x):
    return x
  if isinstance(x, bool | int | float | np.generic):
    x = np.asarray(x)
  if not isinstance(x, jax.Array | np.ndarray) or x.dtype == object:
    raise TypeError(
      f'expected nested dicts of arrays, found {type(x).__name__} at {path!r}; '
      'remedy: flax.serialization.to_state_dict'
    )
  if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
    raise TypeError(
      f'expected an array of numbers, found a typed key at {path!r}; remedy: jax.random.key_data'
    )
  if not x.size:
    raise ValueError(
      f'expected an array with elements, found shape {x.shape} at {path!r}; '
      'remedy: leave the empty array out of the tree'
    )
  return x


class Writer:
  """Writes checkpoints, each in a folder of its own, one at a time in a background thread."""

  def __init__(self):
    self._folder: epath.Path | None = None
    self._bytes = 0
    options = ocp.AsyncOptions(post_finalization_callback=lambda: list_files(self._unfinished()))
    handler = ocp.CompositeCheckpointHandler()
    self._checkpointer = ocp.AsyncCheckpointer(handler, async_options=options)

  def start(self, folder: epath.Path, tree: Tree, about: dict) -> None:
    """Copies the arrays to the host, then writes in the background.

    On return the caller may donate or change every buffer of the tree: Orbax has moved device arrays
    to host memory (on CPU it holds a reference, which makes a donation copy) and copied numpy arrays.

    Raises:
      DiskFullError, TypeError, ValueError: see `wait` and `_storable`.
    """
    self.wait()
    flat = {name: _storable(name, x) for name, x in flatten(tree).items()}
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
        f'no space left for the checkpoint: expected about {self._bytes:,} bytes on the device of '
        f'{folder.parent}, found it full; remedy: free space there, keep fewer checkpoints or choose'
        ' another workdir (earlier checkpoints are untouched, resume from them)',
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


def list_files(folder: epath.Path) -> None:
  """Writes files.json: {path: [bytes, CRC-32]} of every file under the folder."""
  if jax.process_index() == 0:
    files = sorted(p for p in folder.rglob('*') if not p.is_dir() and p.name != FILES)
    table = {p.relative_to(folder).as_posix(): _checksum(p) for p in files}
    (folder / FILES).write_text(json.dumps(table, indent=1))


def verify(folder: epath.Path) -> None:
  """Requires that every file is there, byte for byte.

  Raises:
    CorruptError: names the first file that is missing, cut short or altered.
  """
  remedy = 'remedy: use another checkpoint, or make this one again'
  try:
    table = json.loads((folder / FILES).read_text())
  except (OSError, ValueError) as error:
    raise CorruptError(f'{folder}: expected a readable {FILES}, found {error}; {remedy}') from error
  for name, expected in table.items():
    try:
      found = _checksum(folder / name)
    except OSError as error:
      raise CorruptError(f'{folder}: expected {name}, found {error}; {remedy}') from error
    if found != expected:
      raise CorruptError(
        f'{folder}: expected {name} of {expected[0]} bytes (CRC-32 {expected[1]}), '
        f'found {found[0]} bytes (CRC-32 {found[1]}); {remedy}'
      )


def read_about(folder: epath.Path) -> dict:
  """The JSON document."""
  with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
    return reader.restore(folder, args=ocp.args.Composite(about=ocp.args.JsonRestore())).about


def read_tree(folder: epath.Path, like: Tree | None = None, shardings: Tree | None = None) -> Tree:
  """The tree, laid out as `like` and `shardings` say.

  Args:
    folder: a folder that `verify` accepts.
    like: nested dicts with arrays or jax.ShapeDtypeStruct as leaves. A numpy leaf is read as numpy,
      a leaf that is committed to a sharding onto it, any other as an uncommitted jax array.
      None: what was stored, numpy as numpy and jax as uncommitted jax arrays.
    shardings: one jax.sharding.Sharding, or a tree prefix of them; goes before those of `like`.

  Raises:
    MismatchError: names the leaves that are missing, left over or of another shape or dtype.
  """
  with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
    stored = reader.metadata(folder).item_metadata['tree'].tree
    wanted = {n: _as_stored(x) for n, x in stored.items()} if like is None else flatten(like)
    _check_leaves(folder, wanted, stored)
    places = {name: _place(x) for name, x in wanted.items()}
    if shardings is not None:
      places |= flatten(jax.tree.broadcast(shardings, unflatten(wanted)))
    how = {n: _restore_args(p) for n, p in places.items() if not is_empty(wanted[n])}
    how |= {n: x for n, x in stored.items() if is_empty(x)}
    args = ocp.args.PyTreeRestore(restore_args=how)
    found = reader.restore(folder, args=ocp.args.Composite(tree=args)).tree
  return unflatten({
    n: x if is_empty(x) else _finish(x, found[n], places[n]) for n, x in wanted.items()
  })


def _as_stored(x: Any) -> Any:
  """A stand-in of the leaf that was stored; only device arrays carry a sharding."""
  if is_empty(x):
    return x
  if x.sharding is None:
    return np.broadcast_to(np.zeros((), x.dtype), x.shape)
  return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _check_leaves(folder: epath.Path, wanted: dict, stored: dict) -> None:
  describe = lambda x: 'nothing' if is_empty(x) else f'{x.dtype}{list(x.shape)}'
  names = sorted({n for flat in (wanted, stored) for n, x in flat.items() if not is_empty(x)})
  pairs = [(n, describe(wanted.get(n)), describe(stored.get(n))) for n in names]
  lines = [f'  {n[5:]}: expected {a}, found {b}' for n, a, b in pairs if a != b]
  if lines:
    more = [f'  and {len(lines) - SHOWN} more'] if len(lines) > SHOWN else []
    raise MismatchError(
      f'{folder} holds another tree:\n' + '\n'.join(lines[:SHOWN] + more)
      + '\nremedy: give the model, adapter and optimizer settings of the checkpoint'
    )


def _place(x: Any) -> Any:
  """A sharding, np.ndarray (host), or None: the default device, uncommitted."""
  if isinstance(x, np.ndarray | np.generic):
    return np.ndarray
  # An array that nobody has placed goes back unplaced: a committed one would clash with a mesh, or
  # compile the step anew.
  return None if isinstance(x, jax.Array) and not x.committed else getattr(x, 'sharding', None)


def _restore_args(place: Any) -> ocp.RestoreArgs:
  if isinstance(place, jax.sharding.Sharding):
    return ocp.ArrayRestoreArgs(sharding=place)
  return ocp.RestoreArgs(restore_type=np.ndarray)


def _finish(wanted: Any, found: Any, place: Any) -> Any:
  # A copy: the numpy array is Orbax's own, and a jax array that borrows it could be donated.
  return jnp.array(found, wanted.dtype) if place is None else found
