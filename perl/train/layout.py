"""Trees as Orbax stores and returns them: flat names, and where each array shall lie."""

import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

Tree = Any
SHOWN = 8  # differing leaves that one message names


class MismatchError(ValueError):
  """What was stored does not fit what is asked for."""


def check_meta(expected: dict, found: dict, *, hint: str = '') -> None:
  """Requires that every field of `expected` is in `found` with the same value (as JSON).

  Fields of `found` that are not expected are not compared. `hint` is a further remedy.

  Raises:
    MismatchError: names every field that differs, what was expected, what was found.
  """
  expected, found = json.loads(json.dumps(expected)), json.loads(json.dumps(found))
  lines = [
    f'  {name}: expected {value!r}, found {found.get(name, "nothing")!r}'
    for name, value in expected.items()
    if name not in found or found[name] != value]
  if lines:
    raise MismatchError(
      'the checkpoint was made with other settings:\n' + '\n'.join(lines)
      + f'\nremedy: give the settings of the checkpoint, or another workdir or input{hint}')


def handler() -> ocp.CompositeCheckpointHandler:
  """Orbax's reader and writer of the two parts of a checkpoint."""
  return ocp.CompositeCheckpointHandler(
    tree=ocp.PyTreeCheckpointHandler(), about=ocp.JsonCheckpointHandler())


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


def storable(path: str, x: Any) -> Any:
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
      'remedy: flax.serialization.to_state_dict')
  if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
    raise TypeError(
      f'expected an array of numbers, found a typed key at {path!r}; remedy: jax.random.key_data')
  if not x.size:
    raise ValueError(
      f'expected an array with elements, found shape {x.shape} at {path!r}; '
      'remedy: leave the empty array out of the tree')
  return x


def read_tree(
  folder: epath.Path, like: Tree | None = None, shardings: Tree | None = None,
  change: Callable[[str, Any], Any] | None = None,
) -> Tree:
  """The tree, laid out as `like` and `shardings` say.

  Args:
    folder: a folder that `verify` accepts.
    like: nested dicts with arrays or jax.ShapeDtypeStruct as leaves. A numpy leaf is read as numpy,
      a leaf that is committed to a sharding onto it, any other as an uncommitted jax array.
      None: what was stored, numpy as numpy and jax as uncommitted jax arrays.
    shardings: one jax.sharding.Sharding, or a tree prefix of them; goes before those of `like`.
    change: (path, leaf) -> what stands in its place; the leaves are then read one by one, and each
      is changed before the next is read.

  Raises:
    MismatchError: names the leaves that are missing, left over or of another shape or dtype.
  """
  with ocp.Checkpointer(handler()) as reader:
    stored = reader.metadata(folder).item_metadata['tree'].tree
    wanted = {n: _as_stored(x) for n, x in stored.items()} if like is None else flatten(like)
    _check_leaves(folder, wanted, stored)
    places = {name: _place(x) for name, x in wanted.items()}
    if shardings is not None:
      places |= flatten(jax.tree.broadcast(shardings, unflatten(wanted)))
    how = {n: _restore_args(p) for n, p in places.items() if not is_empty(wanted[n])}
    how |= {n: x for n, x in stored.items() if is_empty(x)}
    restore = lambda **args: reader.restore(
      folder, args=ocp.args.Composite(tree=ocp.args.PyTreeRestore(**args))).tree
    finish = lambda name, restored: _finish(wanted[name], restored[name], places[name])
    if change is None:
      restored = restore(restore_args=how)
      leaf_of = lambda name: finish(name, restored)
    else:
      leaf_of = lambda name: change(name.removeprefix('tree/'), finish(name, restore(
        item={name: how[name]}, restore_args={name: how[name]}, partial_restore=True)))
    return unflatten({n: x if is_empty(x) else leaf_of(n) for n, x in wanted.items()})


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
      + '\nremedy: give the model, adapter and optimizer settings of the checkpoint')


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


def _finish(wanted: Any, leaf: Any, place: Any) -> Any:
  # A copy: the numpy array is Orbax's own, and a jax array that borrows it could be donated.
  return jnp.array(leaf, wanted.dtype) if place is None else leaf
