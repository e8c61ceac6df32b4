"""The base of each role: one for all four, or as it is done elsewhere a whole copy for each."""

import jax
import jax.numpy as jnp
from flax import struct

from perl.types import Tree

LAYOUTS = ('shared', 'separate')


class Bases(struct.PyTreeNode):
  """A base of its own for each role: the conventional layout, PERL's baseline for memory."""

  policy: Tree
  reference: Tree
  reward: Tree
  critic: Tree


def of(base: Tree | Bases, role: str) -> Tree:
  """The parameters that the role's adapter lies over."""
  return getattr(base, role) if isinstance(base, Bases) else base


def lay_out(base: Tree, layout: str) -> Tree | Bases:
  """The base as it is ('shared'), or a copy of it in memory for each role ('separate')."""
  if layout not in LAYOUTS:
    raise ValueError(f'expected rl.layout among {LAYOUTS}, found {layout!r}')
  if layout == 'shared':
    return base
  copy = lambda: jax.tree.map(jnp.copy, base)
  return Bases(policy=base, reference=copy(), reward=copy(), critic=copy())
