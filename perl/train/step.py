"""The train step of every job and every algorithm: loss -> gradient of the adapters -> update.

The base is an argument: never closed over, never donated, never differentiated. Only what is learnt
has a gradient and an optimizer state.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import struct

from perl import machine, trees
from perl.train import paging, parts
from perl.types import Batch, Mean, Tree

Losses = Mean | dict[str, Mean]
"""A loss, or the terms of one: each is divided by its own weight, then they are added."""

LossFn = Callable[[Tree, Tree, Batch, jax.Array], tuple[Losses, dict[str, Mean]]]
"""(adapters, base, batch, key) -> (loss, metrics), both not yet divided."""

Split = Callable[[Tree], tuple[Tree, Tree]]
"""adapters -> (what is trained, fixed data), inverse trees.combine."""

Prepare = Callable[['TrainState', Tree, Batch], tuple['TrainState', Batch]]
"""(state, base, batch) -> (state, batch): once a step, on the whole batch, without gradient."""


class TrainState(struct.PyTreeNode):
  """What a step changes, all of it; donated to the step."""

  step: jax.Array  # i32[], batches done
  adapters: Tree  # float32
  opt_state: Tree
  key: jax.Array  # typed PRNG key; the step's own key is fold_in(key, step)
  running: Tree = struct.field(default_factory=dict)  # statistics that a job keeps, see `Prepare`


def _everything(tree: Tree) -> tuple[Tree, Tree]:
  return trees.partition(tree, lambda name: True)


def init_state(
  adapters: Tree, tx: optax.GradientTransformation, key: jax.Array, split: Split = _everything,
  running: Tree | None = None,
) -> TrainState:
  """The state before the first step; the optimizer sees the trained leaves alone."""
  trained, _ = split(adapters)
  return TrainState(jnp.zeros((), jnp.int32), adapters, tx.init(trained), key, running or {})


def make_train_step(
  loss_fn: LossFn,
  tx: optax.GradientTransformation,
  *,
  split: Split = _everything,
  microbatches: int = 1,
  divisible: bool = True,
  together: int = 1,
  shardings: Tree | None = None,
  prepare: Prepare | None = None,
  epochs: int = 1,
  minibatches: int = 1,
  stop: Callable[[dict[str, jax.Array]], jax.Array] | None = None,
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
    microbatches: parts that what an update learns from (leading axis of every leaf) is cut into,
      one after another, at least; see perl/train/parts.py for when there are more.
    divisible: whether there may be more: not where the loss of a row is one of the whole batch.
    together: rows in turn that stay in one part (responses to one prompt).
    shardings: placements of the state, which the step keeps; None leaves them to the compiler,
      which on more than one device may move the state and so compile the next step anew. What
      of the optimizer's state lies in the host's memory (perl/train/paging.py) goes back there.
    prepare: see Prepare.
    epochs: passes over the batch.
    minibatches: updates in a pass, each of its own rows, drawn anew for each pass.
    stop: metrics of an update -> bool[]: the batch teaches no more, further updates are left out.

  Returns:
    the step; metrics are f32[]: the loss_fn's, with `loss`, `grad_norm` and `finite`, means over
    the updates; with several of them `updates` says how many were made.
  """
  divisible = divisible and machine.on_cpu()

  def total(trained, fixed, base, batch, key, weights):
    losses, metrics = loss_fn(trees.combine(trained, fixed), base, batch, key)
    terms = _terms(losses)
    over = weights or {name: term.weight for name, term in terms.items()}
    shares = [term.total / _positive(over[name]) for name, term in terms.items()]
    return functools.reduce(jnp.add, shares), metrics

  def gradient(*arguments):
    (loss, metrics), grads = jax.value_and_grad(total, has_aux=True)(*arguments)
    return loss, grads, metrics

  def accumulated(trained, fixed, base, batch, key):
    cuts, ways = microbatches, 1 if shardings is None else shardings.step.num_devices
    if divisible:
      kept = lambda part: jax.vjp(lambda t: total(t, fixed, base, part, key, {})[0], trained)[1]
      cuts = parts.count(kept, base, batch, microbatches, together * ways)
    if cuts == 1:
      return gradient(trained, fixed, base, batch, key, {})
    pieces = jax.tree.map(lambda x: _cut(x, cuts, together), batch), jax.random.split(key, cuts)

    def weigh(piece):  # masks alone: the compiler drops the model from it
      losses, _ = loss_fn(trees.combine(trained, fixed), base, *piece)
      return {name: term.weight for name, term in _terms(losses).items()}

    weights = jax.tree.map(lambda x: x.sum(0), jax.lax.map(weigh, pieces))
    first = gradient(trained, fixed, base, *jax.tree.map(lambda x: x[0], pieces), weights)
    rest = jax.tree.map(lambda x: x[1:], pieces)
    if ways == 1:
      # One after another also where there are two, whose loop of one turn is none to the compiler.
      # Over several devices the parts' reductions keep their order; a barrier between them lets
      # devices of a busy CPU wait for one another for ever.
      first, rest = jax.lax.optimization_barrier((first, rest))

    def add(so_far, piece):
      new = gradient(trained, fixed, base, *piece, weights)
      return jax.tree.map(jnp.add, so_far, new), None

    return jax.lax.scan(add, first, rest)[0]

  def update(state: TrainState, base: Tree, batch: Batch, key: jax.Array):
    trained, fixed = split(state.adapters)
    loss, grads, metrics = accumulated(trained, fixed, base, batch, key)
    norm = optax.tree.norm(grads)
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    updates, opt_state = tx.update(grads, state.opt_state, trained)
    new = optax.apply_updates(trained, updates)
    keep = lambda a, b: jax.tree.map(lambda x, y: jnp.where(finite, x, y), a, b)
    state = state.replace(
      adapters=trees.combine(keep(new, trained), fixed),
      opt_state=keep(opt_state, state.opt_state),
    )
    values = {name: m.value() for name, m in metrics.items()}
    return state, values | {
      'loss': loss, 'grad_norm': norm, 'finite': finite.astype(jnp.float32)}

  several = epochs * minibatches > 1
  run = _several(update, epochs, minibatches, together, stop) if several else update

  def step(state: TrainState, base: Tree, batch: Batch):
    if shardings is not None:
      state = state.replace(opt_state=paging.fetch(state.opt_state, shardings.opt_state))
    if prepare is not None:
      state, batch = jax.lax.stop_gradient(prepare(state, base, batch))
    key = jax.random.fold_in(state.key, state.step)
    state, values = run(state, base, batch, key)
    return state.replace(step=state.step + 1), values

  placed = None if shardings is None else (shardings, None)
  return jax.jit(step, donate_argnums=0, out_shardings=placed)


Update = Callable[[TrainState, Tree, Batch, jax.Array], tuple[TrainState, dict[str, jax.Array]]]
"""(state, base, rows, key) -> (state, metrics): one update of the adapters."""


def _several(
  update: Update, epochs: int, minibatches: int, together: int,
  stop: Callable[[dict[str, jax.Array]], jax.Array] | None,
) -> Update:
  """Several epochs of minibatches as one `update`, or what of them comes before `stop`."""

  def updates(state: TrainState, base: Tree, batch: Batch, key: jax.Array):
    keys = jax.random.split(key, epochs)
    parts = jax.vmap(lambda key: _shuffled(key, batch, minibatches, together))(keys)
    parts = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), parts)
    shapes = jax.eval_shape(update, state, base, jax.tree.map(lambda x: x[0], parts), key)[1]
    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def one(carry, part):
      state, stopped = carry
      number, rows = part
      state, values = jax.lax.cond(
        stopped, lambda state: (state, nothing),
        lambda state: update(state, base, rows, jax.random.fold_in(key, number)), state)
      now = stopped if stop is None else stopped | stop(values)
      return (state, now), (values, ~stopped)

    numbers = jnp.arange(epochs * minibatches)
    (state, _), (values, done) = jax.lax.scan(one, (state, jnp.zeros((), bool)), (numbers, parts))
    mean = lambda x: jnp.where(done, x, 0.0).sum() / done.sum()
    least = jnp.where(done, values['finite'], 1.0).min()
    return state, {name: mean(x) for name, x in values.items()} | {
      'finite': least, 'updates': done.sum().astype(jnp.float32)}

  return updates


def _terms(losses: Losses) -> dict[str, Mean]:
  return {'loss': losses} if isinstance(losses, Mean) else losses


def _positive(weight: jax.Array) -> jax.Array:
  return jnp.where(weight > 0, weight, 1.0)


def _shuffled(key: jax.Array, batch: Batch, parts: int, together: int) -> Batch:
  """[B, ...] -> [parts, B / parts, ...] of every leaf, in a random order of its groups of rows."""
  rows = len(jax.tree.leaves(batch)[0])
  order = jax.random.permutation(key, rows // together)
  order = (order[:, None] * together + jnp.arange(together)).reshape(-1)
  return jax.tree.map(lambda x: _cut(x[order], parts, together), batch)


def _cut(x: jax.Array, parts: int, together: int) -> jax.Array:
  """[B, ...] -> [parts, B / parts, ...], group g of rows into part g % parts: a batch that is
  spread over devices stays spread in every part.
  """
  if x.shape[0] % (parts * together):
    groups = f' of {together} rows in turn' if together > 1 else ''
    raise ValueError(
      f'expected a batch that {parts} parts{groups} divide, found {x.shape[0]} rows; '
      'change batch_size, microbatches or minibatches')
  groups = x.reshape(-1, parts, together, *x.shape[1:]).swapaxes(0, 1)
  return groups.reshape(parts, -1, *x.shape[1:])
