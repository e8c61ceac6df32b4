"""Next-token training, shared by `pretrain` and `sft`: the loss, and the evaluation of it."""

import math
from collections.abc import Callable

import jax
import optax

from perl.jobs._plan import Plan, Stage
from perl.models import lm
from perl.models.context import Rows
from perl.models.transformer import Transformer
from perl.objectives import losses
from perl.peft import adapters
from perl.train import step as steps
from perl.train.step import LossFn, TrainState
from perl.types import Batch, Mean, Tree


def make_loss(model: Transformer, *, dropout: bool) -> LossFn:
  """The LossFn of next-token prediction over loss_mask (token-mean)."""

  def loss(adapter: Tree, base: Tree, batch: Batch, key: jax.Array) -> tuple[Mean, dict[str, Mean]]:
    rows = Rows(batch['mask'], batch.get('segments'), right_padded=True)
    logprobs = lm.logprobs(
      model, base, adapter, batch['tokens'], rows, dropout_key=key if dropout else None)
    return losses.next_token(logprobs, batch['loss_mask']), {}

  return loss


def make_step(
  model: Transformer, tx: optax.GradientTransformation, places: Tree, *, dropout: bool,
  microbatches: int,
) -> Callable:
  """The update ``(state, base, batch) -> (state, metrics)``."""
  return steps.make_train_step(
    make_loss(model, dropout=dropout), tx, split=adapters.split, shardings=places,
    microbatches=microbatches)


def programs(
  plan: Plan, learning: Tree, tx: optax.GradientTransformation, *, dropout: bool, kind: str
) -> Stage:
  """What a stage of next-token training holds and runs, by shapes."""
  state, places = plan.first_state(learning, tx)
  step = make_step(plan.anchor.model, tx, places, dropout=dropout,
                   microbatches=plan.run.section.microbatches)
  return plan.updating(state, step, plan.batch(kind))


def make_evaluation(
  model: Transformer, base: Tree, batches: list[Batch]
) -> Callable[[TrainState], dict[str, float]]:
  """State -> {'loss', 'perplexity'} over all the batches (placed on the mesh)."""

  @jax.jit
  def mean(base: Tree, adapter: Tree, batch: Batch) -> Mean:
    return make_loss(model, dropout=False)(adapter, base, batch, None)[0]

  def evaluate(state: TrainState) -> dict[str, float]:
    total = Mean(0.0, 0.0)
    for batch in batches:
      total = total + mean(base, state.adapters, batch)
    loss = float(total.value())
    return {'loss': loss, 'perplexity': math.exp(min(loss, 80.0))}

  return evaluate
