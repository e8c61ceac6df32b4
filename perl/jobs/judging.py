"""The losses of reward models. Imports no more than a step needs: benchmarks run it alone."""

import jax
import jax.numpy as jnp

from perl.models import lm
from perl.models.context import Branches, Rows
from perl.models.transformer import Transformer
from perl.objectives import losses
from perl.train import step as steps
from perl.types import Batch, Mean, Tree


def make_loss(
  model: Transformer, *, kind: str, margin: bool, centre: float, dropout: bool
) -> steps.LossFn:
  """The LossFn of a reward model; a mean over pairs or rows.

  Args:
    model: the base's module.
    kind: 'pairwise' or 'pointwise'.
    margin: use the pair's own margin.
    centre: see objectives.losses.pairwise.
    dropout: train with the adapter's dropout.
  """

  def score(adapter, base, tokens, mask, responses, key, **prompts):
    rows = Rows(mask, right_padded=not prompts)
    return lm.score(
      model, base, adapter, tokens, rows, response_mask=responses,
      dropout_key=key if dropout else None, **prompts,
    )

  def pointwise(adapter: Tree, base: Tree, batch: Batch, key: jax.Array):
    mask = batch['mask']
    responses = after_prompt(mask, batch['prompt_tokens'])
    r = score(adapter, base, batch['tokens'], mask, responses, key)
    right = (r > 0) == (batch['label'] > 0.5)
    loss = losses.pointwise(r, batch['label'])
    return Mean.of(loss, batch['weight']), {'accuracy': Mean.of(right, batch['weight'])}

  def both(adapter: Tree, base: Tree, batch: Batch, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Scores f32[B] of chosen and rejected, of one forward of 2 B rows."""
    if 'tokens' in batch:
      start = batch['tokens'].shape[1] - 2 * batch['chosen_mask'].shape[1]
      rows = Branches(batch['mask'], start, 2).rows  # chosen, rejected in turn
      tokens, mask = rows(batch['tokens']), rows(batch['mask'])
      responses = mask & (jnp.arange(mask.shape[1]) >= start)
      r = score(adapter, base, tokens, mask, responses, key, start=start + 1, shared=2)
      return r[::2], r[1::2]
    join = lambda suffix: jnp.concatenate([batch[f'chosen{suffix}'], batch[f'rejected{suffix}']])
    mask = join('_mask')
    responses = after_prompt(mask, jnp.tile(batch['prompt_tokens'], 2))
    return tuple(jnp.split(score(adapter, base, join(''), mask, responses, key), 2))

  def pairwise(adapter: Tree, base: Tree, batch: Batch, key: jax.Array):
    chosen, rejected = both(adapter, base, batch, key)
    loss = losses.pairwise(chosen, rejected, batch['margin'] if margin else 0.0, centre)
    metrics = {'pair_accuracy': chosen > rejected, 'score': (chosen + rejected) / 2}
    weight = batch['weight']
    return Mean.of(loss, weight), {k: Mean.of(v, weight) for k, v in metrics.items()}

  return {'pointwise': pointwise, 'pairwise': pairwise}[kind]


def after_prompt(mask: jax.Array, prompt_tokens: jax.Array) -> jax.Array:
  """bool[B, T]: the real tokens from column prompt_tokens i32[B] on, in right-padded rows."""
  return mask & (jnp.arange(mask.shape[-1]) >= prompt_tokens[:, None])
