"""Losses, as elementwise values or as a Mean not yet divided."""

import jax
import jax.numpy as jnp

from perl import masked
from perl.types import Mean


def next_token(logprobs: jax.Array, loss_mask: jax.Array) -> Mean:
  """-log pi(tokens[t] | tokens[:t]) over the tokens of the mask (token-mean), in nats.

  Args:
    logprobs: f32[B, T].
    loss_mask: bool[B, T].
  """
  return Mean.of(-logprobs, loss_mask)


def pairwise(
  chosen: jax.Array, rejected: jax.Array, margin: jax.Array | float = 0.0, centre: float = 0.0
) -> jax.Array:
  """-log sigmoid(r_w - r_l - m) + c (r_w + r_l)^2, f32[B].

  Bradley-Terry (PERL, sec. 2; Stiennon et al. 2020), with the margin of Llama 2 (Touvron et al.
  2023, eq. 2) and the centring of Eisenstein et al. 2023 (arXiv 2312.09244).

  Args:
    chosen, rejected: f32[B], scores r_w and r_l.
    margin: f32[B] or a number, m.
    centre: c.
  """
  difference = chosen - rejected - margin
  return -jax.nn.log_sigmoid(difference) + centre * jnp.square(chosen + rejected)


def ranking(scores: jax.Array, present: jax.Array, centre: float = 0.0) -> jax.Array:
  """The mean over pairs i < j of -log sigmoid(r_i - r_j), f32[B]: K responses ranked, best first.

  All pairs of a prompt in one element, so that each prompt counts once and is read once
  (InstructGPT: Ouyang et al. 2022, arXiv 2203.02155, eq. 1). For K = 2 it is `pairwise`.

  Args:
    scores: f32[B, K], of the responses from the best to the worst.
    present: bool[B, K], False where a prompt has fewer; a row of fewer than two has the loss 0.
    centre: c of `pairwise`, for each pair.
  """
  scores = jnp.where(present, scores, 0.0)
  return mean_over_pairs(
    pairwise(scores[:, :, None], scores[:, None, :], centre=centre), present)


def mean_over_pairs(values: jax.Array, present: jax.Array) -> jax.Array:
  """The mean of values[b, i, j] over the pairs i < j of what is present, f32[B].

  Args:
    values: [B, K, K], of the better i and the worse j.
    present: bool[B, K].
  """
  ordered = jnp.triu(jnp.ones(values.shape[1:], bool), 1)
  counted = ordered & present[:, :, None] & present[:, None, :]
  return masked.masked_mean(
    values.reshape(len(values), -1), counted.reshape(len(values), -1), axis=-1)


def regression(score: jax.Array, target: jax.Array) -> jax.Array:
  """(r - y)^2 / 2, f32[B]: scores that people gave, learnt as numbers.

  Args:
    score: f32[B], r.
    target: f32[B], y.
  """
  return jnp.square(score - target) / 2


def pointwise(score: jax.Array, label: jax.Array) -> jax.Array:
  """-y log sigmoid(r) - (1 - y) log(1 - sigmoid(r)), f32[B].

  PERL, sec. 2 (whose second version misprints sigma(1 - r) in the last term).

  Args:
    score: f32[B], r.
    label: f32[B], y: 1 for thumbs up, 0 for thumbs down.
  """
  return -label * jax.nn.log_sigmoid(score) - (1.0 - label) * jax.nn.log_sigmoid(-score)


def reinforce(logprobs: jax.Array, advantages: jax.Array, mask: jax.Array) -> jax.Array:
  """-log pi(a_t | x_t) sg(A_t), f32[B, T], 0 outside the mask; its sum over a response is L_PG
  (PERL, sec. 3; Lee et al. 2023, app. F).

  Args:
    logprobs: f32[B, T] of the policy.
    advantages: f32[B, T], Z_t - V(x_t); no gradient flows through it.
    mask: bool[B, T], the response's tokens.
  """
  # Masked before the product: 0 * NaN would be NaN in the gradient.
  advantages = jax.lax.stop_gradient(jnp.where(mask, advantages, 0.0))
  return -jnp.where(mask, logprobs, 0.0) * advantages


def value(values: jax.Array, returns: jax.Array, mask: jax.Array) -> jax.Array:
  """sum_t (Z_t - V(x_t))^2, f32[B] (PERL, sec. 3)."""
  error = jnp.where(mask, jax.lax.stop_gradient(returns) - values, 0.0)
  return jnp.square(error).sum(-1)
