"""Adapters of some layers: of L stacked layers the last n, for a node whose arrays begin with n.

A layer below them is the base's own, and no gradient reaches it.
"""

from collections.abc import Callable
from typing import Any

import jax

from perl.types import Tree


def outside(variables: dict[str, Tree]) -> dict[str, Tree]:
  """The collections without what lies in layers: embeddings, last norm, unembedding."""
  return {name: {k: v for k, v in tree.items() if k != 'layers'}
          for name, tree in variables.items()}


def take(adapter: Tree | None, which: int | slice, layers: int) -> Tree | None:
  """The adapters of a layer, or of a slice of layers, of which each has all or none.

  Args:
    adapter: of one Block, each array stacked [n, ...].
    which: layer i, or layers from .start to .stop - 1.
    layers: L.
  """
  start = which.start if isinstance(which, slice) else which

  def pick(node: Any) -> Any:
    first = layers - _count(node)
    if start < first:
      return None
    at = slice(start - first, which.stop - first) if isinstance(which, slice) else which - first
    return jax.tree.map(lambda x: x[at], node)

  return None if adapter is None else _each(pick, adapter)


def layer(blocks: dict[str, Tree], i: int, layers: int) -> dict[str, Tree]:
  """The collections of layer i, which the compiler knows, out of those of one Block, stacked."""
  own = take(blocks.get('adapter'), i, layers)
  base = {'params': jax.tree.map(lambda w: w[i], blocks['params'])}
  return {**base, 'adapter': own} if own else base


def spans(adapter: Tree | None, start: int, stop: int, layers: int) -> list[tuple[int, int]]:
  """Layers start to stop - 1 cut into runs of layers that have the same adapters."""
  edges = {start, stop}

  def mark(node: Any) -> Any:
    first = layers - _count(node)
    edges.update({first} if start < first < stop else ())
    return node

  _each(mark, adapter or {})
  ordered = sorted(edges)
  return [] if start == stop else list(zip(ordered, ordered[1:]))


def _count(node: Any) -> int:
  return jax.tree.leaves(node)[0].shape[0]


def _each(function: Callable[[Any], Any], tree: Tree) -> Tree:
  """The tree with each node replaced; where it is replaced by None, it is left out."""
  if isinstance(tree, dict):
    layers = {name: _each(function, child) for name, child in tree.items()}
    return {name: child for name, child in layers.items() if child is not None}
  parts = getattr(tree, 'parts', None)  # adapters one over the other, each of its own depth
  if parts is None:
    return function(tree)
  left = tuple(part for part in map(function, parts) if part is not None)
  return tree.replace(parts=left) if left else None
