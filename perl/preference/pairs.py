"""Batches of pairs or thumbs as rows of tokens, and the log-probs of their responses."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from perl import masked
from perl.models import lm
from perl.models.context import Branches, Rows
from perl.models.transformer import Transformer
from perl.types import Batch, Tree


class Layout(NamedTuple):
  """Rows [prompt | response]; of pairs the chosen and the rejected one in turn."""

  tokens: jax.Array  # i32[N, T]
  mask: jax.Array  # bool[N, T]
  responses: jax.Array  # bool[N, T], True for the tokens of the response
  prompt: int = 0  # columns of a prompt that two rows in turn share, left-padded; 0: right-padded


def lay_out(batch: Batch) -> Layout:
  """The rows of a batch of perl/data/batches/pipeline.py: 2 B of pairs, B of thumbs."""
  if 'chosen' in batch:
    # In turn, not one half after the other: rows then stay on the devices where they are.
    turn = lambda a, b: jnp.stack([a, b], 1).reshape(-1, *a.shape[1:])
    mask = turn(batch['chosen_mask'], batch['rejected_mask'])
    starts = jnp.repeat(batch['prompt_tokens'], 2)
    return Layout(turn(batch['chosen'], batch['rejected']), mask, masked.after(mask, starts))
  if 'chosen_mask' in batch:
    prompt = batch['tokens'].shape[1] - 2 * batch['chosen_mask'].shape[1]
    rows = Branches(batch['mask'], prompt, 2).rows
    mask = rows(batch['mask'])
    return Layout(rows(batch['tokens']), mask, mask & (jnp.arange(mask.shape[1]) >= prompt), prompt)
  return Layout(batch['tokens'], batch['mask'], masked.after(batch['mask'], batch['prompt_tokens']))


def mismatched(batch: Batch, length: int) -> Layout:
  """Each prompt with the response of the next row (of the last row, the first one's).

  Args:
    batch: thumbs, right-padded.
    length: columns of the result, which hold any prompt with any response of the batch.
  """
  tokens, mask, starts = batch['tokens'], batch['mask'], batch['prompt_tokens'][:, None]
  next_tokens, next_mask, next_starts = (jnp.roll(x, -1, 0) for x in (tokens, mask, starts))
  column = jnp.arange(length)[None]
  own = column < starts
  source = jnp.where(own, column, column - starts + next_starts)
  last = tokens.shape[1] - 1
  pick = lambda x: jnp.take_along_axis(x, jnp.minimum(source, last), 1)
  response = ~own & (source <= last) & pick(next_mask)
  return Layout(jnp.where(own, pick(tokens), pick(next_tokens)), own | response, response)


def logprobs(model: Transformer, base: Tree, adapter: Tree, layout: Layout) -> jax.Array:
  """f32[N]: log pi(y | x) of each row, summed over the tokens of its response."""
  rows = Rows(layout.mask, right_padded=not layout.prompt)
  shared = dict(start=layout.prompt, shared=2) if layout.prompt else {}
  token_logprobs = lm.logprobs(model, base, adapter, layout.tokens, rows, **shared)
  return masked.masked_sum(token_logprobs, layout.responses, -1)
