"""The next token: drawn from the distribution that logits, temperature, top-k and top-p define."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct

from perl.models import lm

Draw = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
"""(logits f32[B, V], keys [B]) -> (tokens i32[B], their log-probs f32[B])."""


class Sampled(struct.PyTreeNode):
  """Responses of up to R tokens, without their prompts."""

  tokens: jax.Array  # i32[B, R]
  mask: jax.Array  # bool[B, R], the tokens that count, the EOS among them
  logprobs: jax.Array  # f32[B, R], 0 elsewhere
  finished: jax.Array  # bool[B], the response ends in EOS


def sample(
  logits: jax.Array, keys: jax.Array, *, temperature: float, top_k: int = 0, top_p: float = 1.0
) -> tuple[jax.Array, jax.Array]:
  """Tokens i32[B] and their log-probs f32[B] under the distribution that they were drawn from.

  A token is drawn by inverting the cumulative distribution, in two stages: a block of about sqrt(V)
  tokens, then one of its tokens, a uniform number each. So no sum is long, tokens of next to no
  probability keep theirs, and two random numbers a row do in place of V.

  Args:
    logits: f32[B, V].
    keys: B keys.
    temperature, top_k, top_p: see `perl.rl.rollout.rollout`; at temperature 0 the likeliest token,
      with its log-prob at temperature 1.
  """
  if temperature == 0:
    token = jnp.argmax(logits, -1)
    return token, lm.token_logprobs(logits, token)
  kept = _keep(logits / temperature, top_k, top_p)
  rows, size = kept.shape
  width = 2 ** math.ceil(math.log2(size) / 2)
  weights = jnp.exp(kept - kept.max(-1, keepdims=True))
  weights = jnp.pad(weights, ((0, 0), (0, -size % width))).reshape(rows, -1, width)
  mass = weights.sum(-1)
  first, second = jax.vmap(lambda key: jax.random.uniform(key, (2,)))(keys).T
  block = pick(mass, first)
  inside = jnp.take_along_axis(weights, block[:, None, None], 1)[:, 0]
  place = pick(inside, second)
  chosen = jnp.take_along_axis(inside, place[:, None], 1)[:, 0]
  return block * width + place, jnp.log(chosen) - jnp.log(mass.sum(-1))


def ends(token: jax.Array, eos_id: int | tuple[int, ...]) -> jax.Array:
  """bool, of the shape of `token`: whether it is one that ends a response."""
  ids = eos_id if isinstance(eos_id, tuple) else (eos_id,)
  return functools.reduce(jnp.logical_or, [token == i for i in ids])


def pick(weights: jax.Array, uniform: jax.Array) -> jax.Array:
  """i32[B]: index i with probability weights[i] / sum(weights), never one whose weight is 0.

  Args:
    weights: f32[B, n], not negative, with a positive one in each row.
    uniform: f32[B] in [0, 1).
  """
  reached = jnp.where(weights > 0, jnp.cumsum(weights, -1), 0.0)
  # In floats a uniform below 1 times the largest stays below the largest: some index is past it.
  past = reached > uniform[:, None] * reached.max(-1, keepdims=True)
  return jnp.argmax(past, -1)


def _keep(logits: jax.Array, top_k: int, top_p: float) -> jax.Array:
  """The logits, with -inf where top-k and top-p leave a token out; the likeliest always stays."""
  if top_k:
    smallest = jax.lax.top_k(logits, min(top_k, logits.shape[-1]))[0][:, -1:]
    logits = jnp.where(logits >= smallest, logits, -jnp.inf)
  if top_p < 1.0:
    ranked = -jnp.sort(-logits, -1)
    before = jnp.cumsum(jax.nn.softmax(ranked, -1), -1) - jax.nn.softmax(ranked, -1)
    smallest = jnp.min(jnp.where(before < top_p, ranked, jnp.inf), -1, keepdims=True)
    logits = jnp.where(logits >= smallest, logits, -jnp.inf)
  return logits
