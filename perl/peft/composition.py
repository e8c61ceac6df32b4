"""Adapters one over the other: what was learnt stays as it is below what learns."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from perl import trees
from perl.peft import adapters
from perl.products import dense
from perl.types import Tree


class Over(struct.PyTreeNode):
  """Several adapters of one place; each sees what those below it make of the base."""

  parts: tuple[Any, ...]  # from the lowest
  frozen: int = struct.field(pytree_node=False, default=0)  # so many of the lowest never learn

  def fixed(self) -> list[str]:
    """Paths of what is never trained."""
    upper = range(self.frozen, len(self.parts))
    return [f'parts/{i}' for i in range(self.frozen)] + [
      f'parts/{i}/{path}' for i in upper for path in adapters.fixed_of(self.parts[i])]

  def over(self, node: Any) -> 'Over':
    """With one more on top, which learns."""
    return self.replace(parts=(*self.parts, node))

  def project(self, x: jax.Array, w: Any, key: jax.Array | None = None) -> jax.Array:
    """The uppermost's, over the matrix that the others make; `key` is the uppermost's alone."""
    for part in self.parts[:-1]:
      w = Under(part, w)
    return self.parts[-1].project(x, w, key)

  def merge(self, w: jax.Array) -> jax.Array:
    """All of them in turn."""
    for part in self.parts:
      w = part.merge(w)
    return w

  def merge_bias(self, b: jax.Array) -> jax.Array:
    """Those that change a projection's bias, in turn."""
    for part in self.parts:
      b = part.merge_bias(b) if hasattr(part, 'merge_bias') else b
    return b

  def act(self, y: jax.Array) -> jax.Array:
    """All of them in turn, at a site of a layer."""
    for part in self.parts:
      y = part.act(y)
    return y

  def keys_values(self, heads: int) -> tuple[jax.Array, jax.Array]:
    """Those of all, one after another."""
    pairs = zip(*(part.keys_values(heads) for part in self.parts))
    return tuple(jnp.concatenate(side, -3) for side in pairs)

  @property
  def tokens(self) -> jax.Array:
    """The embeddings of several soft prompts, one after another."""
    return jnp.concatenate([part.tokens for part in self.parts], -2)


class Under:
  """A matrix W as an adapter below has it: ``x @ Under(part, W)`` is what the part makes of x."""

  def __init__(self, part: Any, w: Any):
    self.part, self.w = part, w

  @property
  def shape(self) -> tuple[int, ...]:
    """W's."""
    return self.w.shape

  def __rmatmul__(self, x: jax.Array) -> jax.Array:
    """X W', without dropout."""
    return self.part.project(x, self.w)

  def dequantize(self) -> jax.Array:
    """W' itself, for a method that has to see it (DoRA).

    Raises:
      ValueError: there is no such matrix.
    """
    if not hasattr(self.part, 'merge'):
      raise ValueError(
        f'expected a method that can be folded into the base below one that reads its weights, '
        f'found {type(self.part).__name__}; train another method over it')
    return self.part.merge(dense(self.w).astype(jnp.float32))


def over(base: Tree, below: Tree, above: Tree) -> Tree:
  """One tree of both: `below` frozen, `above` learning over it, with the head of the upper one.

  Args:
    base: what `below` lies over (shapes suffice).
    below: an adapter that is not to change; its head is left out.
    above: an adapter made for the same base.
  """
  nodes = {path: Over(adapters.parts_of(node), len(adapters.parts_of(node)))
           for path, node in adapters.nodes(trees.spread(base, below)).items()}
  for path, node in adapters.nodes(above).items():
    nodes[path] = nodes[path].over(node) if path in nodes else node
  return trees.nest(nodes) | ({'head': above['head']} if 'head' in above else {})


def upper(adapter: Tree) -> Tree:
  """What lies over what is frozen: the inverse of `over`."""
  top = {}
  for path, node in adapters.nodes(adapter).items():
    parts = node.parts[node.frozen:] if isinstance(node, Over) else (node,)
    if parts:
      top[path] = parts[0] if len(parts) == 1 else Over(parts)
  return trees.nest(top) | ({'head': adapter['head']} if 'head' in adapter else {})
