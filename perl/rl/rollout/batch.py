"""Responses to a batch of prompts at once: as many steps as the longest of them has tokens."""

import functools

import jax
import jax.numpy as jnp

from perl.models import decode
from perl.models.transformer import Transformer
from perl.rl.rollout.sampling import Draw, Sampled, ends


def respond(
  model: Transformer, parts: decode.Parts, tokens: jax.Array, mask: jax.Array, keys: jax.Array,
  draw: Draw, *, samples: int, length: int, eos_id: int | tuple[int, ...], pad_id: int, cache: str,
) -> Sampled:
  """Responses to prompts i32[N, P], `samples` rows each: see `perl.rl.rollout.rollout`.

  Args:
    model, parts: see `decode.parts`.
    tokens, mask: the prompts; each passes through the model once.
    keys: typed PRNG keys [B].
    draw: (logits f32[B, V], keys [B]) -> (tokens i32[B], log-probs f32[B]).
    samples, length, eos_id, pad_id, cache: of `rollout`.
  """
  rows, sizes = len(keys), stages(length)
  logits, kv = decode.prefill(model, parts, tokens, mask, sizes[0], count=samples, kind=cache)
  empty = Sampled(
    tokens=jnp.full((rows, length), pad_id, jnp.int32), mask=jnp.zeros((rows, length), bool),
    logprobs=jnp.zeros((rows, length), jnp.float32), finished=jnp.zeros(rows, bool))

  def write(logits: jax.Array, count: jax.Array, so_far: Sampled) -> Sampled:
    """The next token of every unfinished row."""
    token, logprob = draw(logits, jax.vmap(jax.random.fold_in, (0, None))(keys, count))
    done = so_far.finished
    token = jnp.where(done, pad_id, token)
    put = lambda array, column: jax.lax.dynamic_update_slice_in_dim(
      array, column[:, None].astype(array.dtype), count, 1)
    return Sampled(
      put(so_far.tokens, token), put(so_far.mask, ~done),
      put(so_far.logprobs, jnp.where(done, 0.0, logprob)), done | ends(token, eos_id))

  def advance(carry, size):
    count, so_far, kv = carry
    token = jax.lax.dynamic_index_in_dim(so_far.tokens, count - 1, 1, keepdims=False)
    logits, kv = decode.step(model, parts, kv, token, so_far.mask[:, :size], count - 1)
    return count + 1, write(logits, count, so_far), kv

  zero = jnp.zeros((), jnp.int32)
  carry = (zero + 1, write(jnp.repeat(logits, samples, 0), zero, empty), kv)
  for size in sizes:  # early tokens look at few slots
    carry = (*carry[:2], decode.grow(carry[2], size))
    end = size if size == length else size + 1
    unfinished = lambda carry, end=end: (carry[0] < end) & ~jnp.all(carry[1].finished)
    carry = jax.lax.while_loop(unfinished, functools.partial(advance, size=size), carry)
  return carry[1]


def stages(length: int, smallest: int = 32, most: int = 3) -> list[int]:
  """Rising sizes of the cache of responses, the last one R: each a program of its own."""
  sizes = [length]
  while len(sizes) < most and sizes[0] >= 2 * smallest:
    sizes.insert(0, -(-sizes[0] // 2))
  return sizes
