"""Optimizers by name: an optax chain of clipping, AdamW or Adafactor, and a schedule."""

import optax

NAMES = ('adamw', 'adafactor', 'sgd')
OPTIONS = {'adamw': ('b1', 'b2', 'eps', 'weight_decay'), 'adafactor': ('weight_decay',), 'sgd': ()}
"""Optimizer -> what it reads beside its rate."""
SCHEDULES = ('constant', 'cosine', 'linear')


def schedule(
  name: str, learning_rate: float, *, steps: int, warmup_steps: int = 0
) -> optax.Schedule:
  """Linear warm-up from 0, then constant, or down to 0 by a cosine or a line at `steps`.

  Args:
    name: one of SCHEDULES.
    learning_rate: the peak.
    steps: updates in all.
    warmup_steps: updates of the warm-up; the first update already has a rate above 0.
  """
  remaining = max(steps - warmup_steps, 1)
  after = {
    'constant': optax.constant_schedule(learning_rate),
    'cosine': optax.cosine_decay_schedule(learning_rate, remaining),
    'linear': optax.linear_schedule(learning_rate, 0.0, remaining),
  }
  if name not in after:
    raise ValueError(f'expected a schedule among {SCHEDULES}, found {name!r}')
  if not warmup_steps:
    return after[name]
  warmup = lambda step: learning_rate * (step + 1) / (warmup_steps + 1)
  return optax.join_schedules([warmup, after[name]], [warmup_steps])


def make(
  name: str = 'adamw',
  *,
  learning_rate: float,
  steps: int,
  schedule_name: str = 'constant',
  warmup_steps: int = 0,
  weight_decay: float = 0.0,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  clip_norm: float = 1.0,
) -> optax.GradientTransformation:
  """The chain: clip by global norm (off at 0), then the optimizer with its schedule.

  Args:
    name: one of NAMES.
    learning_rate: the schedule's peak.
    steps: updates in all, for the schedule.
    schedule_name: one of SCHEDULES.
    warmup_steps, weight_decay, b1, b2, eps: as in optax; Adafactor takes the decay alone.
    clip_norm: largest global norm of the gradient; 0 for none.
  """
  rate = schedule(schedule_name, learning_rate, steps=steps, warmup_steps=warmup_steps)
  if name == 'adamw':
    tx = optax.adamw(rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay)
  elif name == 'adafactor':
    tx = optax.adafactor(rate, weight_decay_rate=weight_decay or None, clipping_threshold=None)
  elif name == 'sgd':
    tx = optax.sgd(rate)
  else:
    raise ValueError(f'expected an optimizer among {NAMES}, found {name!r}')
  return optax.chain(optax.clip_by_global_norm(clip_norm), tx) if clip_norm else tx
