"""Judged experience in one call, as perl/rl/step.py makes it: for tests of what comes of it."""

import inspect

import jax.numpy as jnp

from perl.objectives import regularizers
from perl.rl import experience
from perl.rl.rewards import make_judge


def make_experience(model, **options):
  """(base, frozen, rollout, weight, offset=0, extra=0, running={}) -> (experience, metrics).

  `extra` f32[B] is what rules add to the scores; options are those of both functions.
  """
  taken = lambda function: {
    name: options[name] for name in inspect.signature(function).parameters if name in options}
  states = options.get('regularizer') in regularizers.EXACT
  judge = make_judge(model, states=states, **taken(make_judge))
  build = experience.make_experience(**taken(experience.make_experience))

  def judged(base, frozen, rollout, weight, offset=0.0, extra=0.0, running=None):
    values = judge(base, frozen, rollout)
    values = values.replace(scores=values.scores + jnp.asarray(extra))
    return build(rollout, values, weight, offset, running)

  return judged
