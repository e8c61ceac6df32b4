"""What an algorithm is asked, and what it answers where a config leaves that open.

A file of this folder is an algorithm. It holds

  OWN                            its own values of options, by its paper
  JUDGES_BY                      what of an experience it judges responses by: 'rewards' (shaped, by
                                 token; else), 'returns' (to go), or 'scores' alone
  estimate(e, *, running, ...)   the whole batch's experience with its advantages, and whatever else
                                 compares responses; without gradient
  policy_loss(logprobs, e, ...)  (Mean, {metric: Mean}) of f32[B, T] log-probs of a minibatch

and, where it needs them,

  trains(...)                    the roles that learn; else the policy alone
  value_loss(values, e, ...)     Mean, of a critic
  VALUES_BEFORE = True           e.values is read before the first update, for `estimate`
  REFERENCE = True               reads the reference, whatever the regularizer
  GREEDY = True                  reads e.greedy_returns
  ON_POLICY = True               has no ratio to the policy that sampled: one update a rollout
  ADAM_EPS                       Adam's eps; else 1e-8

Each names the options that it takes as keywords, and is given no others (perl/options.py).
"""

import math
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from perl import choices
from perl.objectives import regularizers
from perl.options import declared, taken
from perl.rl.algorithms import _reads

OPEN: dict[str, Any] = {
  'samples': 1, 'epochs': 1, 'minibatches': 1, 'baseline': 'none', 'regularizer': 'kl',
  'regularize': 'reward', 'clip': 0.2, 'clip_high': None, 'level': 'token',
  'aggregation': 'sequence', 'whiten_advantages': False, 'overlong': 0.0, 'rounds': 1,
  'scale_rewards': 'group',
}
"""Option -> its value where neither the config nor the algorithm has one."""

HOOKS = ('estimate', 'policy_loss', 'trains', 'value_loss')
"""The functions of an algorithm that take options."""

COMMON = frozenset({'samples', 'running', 'max_new_tokens'})
"""What these functions may ask for, and every run has."""

PLACES = ('reward', 'loss')
"""Where a regularizer holds the policy: it lowers the reward of a token, or adds to the loss."""


def find(name: str) -> ModuleType:
  """The module perl.rl.algorithms.<name>.

  Raises:
    ValueError: there is none.
  """
  return choices.find(__name__, name)


def known_options() -> frozenset[str]:
  """The options of all algorithms."""
  return declared(__name__, HOOKS) - {'running', 'max_new_tokens'} | OPEN.keys()


def resolve(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
  """The options with what is None replaced by the algorithm's own value, or else by OPEN's.

  Raises:
    ValueError: no such algorithm.
  """
  module = find(name)
  own = OPEN | module.OWN
  options = {
    name: own[name] if value is None and name in own else value for name, value in given.items()}
  if 'optim' in options and options['optim']['eps'] is None:
    options['optim'] = {**options['optim'], 'eps': getattr(module, 'ADAM_EPS', 1e-8)}
  return options


def trains(name: str, options: Mapping[str, Any]) -> tuple[str, ...]:
  """The roles that learn: the policy, and the critic of an algorithm that has one."""
  module = find(name)
  own = getattr(module, 'trains', None)
  return ('policy',) if own is None else own(**taken(own, options))


def reads_reference(name: str, options: Mapping[str, Any]) -> bool:
  """Whether an update needs the reference; without it no anchor forward pass is made."""
  return options['regularizer'] != 'none' or getattr(find(name), 'REFERENCE', False)


def in_reward(options: Mapping[str, Any]) -> bool:
  """Whether a regularizer lowers the rewards of tokens."""
  return options['regularize'] == 'reward' and options['regularizer'] != 'none'


def reads(name: str, options: Mapping[str, Any]) -> frozenset[str]:
  """The options that the algorithm, as it is set, reads: perl/rl/algorithms/_reads.py.

  Args:
    name: of the algorithm.
    options: all of config.rl, resolved.
  """
  reader = _reads.reader(find(name), options, trains(name, options))
  own = declared(__name__, HOOKS) - COMMON

  def is_read(option: str) -> bool:
    where, _ = _reads.WHERE.get(option, (None, ''))
    return where(reader) if where else option not in own or option in reader.keywords

  return frozenset(option for option in options if is_read(option))


def unread(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[str]:
  """What is set and has no effect, a sentence each: nobody shall believe that it had one.

  Args:
    given: config.rl, with None where the algorithm decides.
    defaults: the same as nobody has set it.
  """
  name, wrong = given['algorithm'], []
  own = OPEN | find(name).OWN
  for option in sorted(given.keys() - reads(name, resolve(name, given))):
    value, usual = given[option], own.get(option, defaults[option])
    if value not in (None, usual, defaults[option]):
      wrong.append(f'expected rl.{option}={usual} for rl.algorithm={name}, found {value!r}: it '
                   f'would not be read; leave it, or set {_needs(option)}')
  return wrong


def readers(option: str) -> str:
  """Who reads an option, in words: what has to be set, or the algorithms; '' where all do."""
  if option in _reads.WHERE:
    return _reads.WHERE[option][1]
  if option not in declared(__name__, HOOKS) - COMMON:
    return ''
  return ', '.join(name for name in choices.names(__name__)
                   if option in _reads.keywords(find(name)))


def _needs(option: str) -> str:
  """What would read an option."""
  by = readers(option)
  return by if option in _reads.WHERE else f'rl.algorithm={by.replace(", ", " or ")}'


def updates(options: Mapping[str, Any]) -> int:
  """Updates on each rollout."""
  return options.get('epochs', 1) * options.get('minibatches', 1)


def problems(options: Mapping[str, Any]) -> list[str]:
  """What of resolved options does not go together, a sentence each; [] where all is well."""
  name, place, samples = options['regularizer'], options['regularize'], options.get('samples', 1)
  algorithm = options.get('algorithm')
  known = (*regularizers.SAMPLED, *regularizers.EXACT)
  wrong = []
  if name not in known:
    wrong.append(f'expected rl.regularizer among {", ".join(known)}, found {name!r}')
  if place not in PLACES:
    wrong.append(f'expected rl.regularize among {", ".join(PLACES)}, found {place!r}')
  if name in regularizers.EXACT and place == 'reward':
    wrong.append(f'expected rl.regularize=loss for rl.regularizer={name}, found {place!r}: as a '
                 'reward its own gradient would be missing; set rl.regularize=loss, or another')
  if name == 'kl' and place == 'loss' and not options.get('regularizer_ratio'):
    wrong.append("expected rl.regularize=reward for rl.regularizer=kl, found 'loss': there the "
                 'mean of its gradients is 0; set rl.regularizer=squared_error (k2), or '
                 'rl.regularizer_ratio=True')
  if samples < 2 and options.get('baseline') == 'leave_one_out':
    wrong.append(f'expected rl.samples of at least 2 for rl.baseline=leave_one_out, found '
                 f'{samples}; set rl.samples=4, or another baseline')
  if algorithm and samples < 2 <= find(algorithm).OWN.get('samples', 1):
    wrong.append(f'expected rl.samples of at least 2 for rl.algorithm={algorithm}, found '
                 f'{samples}: it compares the responses to a prompt; leave rl.samples open')
  if 0 < options.get('dual_clip', 0) <= 1:
    wrong.append(f'expected rl.dual_clip of 0 or above 1, found {options["dual_clip"]}; 3 is usual')
  if options.get('rounds', 1) > 1 and samples < 2:
    wrong.append(f'expected rl.samples of at least 2 for rl.rounds={options["rounds"]}, found '
                 f'{samples}: of one response nobody knows whether it differs; set rl.rounds=1, or '
                 'rl.samples=8')
  if options.get('critic_from') == 'reward' and not options.get('reward_weight', 1):
    wrong.append('expected a reward model for rl.critic_from=reward, found rl.reward_weight=0; set '
                 'rl.critic_from=zero')
  return wrong + _wrong_in_time(options) + _wrong_beta(options)


def _wrong_in_time(options: Mapping[str, Any]) -> list[str]:
  """What needs several updates, or bears one alone."""
  name, wrong = options.get('algorithm'), []
  if name and getattr(find(name), 'ON_POLICY', False) and updates(options) > 1:
    wrong.append(f'expected rl.epochs=1 and rl.minibatches=1 for rl.algorithm={name}, found '
                 f'{options["epochs"]} and {options["minibatches"]}: its loss has no ratio to the '
                 'policy that sampled; set both to 1, or use rl.algorithm=ppo, rloo or grpo')
  if options.get('stop_kl') and updates(options) == 1:
    wrong.append(f'expected several updates a rollout for rl.stop_kl={options["stop_kl"]}, found '
                 'one, which nothing can stop; set rl.epochs or rl.minibatches, or rl.stop_kl=0')
  return wrong


def _wrong_beta(options: Mapping[str, Any]) -> list[str]:
  """What an adaptive beta needs."""
  if not options.get('kl_target'):
    return []
  wrong = []
  if options['regularizer'] == 'none':
    wrong.append('expected a regularizer that an adaptive beta weighs, found rl.regularizer=none; '
                 'set rl.kl_target=0')
  if options.get('beta') == 0:
    wrong.append('expected rl.beta above 0 for rl.kl_target, found 0: a multiple of 0 stays 0; set '
                 'rl.beta=0.05, where it begins')
  if options.get('kl_horizon', math.inf) < options.get('batch_size', 0):
    wrong.append(f'expected rl.kl_horizon of at least rl.batch_size, found {options["kl_horizon"]} '
                 f'and {options["batch_size"]}: beta moves by a fifth a batch at most; raise it')
  return wrong
