"""Adapters as a tree beside the base: make, merge, unmerge, head, stack, count, split.

The protocol of a method, in `perl/peft/<name>.py`: a flax.struct class with ``project(x, w, key)``
and ``merge(w)``, a class constant FIXED (fields that are data and never trained), and a function
``init(key, weight, **options) -> adapter``. A method that acts on every parameter says
``TAKES_TARGETS = False``. `find(name)` imports the file: there is no registry.
"""

import dataclasses
import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from perl import peft, trees
from perl.quantized import dense
from perl.types import HEAD_READS, Tree


def methods() -> list[str]:
  """The methods there are, by file."""
  own = {'adapters', 'interop'}
  return sorted(m.name for m in pkgutil.iter_modules(peft.__path__) if m.name not in own)


def find(method: str) -> ModuleType:
  """The module of a method.

  Raises:
    ValueError: no such file; the known ones are listed.
  """
  if method not in methods():
    raise ValueError(f'expected peft.name among {methods()}, found {method!r}')
  return importlib.import_module(f'perl.peft.{method}')


def projections(base: Tree) -> list[str]:
  """The paths of the matrices that a pattern can name: 'layers/block/attn/q', ..."""
  return [n.removesuffix('/kernel') for n in trees.flat(base) if n.endswith('/kernel')]


def init(
  key: jax.Array,
  base: Tree,
  method: str,
  *,
  targets: Sequence[str] = ('attn/(q|k|v|o)',),
  head: bool = False,
  reads: Sequence[str] = (),
  **options,
) -> Tree:
  """A fresh adapter: the base's function exactly (for methods that can), plus a head if asked.

  Args:
    key: typed PRNG key.
    base: the frozen parameters (their shapes suffice for methods that do not copy them).
    method: a file of perl/peft.
    targets: patterns over `projections(base)`; methods that act on everything ignore them.
    head: add a reward or value head.
    reads: what else the head reads of a response, of HEAD_READS; see models.lm.score.
    **options: the method's own (rank, alpha, ...).

  Returns:
    a tree of the base's nesting that holds an adapter object at each adapted parameter.

  Raises:
    ValueError: a pattern matches nothing, or nothing would be trained.
  """
  module = find(method)
  leaves = trees.flat(base)
  names = list(leaves)
  if getattr(module, 'TAKES_TARGETS', True):
    names = [f'{n}/kernel' for n in trees.match(projections(base), targets)]
  keys = dict(zip(names, jax.random.split(jax.random.fold_in(key, 0), max(len(names), 1))))
  adapter = trees.nest({n: module.init(keys[n], leaves[n], **options) for n in names})
  if head:
    width = leaves['final_norm/scale'].shape[-1]
    adapter['head'] = init_head(jax.random.fold_in(key, 1), width, reads=reads)
  if trees.count(split(adapter)[0]) == 0:
    raise ValueError(
      f'expected something to train, found no trainable leaf for {method!r} with targets {targets};'
      f' what can be matched: {", ".join(projections(base))}'
    )
  return adapter


def init_head(key: jax.Array, width: int, *, reads: Sequence[str] = ()) -> Tree:
  """A scalar head: kernel normal with std 1 / sqrt(D + 1), bias 0 (Stiennon et al. 2020).

  Weights of the `reads` are 0 at init.

  Raises:
    ValueError: something to read that is not in HEAD_READS.
  """
  if unknown := [name for name in reads if name not in HEAD_READS]:
    raise ValueError(f'expected a head to read some of {HEAD_READS}, found {unknown[0]!r}')
  kernel = jax.random.normal(key, (width, 1), jnp.float32) / np.sqrt(width + 1)
  head = {'kernel': kernel, 'bias': jnp.zeros((1,), jnp.float32)}
  weights = dict(zip(HEAD_READS, (2 * width, 2 * width, 4)))
  return head | {name: jnp.zeros((weights[name],), jnp.float32) for name in reads}


def rebuild(tree: Tree, method: str, options: Mapping[str, Any]) -> Tree:
  """The adapter of a saved tree, flax.serialization.to_state_dict's: nested dicts of arrays.

  Args:
    tree: as it was read.
    method: the file of perl/peft that made it.
    options: holds the method's static fields (dropout); others are passed over.
  """
  module = find(method)
  (kind,) = (c for c in vars(module).values() if isinstance(c, type) and is_adapter(c))
  fields = {f.name: f.metadata.get('pytree_node', True) for f in dataclasses.fields(kind)}
  arrays = {name for name, is_array in fields.items() if is_array}
  static = {n: options[n] for n, is_array in fields.items() if not is_array and n in options}

  def visit(node: Any) -> Any:
    if not isinstance(node, dict):
      return node
    if set(node) == arrays:
      return kind(**node, **static)
    return {name: visit(child) for name, child in node.items()}

  return visit(tree)


def is_adapter(node: Any) -> bool:
  """True for an object of the protocol, False for arrays and dicts."""
  return hasattr(node, 'project') and hasattr(node, 'merge')


def nodes(adapter: Tree) -> dict[str, Any]:
  """{path of the parameter: the adapter object beside it}; a head is none."""
  found = jax.tree_util.tree_leaves_with_path(
    {k: v for k, v in adapter.items() if k != 'head'}, is_leaf=is_adapter
  )
  return {trees.path_string(path): node for path, node in found}


def split(adapter: Tree) -> tuple[Tree, Tree]:
  """(what is trained, what is fixed data such as LoRA's scale); trees.combine is the inverse."""
  fixed = set()
  for path, node in jax.tree_util.tree_leaves_with_path(adapter, is_leaf=is_adapter):
    fixed.update(f'{trees.path_string(path)}/{f}' for f in getattr(node, 'FIXED', ()))
  return trees.partition(adapter, lambda name: name not in fixed)


def merge(base: Tree, adapter: Tree) -> Tree:
  """The base with every adapter folded in, computed in float32, in the base's dtypes.

  A quantized kernel under an adapter becomes a dense one: nothing is quantized again.
  A head stays with the adapter: it has no place in the base.
  """
  return _fold(base, adapter, 'merge')


def unmerge(merged: Tree, adapter: Tree) -> Tree:
  """The inverse of `merge`, up to rounding, for methods that have one.

  Raises:
    ValueError: the method cannot be taken out again (full tuning forgets the base).
  """
  return _fold(merged, adapter, 'unmerge')


def _fold(base: Tree, adapter: Tree, how: str) -> Tree:
  deltas = nodes(adapter)
  leaves = trees.flat(base)
  unknown = sorted(set(deltas) - set(leaves))
  if unknown:
    raise ValueError(
      f'expected an adapter made for this base, found {unknown[0]!r}, which the base lacks; '
      'load the base that the adapter was trained on'
    )
  for name, delta in deltas.items():
    folded = getattr(delta, how)(dense(leaves[name].astype(jnp.float32)))
    leaves[name] = folded.astype(leaves[name].dtype)
  return trees.nest(leaves)


def stack(adapters: list[Tree]) -> Tree:
  """N adapters of one structure -> one with a leading axis of n, to be mapped with jax.vmap.

  Raises:
    ValueError: the structures or shapes differ.
  """
  shapes = [jax.tree.map(jnp.shape, a) for a in adapters]
  if any(s != shapes[0] for s in shapes[1:]):
    raise ValueError(
      'expected adapters of one structure and one set of shapes, found several; '
      'stack runs of the same method, targets and (largest) rank'
    )
  return trees.stack(adapters)


def count(adapter: Tree) -> int:
  """Trainable elements, the head's included."""
  return trees.count(split(adapter)[0])


def size_bytes(adapter: Tree) -> int:
  """Bytes of everything an adapter's checkpoint holds."""
  return trees.size_bytes(adapter)
