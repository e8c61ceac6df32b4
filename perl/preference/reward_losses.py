"""The losses of reward models. Imports no more than a step needs: benchmarks run it alone."""

import jax
import jax.numpy as jnp

from perl import masked
from perl.models import lm
from perl.models.context import Rows
from perl.models.transformer import Transformer
from perl.objectives import losses
from perl.preference import pairs
from perl.train import step as steps
from perl.types import Batch, Mean, Tree

KINDS = ('pairwise', 'pointwise', 'ranking', 'regression')
"""What a reward model can learn from: pairs, thumbs, rankings, ratings."""


def make_loss(
  model: Transformer, *, kind: str, margin: bool, centre: float, dropout: bool
) -> steps.LossFn:
  """The LossFn of a reward model; a mean over pairs or rows.

  Args:
    model: the base's module.
    kind: of KINDS.
    margin: use the pair's own margin.
    centre: see objectives.losses.pairwise; of pairs and rankings.
    dropout: train with the adapter's dropout.
  """

  def score(adapter, base, tokens, mask, responses, key, **prompts):
    return lm.score(
      model, base, adapter, tokens, Rows(mask, right_padded=not prompts), response_mask=responses,
      dropout_key=key if dropout else None, **prompts,
    )

  def each(adapter: Tree, base: Tree, batch: Batch, key: jax.Array) -> jax.Array:
    """Scores f32[B], or f32[B, K] of rankings, of one forward."""
    tokens, mask, prompts = flat(batch['tokens'], batch['mask'], batch['prompt_tokens'])
    r = score(adapter, base, tokens, mask, masked.after(mask, prompts), key)
    return r.reshape(batch['tokens'].shape[:-1])

  def pointwise(adapter: Tree, base: Tree, batch: Batch, key: jax.Array):
    r, weight = each(adapter, base, batch, key), batch['weight']
    right = (r > 0) == (batch['label'] > 0.5)
    return Mean.of(losses.pointwise(r, batch['label']), weight), {
      'accuracy': Mean.of(right, weight)}

  def regression(adapter: Tree, base: Tree, batch: Batch, key: jax.Array):
    r, weight = each(adapter, base, batch, key), batch['weight']
    error = jnp.square(r - batch['rating'])
    return Mean.of(losses.regression(r, batch['rating']), weight), {
      'mean_squared_error': Mean.of(error, weight)}

  def ranking(adapter: Tree, base: Tree, batch: Batch, key: jax.Array):
    r, weight, present = each(adapter, base, batch, key), batch['weight'], batch['present']
    right = losses.mean_over_pairs(r[:, :, None] > r[:, None, :], present)
    metrics = {'pair_accuracy': right, 'score': masked.masked_mean(r, present, axis=-1)}
    return Mean.of(losses.ranking(r, present, centre), weight), {
      k: Mean.of(v, weight) for k, v in metrics.items()}

  def both(adapter: Tree, base: Tree, batch: Batch, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Scores f32[B] of chosen and rejected, of one forward of 2 B rows."""
    layout = pairs.lay_out(batch)
    prompts = dict(start=layout.prompt + 1, shared=2) if layout.prompt else {}
    r = score(adapter, base, layout.tokens, layout.mask, layout.responses, key, **prompts)
    return r[::2], r[1::2]

  def pairwise(adapter: Tree, base: Tree, batch: Batch, key: jax.Array):
    chosen, rejected = both(adapter, base, batch, key)
    loss = losses.pairwise(chosen, rejected, batch['margin'] if margin else 0.0, centre)
    metrics = {'pair_accuracy': chosen > rejected, 'score': (chosen + rejected) / 2}
    weight = batch['weight']
    return Mean.of(loss, weight), {k: Mean.of(v, weight) for k, v in metrics.items()}

  return {
    'pairwise': pairwise, 'pointwise': pointwise, 'ranking': ranking, 'regression': regression,
  }[kind]


def flat(
  tokens: jax.Array, mask: jax.Array, prompt_tokens: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Rankings [B, K, T] as B K rows, the prompts' lengths i32[B] once for each; rows as they are."""
  if tokens.ndim == 2:
    return tokens, mask, prompt_tokens
  length, count = tokens.shape[-1], tokens.shape[1]
  return tokens.reshape(-1, length), mask.reshape(-1, length), jnp.repeat(prompt_tokens, count)
