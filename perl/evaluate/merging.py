"""What merging costs: the largest difference between merged and unmerged logits."""

import jax
import jax.numpy as jnp

from perl.models import lm
from perl.models.transformer import Transformer
from perl.peft import adapters
from perl.types import Tree


def logit_difference(
  model: Transformer, base: Tree, adapter: Tree, tokens: jax.Array, mask: jax.Array
) -> float:
  """max over real tokens of |logits(base, adapter) - logits(merge(base, adapter), {})|.

  Args:
    model, base, adapter: the unmerged model.
    tokens: i32[B, T], a few rows of data.
    mask: bool[B, T].
  """

  @jax.jit
  def largest(base, merged, adapter):
    apart = lm.logits(model, base, adapter, tokens, mask)
    together = lm.logits(model, merged, {}, tokens, mask)
    return jnp.max(jnp.where(mask[..., None], jnp.abs(apart - together), 0.0))

  return float(largest(base, adapters.merge(base, adapter), adapter))
