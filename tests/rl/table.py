"""A policy that is a table: two tokens of V, every response and its probability at hand."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from perl.config.rl_fields import FIELDS
from perl.objectives import returns
from perl.options import bound
from perl.rl import algorithms
from perl.types import Experience

V, K, BETA = 3, 2, 0.25
RESPONSES = np.asarray(list(itertools.product(range(V), repeat=2)))
SCORES = jnp.asarray([0.1, 0.9, -0.4, 0.3, 0.65, -1.0, 0.5, 0.0, 1.2], jnp.float32)
THETA, REFERENCE = (
  jnp.asarray(np.random.default_rng(s).normal(size=(1 + V, V)) / 2, jnp.float32) for s in (2, 3))
VALUES = jnp.asarray(np.random.default_rng(4).normal(size=1 + V), jnp.float32)
"""Of a critic: before the first token, and after each first one."""
GROUPS = np.asarray(list(itertools.product(range(len(RESPONSES)), repeat=K)))
"""Every draw of K responses to the one prompt there is."""


def logprobs(theta, rows):
  """f32[B, 1 + 2] of responses by number; the prompt's column is 0."""
  logp, tokens = jax.nn.log_softmax(theta), RESPONSES[rows]
  found = jnp.stack([logp[0, tokens[:, 0]], logp[1 + tokens[:, 0], tokens[:, 1]]], 1)
  return jnp.pad(found, ((0, 0), (1, 0)))


def probabilities(theta):
  """f32[9], of every response."""
  return jnp.exp(logprobs(theta, np.arange(len(RESPONSES))).sum(-1))


def values(rows):
  """f32[B, 1 + 2]."""
  return jnp.stack([jnp.zeros(len(rows)), jnp.full(len(rows), VALUES[0]),
                    VALUES[1 + RESPONSES[rows][:, 0]]], 1)


def asked(name, **given):
  """The algorithm's options, with these changes; K responses to a prompt where it compares them."""
  own = algorithms.find(name).OWN
  fields = {path.removeprefix('rl.'): field.default for path, field in FIELDS.items()}
  grouped = {'samples': K} if own.get('samples', 1) > 1 else {}
  return algorithms.resolve(name, fields | grouped | given) | {'max_new_tokens': 2}


def experience(rows, behaviour=THETA, scores=SCORES, beta=BETA, regularized=True, weight=None):
  """Of responses by number, drawn from `behaviour`, with the KL in the reward if `regularized`."""
  mask = jnp.ones((len(rows), 3), bool).at[:, 0].set(False)
  old, anchor = logprobs(behaviour, rows), logprobs(REFERENCE, rows)
  weight = jnp.ones(len(rows)) if weight is None else weight
  rewards = returns.shaped_rewards(
    scores[rows], old, anchor, mask, beta=beta if regularized else 0.0)
  return Experience(
    tokens=jnp.asarray(np.pad(RESPONSES[rows], ((0, 0), (1, 0)))), mask=mask | True,
    response_mask=mask, behaviour_logprobs=old, reference_logprobs=anchor, rewards=rewards,
    returns=returns.returns_to_go(rewards, mask), scores=scores[rows], weight=weight,
    values=values(rows), greedy_returns=jnp.full(len(rows), 0.7), beta=jnp.full(len(rows), beta))


def loss(name, theta, e, **given):
  """The mean of the policy loss on experience of an older policy."""
  logp, tokens = jax.nn.log_softmax(theta), e.tokens
  now = jnp.stack([jnp.zeros(len(tokens)), logp[0, tokens[:, 1]],
                   logp[1 + tokens[:, 1], tokens[:, 2]]], 1)
  return of_logprobs(name, now, e, **given)


def of_logprobs(name, now, e, **given):
  """The same of log-probs f32[B, 3]."""
  module, all_of_them = algorithms.find(name), asked(name, **given)
  running = {'mean_return': jnp.float32(1.4), 'seen': jnp.float32(3.0)}
  e = jax.lax.stop_gradient(bound(module.estimate, all_of_them | {'running': running})(e))
  return bound(module.policy_loss, all_of_them)(now, e)[0].value()
