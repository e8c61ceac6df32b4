"""The train step of every job and every algorithm: loss -> gradient of the adapters -> update.

The base is an argument: never closed over, never donated, never differentiated. Only what is learnt
has a gradient and an optimizer state.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import struct

from perl import trees
from perl.train import paging
from perl.types import Batch, Mean, Tree

LossFn = Callable[[Tree, Tree, Batch, jax.Array], tuple[Mean, dict[str, Mean]]]
"""(adapters, base, batch, key) -> (loss, metrics), both not yet divided."""

Split = Callable[[Tree], tuple[Tree, Tree]]
"""adapters -> (what is trained, fixed data), inverse trees.combine."""


class TrainState(struct.PyTreeNode):
  """What a step changes, all of it; donated to the step."""

  step: jax.Array  # i32[], updates done
  adapters: Tree  # float32
  opt_state: Tree
  key: jax.Array  # typed PRNG key; the step's own key is fold_in(key, step)


def _everything(tree: Tree) -> tuple[Tree, Tree]:
  return trees.partition(tree, lambda name: True)


def init_state(
  adapters: Tree, tx: optax.GradientTransformation, key: jax.Array, split: Split = _everything
) -> TrainState:
  """The state before the first step; the optimizer sees the trained leaves alone."""
  trained, _ = split(adapters)
  return TrainState(jnp.zeros((), jnp.int32), adapters, tx.init(trained), key)


def make_train_step(
  loss_fn: LossFn,
  tx: optax.GradientTransformation,
  *,
  split: Split = _everything,
  microbatches: int = 1,
  together: int = 1,
  shardings: Tree | None = None,
) -> Callable[[TrainState, Tree, Batch], tuple[TrainState, dict[str, jax.Array]]]:
  """The jitted step ``(state, base, batch) -> (state, metrics)``.

  The loss and its gradient are summed over microbatches and divided once, by the global weight:
  microbatches, devices and the full batch agree. A loss or gradient that is not finite leaves the
  adapters and the optimizer as they were and sets the metric `finite` to 0; perl/train/loop.py
  stops the run then.

  Args:
    loss_fn: see LossFn.
    tx: an optax chain.
    split: which leaves are trained.
    microbatches: parts that the batch (leading axis of every leaf) is cut into, one after another.
    together: rows in turn that stay in one microbatch (responses to one prompt).
    shardings: placements of the state, which the step keeps; None leaves them to the compiler,
      which on more than one device may move the state and so compile the next step anew. What
      of the optimizer's state lies in the host's memory (perl/train/paging.py) goes back there.

  Returns:
    the step; metrics are f32[]: the loss_fn's, with `loss`, `grad_norm` and `finite`.
  """

  def gradient(trained, fixed, base, batch, key):
    def total(trained):
      loss, metrics = loss_fn(trees.combine(trained, fixed), base, batch, key)
      return loss.total, (loss, metrics)

    grads, out = jax.grad(total, has_aux=True)(trained)
    return grads, out

  def accumulated(trained, fixed, base, batch, key):
    if microbatches == 1:
      return gradient(trained, fixed, base, batch, key)
    parts = jax.tree.map(lambda x: _cut(x, microbatches, together), batch)
    keys = jax.random.split(key, microbatches)
    first = gradient(trained, fixed, base, jax.tree.map(lambda x: x[0], parts), keys[0])

    def add(so_far, part):
      new = gradient(trained, fixed, base, *part)
      return jax.tree.map(jnp.add, so_far, new), None

    rest = jax.tree.map(lambda x: x[1:], parts), keys[1:]
    return jax.lax.scan(add, first, rest)[0]

  def step(state: TrainState, base: Tree, batch: Batch):
    trained, fixed = split(state.adapters)
    if shardings is not None:
      state = state.replace(opt_state=paging.fetch(state.opt_state, shardings.opt_state))
    key = jax.random.fold_in(state.key, state.step)
    grads, (loss, metrics) = accumulated(trained, fixed, base, batch, key)
    divisor = jnp.where(loss.weight > 0, loss.weight, 1.0)
    grads = jax.tree.map(lambda g: g / divisor, grads)
    norm = optax.tree.norm(grads)
    finite = jnp.isfinite(loss.total) & jnp.isfinite(norm)
    updates, opt_state = tx.update(grads, state.opt_state, trained)
    new = optax.apply_updates(trained, updates)
    keep = lambda a, b: jax.tree.map(lambda x, y: jnp.where(finite, x, y), a, b)
    state = TrainState(
      step=state.step + 1,
      adapters=trees.combine(keep(new, trained), fixed),
      opt_state=keep(opt_state, state.opt_state),
      key=state.key,
    )
    values = {name: m.value() for name, m in metrics.items()}
    values |= {'loss': loss.value(), 'grad_norm': norm, 'finite': finite.astype(jnp.float32)}
    return state, values

  placed = None if shardings is None else (shardings, None)
  return jax.jit(step, donate_argnums=0, out_shardings=placed)


def _cut(x: jax.Array, parts: int, together: int) -> jax.Array:
  """[B, ...] -> [parts, B / parts, ...], group g of rows into part g % parts: a batch that is
  spread over devices stays spread in every part.
  """
  if x.shape[0] % (parts * together):
    groups = f' of {together} rows in turn' if together > 1 else ''
    raise ValueError(
      f'expected a batch that {parts} microbatches{groups} divide, found {x.shape[0]} rows; '
      'change batch_size or microbatches'
    )
  groups = x.reshape(-1, parts, together, *x.shape[1:]).swapaxes(0, 1)
  return groups.reshape(parts, -1, *x.shape[1:])
