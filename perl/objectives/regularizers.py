"""What holds a policy to its reference: estimates from sampled tokens, and exact divergences.

With d = log pi(a) - log pi_ref(a) of a token a ~ pi (Sun et al. 2023, arXiv 2309.09055; k1, k2, k3
are Schulman's, joschu.net/blog/kl-approx.html):

  kl               d                      k1: unbiased for KL(pi || pi_ref), of either sign
  squared_error    d^2 / 2                k2
  bregman          exp(-d) - 1 + d        k3: unbiased and never negative
  clamped_kl       max(d, 0)
  jensen_shannon   (max(log pi - log m, 0) + max(log pi_ref - log m, 0)) / 2,  m = (pi + pi_ref) / 2
  none             0

Placed in the *reward*, each lowers it at its token. Placed in the *loss*, on policy, the mean of
their gradients is another matter: that of k1 is 0, that of k2 the gradient of KL(pi || pi_ref),
that of k3 the gradient of KL(pi_ref || pi). So k1 belongs in the reward, and a loss uses k2.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

LARGEST_EXPONENT = 20.0
"""Beyond it an exponential goes on as a straight line, so that nothing finite becomes infinite."""


def kl(logprobs: jax.Array, reference: jax.Array) -> jax.Array:
  """d, elementwise."""
  return logprobs - reference


def squared_error(logprobs: jax.Array, reference: jax.Array) -> jax.Array:
  """d^2 / 2, elementwise."""
  return jnp.square(logprobs - reference) / 2


def bregman(logprobs: jax.Array, reference: jax.Array) -> jax.Array:
  """exp(-d) - 1 + d, elementwise; where -d is above LARGEST_EXPONENT, its tangent there."""
  d = logprobs - reference
  beyond = jnp.maximum(-d - LARGEST_EXPONENT, 0.0)
  return jnp.expm1(jnp.minimum(-d, LARGEST_EXPONENT)) + math.exp(LARGEST_EXPONENT) * beyond + d


def clamped_kl(logprobs: jax.Array, reference: jax.Array) -> jax.Array:
  """max(d, 0), elementwise."""
  return jnp.maximum(logprobs - reference, 0.0)


def jensen_shannon(logprobs: jax.Array, reference: jax.Array) -> jax.Array:
  """Half of either log-ratio to the mixture, where it is positive; elementwise."""
  mixture = jnp.logaddexp(logprobs, reference) - jnp.log(2.0)
  return (jnp.maximum(logprobs - mixture, 0.0) + jnp.maximum(reference - mixture, 0.0)) / 2


def none(logprobs: jax.Array, reference: jax.Array) -> jax.Array:
  """0: the reference is not needed."""
  del reference
  return jnp.zeros_like(logprobs)


def of_older(logprobs: jax.Array, behaviour: jax.Array) -> jax.Array:
  """exp(d) - 1 - d with d = log pi - log pi_old of a ~ pi_old: k3 of KL(pi_old || pi), elementwise.

  The sample is the second one's, so that the ratio is pi / pi_old: the other way round its mean is
  another thing, and larger by far.

  Args:
    logprobs: of the policy as it is.
    behaviour: of the one that sampled.
  """
  return bregman(behaviour, logprobs)


SAMPLED: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
  function.__name__: function
  for function in (none, kl, clamped_kl, squared_error, bregman, jensen_shannon)}
"""Name -> (logprobs, reference) -> the penalty of each token, of one shape."""


def reverse_kl(logits: jax.Array, reference_logits: jax.Array) -> jax.Array:
  """KL(pi || pi_ref) = sum_a pi(a) (log pi(a) - log pi_ref(a)), over the last axis; nats.

  Args:
    logits, reference_logits: f[..., V]; computed in float32.
  """
  pi, reference = _log_softmax(logits), _log_softmax(reference_logits)
  return (jnp.exp(pi) * (pi - reference)).sum(-1)


def forward_kl(logits: jax.Array, reference_logits: jax.Array) -> jax.Array:
  """KL(pi_ref || pi), over the last axis; nats."""
  return reverse_kl(reference_logits, logits)


def exact_jensen_shannon(logits: jax.Array, reference_logits: jax.Array) -> jax.Array:
  """(KL(pi || m) + KL(pi_ref || m)) / 2 with m = (pi + pi_ref) / 2; at most log 2 nats."""
  pi, reference = _log_softmax(logits), _log_softmax(reference_logits)
  mixture = jnp.logaddexp(pi, reference) - jnp.log(2.0)
  halves = jnp.exp(pi) * (pi - mixture) + jnp.exp(reference) * (reference - mixture)
  return halves.sum(-1) / 2


def entropy(logits: jax.Array) -> jax.Array:
  """-sum_a pi(a) log pi(a), over the last axis; nats."""
  pi = _log_softmax(logits)
  return -(jnp.exp(pi) * pi).sum(-1)


def _log_softmax(logits: jax.Array) -> jax.Array:
  return jax.nn.log_softmax(logits.astype(jnp.float32), -1)


EXACT: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
  function.__name__: function for function in (reverse_kl, forward_kl, exact_jensen_shannon)}
"""Name -> (logits f[..., V], reference_logits) -> f32[...]."""


def adaptive_coefficient(
  beta: jax.Array, measured: jax.Array, *, target: float, horizon: float, count: jax.Array | float
) -> jax.Array:
  """beta (1 + clip(KL / target - 1, -0.2, 0.2) n / horizon) (Ziegler et al. 2019, 1909.08593).

  A batch larger than the horizon counts as one of its size, so that beta stays positive.

  Args:
    beta: f32[], the coefficient so far.
    measured: f32[], the KL of the last batch, in the target's unit.
    target: the KL that is wanted.
    horizon: samples over which the coefficient may change by a fifth.
    count: n, samples of the last batch.
  """
  error = jnp.clip(measured / target - 1.0, -0.2, 0.2)
  return beta * (1.0 + error * jnp.minimum(count / horizon, 1.0))
