"""Preference optimisation without a reward model: methods, one file each.

A method is a frozen dataclass `Method`. Its fields are its options, config.preference.<its name>;
its class variables say what it needs:

  examples   'preference', pairs: loss(chosen, rejected) -> f32[B], or
             'labelled', thumbs: loss(said, label f32[B], drift f32[]) -> f32[B]
  reference  whether it reads log-probs under the frozen reference
  drift      whether it reads the batch's mean log-ratio of mismatched prompts and responses

and has reward(said) -> the implicit reward of a response, which its loss pushes up or down. A new
method is one new file, with its options in perl/config/preference_fields.py if it has any.
"""

import jax
from flax import struct

from perl import choices
from perl.objectives import preferences


class Responses(struct.PyTreeNode):
  """What a method may know of responses; all of one shape, [B] where a loss reads it."""

  logprobs: jax.Array  # f32, log pi(y | x), summed over the response's tokens
  reference: jax.Array  # f32, the same under the reference; 0 where the method has none
  tokens: jax.Array  # f32, how many

  @property
  def ratio(self) -> jax.Array:
    """log pi(y | x) - log pi_ref(y | x)."""
    return self.logprobs - self.reference

  @property
  def means(self) -> 'Responses':
    """The same with means over the tokens in place of sums."""
    mean = lambda x: preferences.per_token(x, self.tokens)
    return self.replace(logprobs=mean(self.logprobs), reference=mean(self.reference))


class Pairs:
  """What a method says of itself, unless it says otherwise: pairs, beside a reference."""

  examples = 'preference'
  reference = True
  drift = False

  def reward(self, responses: Responses) -> jax.Array:
    """f32[B]: beta (log pi - log pi_ref)."""
    return self.beta * responses.ratio


def find(name: str) -> type:
  """The class of a method.

  Raises:
    ValueError: there is none of that name.
  """
  return choices.find(__name__, name).Method
