"""What is compared: variants of an RL stage, each a name with its fields of the config."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from perl import choices
from perl.config.fields import ConfigError, nearest

BASELINES = ('batch_mean', 'leave_one_out', 'moving_average')
"""Of REINFORCE, beside its own, the learnt value."""

SUN = ('none', 'kl', 'clamped_kl', 'jensen_shannon', 'bregman', 'squared_error')
"""Sun et al.'s regularizers (arXiv 2309.09055), in the reward."""


class Variant(NamedTuple):
  """One row of a comparison."""

  name: str
  fields: dict[str, Any]  # of the config
  peft: str = ''  # the config file's argument, where that differs between rows


def algorithms() -> list[Variant]:
  """Every file of perl/rl at its own options, and REINFORCE with each baseline."""
  found = [Variant(name, {'rl.algorithm': name}) for name in choices.names('perl.rl.algorithms')]
  for baseline in BASELINES:
    samples = {'rl.samples': 4} if baseline == 'leave_one_out' else {}
    found.append(Variant(f'reinforce/{baseline}', {
      'rl.algorithm': 'reinforce', 'rl.baseline': baseline, **samples}))
  return sorted(found, key=lambda variant: variant.name)


def regularizers() -> list[Variant]:
  """Sun et al.'s ablation: LoRA-PPO with each regularizer in the reward, and full tuning."""
  return [
    Variant(f'{peft}/{name}', {
      'rl.algorithm': 'ppo', 'rl.regularizer': name, 'rl.regularize': 'reward'}, peft)
    for peft in ('lora', 'full') for name in SUN
  ]


STUDIES = {'algorithms': algorithms, 'regularizers': regularizers}


def chosen(study: str, text: str) -> list[Variant]:
  """Those of a study that 'all' or 'name,name' names.

  Raises:
    ConfigError: a name is none of them.
  """
  known = {variant.name: variant for variant in STUDIES[study]()}
  names: Sequence[str] = list(known) if text == 'all' else text.split(',')
  for name in names:
    if name not in known:
      raise ConfigError(f'expected --only among {", ".join(known)}, found {name!r}'
                        f'{nearest(name, known)}')
  return [known[name] for name in names]
