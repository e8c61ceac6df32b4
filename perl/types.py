"""The values that travel between the rooms of this house, and their axes.

Axis letters, used everywhere: B batch, P prompt length, R response length, T = P + R (or the whole
sequence), V vocabulary, D model width, H query heads, G key/value heads, K head width, L layers,
I / O rows and columns of a projection's matrix, r rank.

Every per-token array is ``[B, T]`` and aligned with the token it describes:
``logprobs[b, t] = log pi(tokens[b, t] | tokens[b, :t])`` and ``values[b, t] = V(tokens[b, :t])``.
A mask is True where an entry counts.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

Tree = Any
"""A pytree of arrays, or of objects that hold them (adapters)."""

Batch = dict[str, Any]
"""Arrays by name; the names are listed in perl/data/batches/pipeline.py."""


class Mean(struct.PyTreeNode):
  """A mean that has not been divided yet: ``total / weight``.

  Sums and weights add over microbatches, devices and batches, so that a mean divided once at the
  end is the mean over all that was seen, whatever way it was cut up.
  """

  total: jax.Array  # f32[]
  weight: jax.Array  # f32[]

  @classmethod
  def of(cls, values: jax.Array, mask: jax.Array | None = None) -> 'Mean':
    """The mean of `values` (any shape) over the entries where `mask` (broadcast) counts."""
    values = jnp.asarray(values, jnp.float32)
    if mask is None:
      return cls(values.sum(), jnp.float32(values.size))
    weight = jnp.broadcast_to(jnp.asarray(mask, jnp.float32), values.shape)
    # where, not a product: what lies under the mask may be NaN, and 0 * NaN is NaN.
    return cls((jnp.where(weight > 0, values, 0.0) * weight).sum(), weight.sum())

  def value(self) -> jax.Array:
    """Total / weight, and 0 where nothing was counted."""
    return self.total / jnp.where(self.weight > 0, self.weight, 1.0)

  def __add__(self, other: 'Mean') -> 'Mean':
    return Mean(self.total + other.total, self.weight + other.weight)

  def __rmul__(self, factor: float) -> 'Mean':
    """factor * mean: the mean of what is so many times as large."""
    return Mean(factor * self.total, self.weight)


class Rollout(struct.PyTreeNode):
  """Sampled responses beside their prompts (left-padded, so that responses share their start)."""

  tokens: jax.Array  # i32[B, T]
  mask: jax.Array  # bool[B, T], True for real tokens: the prompt's, the response's
  response_mask: jax.Array  # bool[B, T], True for response tokens, the EOS among them
  logprobs: jax.Array  # f32[B, T], behaviour log-probs of the response tokens, 0 elsewhere
  finished: jax.Array  # bool[B], the response ends in EOS


class Experience(struct.PyTreeNode):
  """What an update needs of a rollout. Built once under stop-gradient; never differentiated.

  What is None was not asked for by the algorithm.
  """

  tokens: jax.Array  # i32[B, T]
  mask: jax.Array  # bool[B, T]
  response_mask: jax.Array  # bool[B, T]
  behaviour_logprobs: jax.Array  # f32[B, T], of the policy that sampled
  reference_logprobs: jax.Array  # f32[B, T]; 0 where nothing holds the policy to a reference
  rewards: jax.Array  # f32[B, T], shaped: what is maximised
  returns: jax.Array  # f32[B, T], Z_t: the rewards from t on
  scores: jax.Array  # f32[B], of reward model and rules, less what a bad end costs
  weight: jax.Array  # f32[B], 0 for filler rows, and for responses that nobody can judge
  finished: jax.Array | None = None  # bool[B], the response ends in EOS
  values: jax.Array | None = None  # f32[B, T], V before the first update on this experience
  advantages: jax.Array | None = None  # f32[B, T], of the whole batch, before it is cut
  greedy_returns: jax.Array | None = None  # f32[B], of the likeliest response to each prompt
  beta: jax.Array | None = None  # f32[B], of the regularizer in the loss
  verdicts: jax.Array | None = None  # f32[B], of reward model and rules alone
  scale: jax.Array | None = None  # f32[B], what scores are multiplied by in the rewards
  sampler_logprobs: jax.Array | None = None  # f32[B, T], as sampled, where behaviour_logprobs are
  # those that the trainer's own forward pass gives to the same tokens
  reference_states: jax.Array | None = None  # f[B, R, D], after the reference's last norm
  aside: Batch | None = None  # rows of text that are learnt beside, as in pretraining

  @property
  def counted(self) -> jax.Array:
    """bool[B, T]: the tokens of responses, without filler rows."""
    return self.response_mask & (self.weight > 0)[:, None]


HEAD_READS = ('mean', 'early', 'likelihood')
"""What a head can read beside the last hidden state: the mean hidden states of response and prompt
(2 D weights), the mean input and output of the first layer over the response (2 D), and statistics
of the response's log-probs (4)."""
