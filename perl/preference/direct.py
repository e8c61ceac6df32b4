"""From batches of pairs or thumbs to a method's loss: reads log-probs, of the reference too."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from perl.models.transformer import Transformer
from perl.objectives import preferences
from perl.preference import pairs
from perl.preference.methods import Responses
from perl.types import Batch, Mean, Tree

COLUMNS = {'preference': 2, 'labelled': 1}
"""Kind of examples -> responses of each."""


class Frozen(NamedTuple):
  """What no step changes."""

  base: Tree  # that both adapters lie over
  reference: Tree | None  # an adapter; None where nothing reads it


class Judged(NamedTuple):
  """What is said of a batch; B examples of n responses each."""

  loss: Mean
  metrics: dict[str, Mean]
  rewards: jax.Array  # f32[B, n], implicit ones


def reference_logprobs(model: Transformer, frozen: Frozen, batch: Batch) -> jax.Array:
  """f32[B, n]: log pi_ref(y | x) of a batch's responses; as batch['reference'] it saves a pass."""
  logprobs = pairs.logprobs(model, frozen.base, frozen.reference, pairs.lay_out(batch))
  return jax.lax.stop_gradient(logprobs).reshape(len(batch['weight']), -1)


def make_judge(
  model: Transformer, method: Any, *, longest: int, longest_response: int
) -> Callable[[Tree, Frozen, Batch], Judged]:
  """(adapter, frozen, batch) -> Judged.

  Args:
    model: the base's module.
    method: a `Method` of perl/preference/methods.
    longest, longest_response: tokens of a row and of its response, the most that there can be; the
      rows of mismatched pairs are as long as they may have to be.
  """

  def drift(adapter: Tree, frozen: Frozen, batch: Batch) -> jax.Array:
    length = min(batch['tokens'].shape[1] + longest_response, longest)
    others = pairs.mismatched(batch, length)
    now, before = (pairs.logprobs(model, frozen.base, each, others)
                   for each in (jax.lax.stop_gradient(adapter), frozen.reference))
    # A filler row repeats the one before it, whose prompt would meet its own response.
    counts = batch['weight'] * jnp.roll(batch['weight'], -1)
    return preferences.kto_drift(now - before, counts)

  def judge(adapter: Tree, frozen: Frozen, batch: Batch) -> Judged:
    responses, weight = read(model, method, adapter, frozen, batch), batch['weight']
    column = lambda i: jax.tree.map(lambda x: x[:, i], responses)
    if method.examples == 'preference':
      sides = {'chosen': (column(0), weight), 'rejected': (column(1), weight)}
      loss, more = method.loss(column(0), column(1)), _of_pairs(method, column, weight)
    else:
      up, z = batch['label'], drift(adapter, frozen, batch) if method.drift else jnp.zeros(())
      sides = {'chosen': (column(0), weight * up), 'rejected': (column(0), weight * (1.0 - up))}
      loss, more = method.loss(column(0), up, z), {'drift': Mean.of(z)}
    metrics = _of_sides(method, sides) | more
    return Judged(Mean.of(loss, weight), metrics, method.reward(responses))

  return judge


def make_loss(
  model: Transformer, method: Any, *, longest: int, longest_response: int
) -> Callable[[Tree, Frozen, Batch, jax.Array], tuple[Mean, dict[str, Mean]]]:
  """The LossFn of a train step whose base is a `Frozen`; a mean over pairs or thumbs.

  Args:
    model, method, longest, longest_response: as for `make_judge`.
  """
  judge = make_judge(model, method, longest=longest, longest_response=longest_response)

  def loss(adapter: Tree, frozen: Frozen, batch: Batch, key: jax.Array):
    del key  # No dropout: the log-ratio to the reference would be of two different models.
    return judge(adapter, frozen, batch)[:2]

  return loss


def read(
  model: Transformer, method: Any, adapter: Tree, frozen: Frozen, batch: Batch
) -> Responses:
  """The responses of a batch, [B, n]; the reference is read where it is needed and not known."""
  rows, shape = pairs.lay_out(batch), (len(batch['weight']), COLUMNS[method.examples])
  now = pairs.logprobs(model, frozen.base, adapter, rows).reshape(shape)
  before = jnp.zeros(shape)
  if method.reference:
    known = batch.get('reference')
    before = reference_logprobs(model, frozen, batch) if known is None else known
  return Responses(now, before, rows.responses.sum(-1).astype(jnp.float32).reshape(shape))


def _of_pairs(method: Any, column: Callable, weight: jax.Array) -> dict[str, Mean]:
  margin = method.reward(column(0)) - method.reward(column(1))
  return {'margin': Mean.of(margin, weight), 'accuracy': Mean.of(margin > 0, weight)}


def _of_sides(
  method: Any, sides: dict[str, tuple[Responses, jax.Array]]
) -> dict[str, Mean]:
  """Of each side, in nats a response: log-prob, implicit reward, log-ratio to the reference."""
  metrics = {}
  for name, (responses, weight) in sides.items():
    metrics[f'{name}_logprob'] = Mean.of(responses.logprobs, weight)
    metrics[f'{name}_reward'] = Mean.of(method.reward(responses), weight)
    if method.reference:
      metrics[f'{name}_log_ratio'] = Mean.of(responses.ratio, weight)
  return metrics
