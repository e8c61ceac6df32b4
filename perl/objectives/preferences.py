"""Preference optimisation without a reward model: losses of a pair's log-probs, f32[B] each.

With l_w = log pi(y_w | x) and l_l of the chosen and the rejected response (sums over their tokens),
and the same under the frozen reference,

  D = (l_w - l_ref_w) - (l_l - l_ref_l)                                    (`margin`)

is what most of them push up. Where a method averages over tokens, it is given mean log-probs: see
`per_token`.
"""

import jax
import jax.numpy as jnp

from perl.types import Mean


def margin(
  chosen: jax.Array, rejected: jax.Array, reference_chosen: jax.Array | float = 0.0,
  reference_rejected: jax.Array | float = 0.0,
) -> jax.Array:
  """D, f32[B]; without a reference the difference of the log-probs themselves."""
  return (chosen - reference_chosen) - (rejected - reference_rejected)


def per_token(logprobs: jax.Array, tokens: jax.Array) -> jax.Array:
  """The mean log-prob of a response's tokens.

  Args:
    logprobs: f32[B], sums.
    tokens: [B], how many each sums.
  """
  return logprobs / jnp.maximum(tokens, 1)


def dpo(d: jax.Array, *, beta: float, smoothing: float = 0.0) -> jax.Array:
  """-(1 - e) log sigmoid(beta D) - e log sigmoid(-beta D).

  DPO (Rafailov et al. 2023, arXiv 2305.18290, eq. 7); with e > 0 its conservative form, for labels
  of which a share e is wrong (Mitchell 2023). Of `per_token` log-probs it is length-normalised DPO
  (Tulu 3: Lambert et al. 2024, arXiv 2411.15124).

  Args:
    d: f32[B], D.
    beta: strength of the KL that it stands for.
    smoothing: e, below a half.
  """
  h = beta * d
  return -(1.0 - smoothing) * jax.nn.log_sigmoid(h) - smoothing * jax.nn.log_sigmoid(-h)


def ipo(d: jax.Array, *, beta: float) -> jax.Array:
  """(D - 1 / (2 beta))^2 (IPO: Azar et al. 2023, arXiv 2310.12036, eq. 17; its tau is beta)."""
  return jnp.square(d - 1.0 / (2.0 * beta))


def hinge(d: jax.Array, *, beta: float) -> jax.Array:
  """max(0, 1 - beta D) (RSO: Liu et al. 2023, arXiv 2309.06657).

  Of a `margin` without reference it is SLiC-HF's (Zhao et al. 2023, arXiv 2305.10425) over
  its delta, with beta = 1 / delta; its regulariser is the next-token loss of SFT's responses.
  """
  return jnp.maximum(0.0, 1.0 - beta * d)


def kto(
  log_ratio: jax.Array, label: jax.Array, drift: jax.Array, *, beta: float,
  desirable: float = 1.0, undesirable: float = 1.0,
) -> jax.Array:
  """w_D (1 - sigmoid(beta (l - z))) of thumbs up, w_U (1 - sigmoid(beta (z - l))) of thumbs down.

  KTO (Ethayarajh et al. 2024, arXiv 2402.01306).

  Args:
    log_ratio: f32[B], l = log pi(y | x) - log pi_ref(y | x).
    label: f32[B], 1 or 0.
    drift: f32[], z: the batch's estimate of KL(pi || pi_ref), see `kto_drift`; no gradient.
    beta: strength.
    desirable, undesirable: weights of either kind.
  """
  z = jax.lax.stop_gradient(drift)
  up = desirable * (1.0 - jax.nn.sigmoid(beta * (log_ratio - z)))
  down = undesirable * (1.0 - jax.nn.sigmoid(beta * (z - log_ratio)))
  return label * up + (1.0 - label) * down


def kto_drift(log_ratio: jax.Array, weight: jax.Array | None = None) -> jax.Array:
  """z, f32[]: max(0, the mean log-ratio of responses to *other* prompts).

  Args:
    log_ratio: f32[B], of each prompt with another one's response.
    weight: f32[B], 0 for rows that do not count; None counts all.
  """
  return jnp.maximum(Mean.of(jax.lax.stop_gradient(log_ratio), weight).value(), 0.0)


def orpo(chosen: jax.Array, rejected: jax.Array, *, beta: float) -> jax.Array:
  """-log P(y_w) - beta log sigmoid(log odds(y_w) - log odds(y_l)), of means over tokens.

  odds(y) = P / (1 - P) with P the geometric mean of the tokens' probabilities (ORPO: Hong et al.
  2024, arXiv 2403.07691; its lambda is beta). Needs no reference.

  Args:
    chosen, rejected: f32[B], mean log-probs, below 0.
    beta: weight of the odds ratio.
  """
  odds = lambda logprob: logprob - jnp.log(-jnp.expm1(jnp.minimum(logprob, -1e-6)))
  return -chosen - beta * jax.nn.log_sigmoid(odds(chosen) - odds(rejected))


def simpo(chosen: jax.Array, rejected: jax.Array, *, beta: float, gamma: float) -> jax.Array:
  """-log sigmoid(beta (l_w - l_l) - gamma), of means over tokens.

  SimPO (Meng et al. 2024, arXiv 2405.14734, eq. 6). Needs no reference.

  Args:
    chosen, rejected: f32[B], mean log-probs.
    beta: scale of the difference.
    gamma: the margin that it should have.
  """
  return -jax.nn.log_sigmoid(beta * (chosen - rejected) - gamma)


def cpo(
  chosen: jax.Array, rejected: jax.Array, mean_chosen: jax.Array, *, beta: float,
  alpha: float = 1.0,
) -> jax.Array:
  """-log sigmoid(beta (l_w - l_l)) - alpha log P(y_w) (CPO: Xu et al. 2024, arXiv 2401.08417).

  Args:
    chosen, rejected: f32[B], sums. Needs no reference.
    mean_chosen: f32[B], the mean log-prob of the chosen response's tokens.
    beta: scale of the difference.
    alpha: weight of the second term.
  """
  return -jax.nn.log_sigmoid(beta * (chosen - rejected)) - alpha * mean_chosen
