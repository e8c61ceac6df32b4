"""What each algorithm reads of config.rl: the one declaration, which refusals and tables are of.

An algorithm reads the keywords of its own functions, and what belongs to what it judges by
(JUDGES_BY), to the roles that it trains, and to other options as they are set (`WHERE`). Everything
else is read by all.
"""

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, NamedTuple

from perl.options import names


class Reader(NamedTuple):
  """An algorithm with its options."""

  module: ModuleType
  options: Mapping[str, Any]
  keywords: frozenset[str]
  roles: tuple[str, ...]

  def judges_by(self, *what: str) -> bool:
    """Whether it judges responses by one of these."""
    return getattr(self.module, 'JUDGES_BY', 'rewards') in what

  @property
  def shaped(self) -> bool:
    """Whether it judges by what scores and a KL become, not by scores alone."""
    return self.judges_by('rewards', 'returns')

  @property
  def regularized(self) -> bool:
    """Whether what holds it to the anchor comes to it: in the loss always."""
    return self.options['regularizer'] != 'none' and (
      self.options['regularize'] == 'loss' or self.shaped)

  @property
  def learnt_value(self) -> bool:
    """Whether a critic learns."""
    return 'critic' in self.roles

  def sets(self, name: str, *but: Any) -> bool:
    """Whether an option is set to other than these."""
    return self.options.get(name, but[0]) not in but


WHERE: dict[str, tuple[Callable[[Reader], bool], str]] = {
  'regularizer': (lambda r: r.options['regularize'] == 'loss' or r.shaped,
                  'rl.regularize=loss, or an algorithm that judges by rewards'),
  'beta': (lambda r: r.regularized, 'a regularizer'),
  'regularize': (lambda r: r.regularized, 'a regularizer'),
  'regularizer_ratio': (lambda r: r.regularized and r.options['regularize'] == 'loss',
                        'a regularizer in the loss'),
  'kl_target': (lambda r: r.regularized, 'a regularizer'),
  'kl_horizon': (lambda r: r.regularized and r.sets('kl_target', 0), 'rl.kl_target'),
  'gamma': (lambda r: r.judges_by('returns') or 'gamma' in r.keywords,
            'an algorithm of returns to go'),
  'baseline_decay': (lambda r: 'baseline' in r.keywords and not r.sets(
    'baseline', 'moving_average'), 'rl.baseline=moving_average'),
  'value_weight': (lambda r: r.learnt_value, 'a critic'),
  'critic_from': (lambda r: r.learnt_value, 'a critic'),
  'reward_scale': (lambda r: r.shaped, 'an algorithm that judges by rewards'),
  'reward_clip': (lambda r: r.shaped, 'an algorithm that judges by rewards'),
  'reward_centre': (lambda r: r.shaped, 'an algorithm that judges by rewards'),
  'correction': (lambda r: 'correction' in r.keywords and r.sets('behaviour', 'sampler'),
                 'a policy gradient with log-probs of the trainer'),
  'correction_cap': (lambda r: 'correction' in r.keywords and r.sets(
    'behaviour', 'sampler') and r.sets('correction', 'none'), 'rl.correction'),
  'ensemble': (lambda r: r.sets('reward_weight', 0), 'a reward model'),
  'slots': (lambda r: r.sets('rollout', 'batch'), 'rl.rollout=slots or auto'),
  'best_metric': (lambda r: r.sets('keep', 'last') or r.sets('patience', 0),
                  'rl.keep=best or rl.patience'),
  'best_mode': (lambda r: r.sets('keep', 'last') or r.sets('patience', 0),
                'rl.keep=best or rl.patience'),
}
"""Option -> (whether an algorithm, as it is set, reads it; what would).

rl.value_learning_rate is not among them: it comes with the rates of a PEFT method, for whatever
algorithm is chosen (perl/config/rates.py)."""


def reader(module: ModuleType, options: Mapping[str, Any], roles: tuple[str, ...]) -> Reader:
  """An algorithm of resolved options, which trains these roles."""
  return Reader(module, options, keywords(module, critic='critic' in roles), roles)


def keywords(module: ModuleType, critic: bool = True) -> frozenset[str]:
  """The options that an algorithm's functions name, those of its critic's loss if it learns."""
  hooks = ['estimate', 'policy_loss', 'trains', *(['value_loss'] if critic else [])]
  functions = [getattr(module, hook) for hook in hooks if hasattr(module, hook)]
  return frozenset(name for function in functions for name in names(function))
