"""Several runs as one program: a loss and an optimizer mapped over a stack, over one base.

What learns has a leading axis of n, and each of its n members learns as it would alone: from the
same batches, by its own gradient, clipped by its own norm. A stack of n runs is n runs.
"""

import jax
import jax.numpy as jnp
import optax

from perl.train.step import LossFn
from perl.types import Batch, Tree


def loss(loss_fn: LossFn, members: int) -> LossFn:
  """The LossFn of a stack: the mean over its members of what `loss_fn` says of each.

  Args:
    loss_fn: of one member.
    members: n. Each has a key of its own, for dropout.
  """
  mapped = jax.vmap(loss_fn, in_axes=(0, None, None, 0))

  def of_stack(adapters: Tree, base: Tree, batch: Batch, key: jax.Array):
    losses = mapped(adapters, base, batch, jax.random.split(key, members))
    return jax.tree.map(lambda x: x.sum(0), losses)  # totals and weights add

  return of_stack


def optimizer(tx: optax.GradientTransformation, members: int) -> optax.GradientTransformation:
  """`tx` for each member of a stack, with a state of its own.

  The loss is a mean over members, so that a member's part of its gradient is 1 / n of its own: it
  is multiplied by n again, for clipping and Adam's eps to see what they would see of one run.

  Args:
    tx: an optax chain.
    members: n.
  """

  def update(grads: Tree, state: Tree, params: Tree) -> tuple[Tree, Tree]:
    grads = jax.tree.map(lambda g: jnp.float32(members) * g, grads)
    return jax.vmap(tx.update)(grads, state, params)

  return optax.GradientTransformation(jax.vmap(tx.init), update)
