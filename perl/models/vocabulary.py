"""Functions of whole next-token distributions, a chunk of positions at a time."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from perl.models import chunked, lm, top_layers, virtual
from perl.models.transformer import Transformer
from perl.types import Tree


def read(
  function: Callable[..., jax.Array],
  model: Transformer,
  base: Tree,
  adapter: Tree,
  h: jax.Array,
  other: jax.Array | None = None,
  *,
  temperature: float = 1.0,
) -> jax.Array:
  """f32[B, R]: function(logits / temperature) or function(logits, other logits) of each position.

  Logits [B, R, V] are never whole. The gradient reaches h, and not `other`.

  Args:
    function: of f32[..., V] to f32[...].
    model, base, adapter: whose unembedding is read.
    h: f[B, R, D], hidden states after the last norm.
    other: f[B, R, D], those of another policy over the same unembedding.
    temperature: of the distributions.

  Raises:
    ValueError: the adapter changes the unembedding, which two policies then do not share.
  """
  frozen = virtual.unembedding_is_frozen(adapter)
  if other is not None and not frozen:
    raise ValueError(
      'expected an unembedding that policy and reference share, found one that is adapted; take '
      'embed out of peft.targets, or a rl.regularizer of sampled tokens')
  parts = top_layers.outside(lm.variables(base, adapter))
  logits = lambda parts, h: model.apply(
    parts, h, method='unembed').astype(jnp.float32) / temperature
  both = other is not None

  def of_chunk(parts: Tree, h: jax.Array, second: jax.Array) -> jax.Array:
    more = (jax.lax.stop_gradient(logits(parts, second)),) if both else ()
    return function(logits(parts, h), *more)

  second = jax.lax.stop_gradient(other) if both else jnp.zeros(h.shape[:2])
  return chunked.rowwise(
    of_chunk, parts, h, second, (1 + both) * model.config.vocab_size, frozen=frozen)
