"""Trees of arrays: their paths, patterns over paths, counts, bytes, digests, partitions."""

import difflib
import hashlib
from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from perl import patterns as regular
from perl.types import Tree


def path_string(path: Sequence) -> str:
  """'layers/attn/q/kernel' for a key path of jax.tree_util."""
  names = []
  for key in path:
    name = next((getattr(key, n) for n in ('key', 'name', 'idx') if hasattr(key, n)), key)
    names.append(str(name))
  return '/'.join(names)


def is_leaf(node: object) -> bool:
  """True for what stands in an array's place: a kernel of perl/quantized.py, several arrays."""
  return hasattr(node, 'dequantize')


def flat(tree: Tree) -> dict[str, jax.Array]:
  """The leaves by path, in the tree's order; a quantized kernel is one leaf."""
  leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)
  return {path_string(path): leaf for path, leaf in leaves}


def match(names: Iterable[str], patterns: Sequence[str]) -> list[str]:
  """The names that some pattern matches whole, or from a '/' on, in their order.

  Args:
    names: paths, 'layers/attn/q'.
    patterns: regular expressions (perl/patterns.py); 'attn/(q|v)' matches 'layers/attn/q'.

  Raises:
    ValueError: a pattern matches nothing, or is no regular expression; the names that could be
      matched are listed.
  """
  names = list(names)
  chosen = set()
  for pattern in patterns:
    fits = regular.matching(pattern, names, 'the targets', before='(?:.*/)?')
    matched = [name for name, fit in zip(names, fits) if fit]
    if not matched:
      near = difflib.get_close_matches(pattern, names, n=1, cutoff=0.3)
      hint = f'; did you mean {near[0]!r}?' if near else ''
      raise ValueError(
        f'expected a pattern that matches a projection, found {pattern!r}, which matches none{hint}'
        f' What can be matched: {", ".join(names) or "nothing"}')
    chosen.update(matched)
  return [n for n in names if n in chosen]


def count(tree: Tree) -> int:
  """Number of array elements; shapes are enough (jax.ShapeDtypeStruct leaves count too).

  Of a quantized kernel, the weights that it stands for.
  """
  return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(tree, is_leaf=is_leaf))


def size_bytes(tree: Tree) -> int:
  """Bytes that the arrays take, by shape and dtype; of a quantized kernel codes and scales."""
  return sum(int(np.prod(x.shape)) * jnp.dtype(x.dtype).itemsize for x in jax.tree.leaves(tree))


def cast(tree: Tree, dtype: jnp.dtype) -> Tree:
  """Every leaf in that dtype, where it lies."""
  return jax.tree.map(lambda x: x.astype(dtype), tree, is_leaf=is_leaf)


def digest(tree: Tree) -> str:
  """sha256 (hex) over path, shape, dtype and bytes of every leaf, in the order of the paths.

  Of a quantized kernel, over its scheme and those of its arrays.

  Equal exactly when the trees are bitwise equal; used to tie an adapter to its base.
  """
  sha = hashlib.sha256()
  for name, leaf in sorted(flat(tree).items()):
    if is_leaf(leaf):
      sha.update(f'{name}:{leaf.scheme.tag}:'.encode())
    for part in jax.tree.leaves(leaf):
      array = np.ascontiguousarray(jax.device_get(part))
      sha.update(f'{name}:{array.shape}:{array.dtype}:'.encode())
      sha.update(array.tobytes())
  return sha.hexdigest()


def partition(tree: Tree, chosen: Callable[[str], bool]) -> tuple[Tree, Tree]:
  """(the leaves whose path is chosen, the others), each of the tree's shape with None for the rest.

  `combine` is the inverse. None is an empty tree, so gradients and optimizers pass over it.
  """
  take = lambda keep: jax.tree_util.tree_map_with_path(
    lambda p, x: x if chosen(path_string(p)) == keep else None, tree)
  return take(True), take(False)


def combine(first: Tree, second: Tree) -> Tree:
  """The tree whose leaves are those of `first`, and those of `second` where `first` has None."""
  return jax.tree.map(
    lambda a, b: b if a is None else a, first, second, is_leaf=lambda x: x is None)


def nest(leaves: dict[str, object]) -> dict:
  """{'a/b': x} -> {'a': {'b': x}}."""
  out: dict = {}
  for name, leaf in leaves.items():
    node = out
    *parents, last = name.split('/')
    for key in parents:
      node = node.setdefault(key, {})
    node[last] = leaf
  return out


def unstack(tree: Tree) -> list[Tree]:
  """A tree of [n, ...] arrays -> n trees of [...] arrays."""
  leaves = jax.tree.leaves(tree)
  length = leaves[0].shape[0] if leaves else 0
  return [jax.tree.map(lambda x, i=i: x[i], tree) for i in range(length)]


def stack(trees: Sequence[Tree]) -> Tree:
  """N trees of equal structure and shapes -> one with a leading axis of n."""
  return jax.tree.map(lambda *x: jnp.stack(x), *trees)


def spread(base: Tree, adapter: Tree) -> Tree:
  """The adapter tree with what lies at its root laid out beside the base's parameters.

  An object at the root that has ``spread(base) -> {path: adapter}`` stands for adapters of many
  parameters; where one lies already, the new one comes over it.
  """
  roots = [node for node in adapter.values() if hasattr(node, 'spread')]
  if not roots:
    return adapter
  rest = {name: node for name, node in adapter.items() if not hasattr(node, 'spread')}
  places = jax.tree_util.tree_leaves_with_path(rest, is_leaf=lambda x: not isinstance(x, dict))
  nodes = {path_string(path): node for path, node in places}
  for root in roots:
    for path, node in root.spread(base).items():
      nodes[path] = nodes[path].over(node) if path in nodes else node
  return nest(nodes)
