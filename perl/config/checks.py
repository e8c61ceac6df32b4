"""How the fields of what is learnt, and from what, fit together: a part of validate.py."""

import math
from collections.abc import Iterator

from ml_collections import ConfigDict

from perl import choices
from perl.config import schema
from perl.config.fields import pick
from perl.preference import methods
from perl.rl import algorithms


def _algorithm(config: ConfigDict) -> Iterator[str]:
  if config.rl.algorithm not in choices.names('perl.rl.algorithms'):
    return  # said of the field itself
  rl = algorithms.resolve(config.rl.algorithm, config.rl.to_dict())
  yield from algorithms.problems(rl)
  if rl['baseline'] in schema.FIELDS['rl.baseline'].choices:
    yield from algorithms.unread(config.rl.to_dict(), {
      path.removeprefix('rl.'): field.default for path, field in schema.of_stage('rl').items()})
  parts = [rl[name] for name in ('samples', 'minibatches', 'microbatches')]
  if min(parts) > 0 and rl['batch_size'] % math.prod(parts):
    yield (f'expected rl.samples times rl.minibatches times rl.microbatches to divide '
           f'rl.batch_size, found {parts[0]}, {parts[1]}, {parts[2]} and {rl["batch_size"]}; '
           'change one')


def _rules(config: ConfigDict) -> Iterator[str]:
  known = choices.names('perl.rl.rules')
  for name in config.rl.rules:
    if name not in known and ':' not in name:
      yield (f"expected rl.rules to name files of perl/rl/rules or 'module:function', found "
             f'{name!r}{pick(name, list(known))}')
  if config.rl.rule_weights and len(config.rl.rule_weights) != len(config.rl.rules):
    yield (f'expected a weight for each of rl.rules, found {len(config.rl.rule_weights)} for '
           f'{len(config.rl.rules)}; set rl.rule_weights')
  if not config.rl.reward_weight and not config.rl.rules:
    yield ('expected a reward model or rules, found rl.reward_weight=0 and no rl.rules: nothing '
           'would be rewarded; set either')


def _reward(config: ConfigDict) -> Iterator[str]:
  reward = config.reward
  kinds = {
    'share_prompt': (('pairwise',), 'only a pair is laid out so'),
    'margin': (('pairwise',), 'only pairs have margins'),
    'centre': (('pairwise', 'ranking'), 'other scores have a zero already'),
    'probe': (('pairwise', 'pointwise'), 'a logistic regression is of pairs or thumbs'),
  }
  for name, (allowed, why) in kinds.items():
    if reward[name] and reward.kind not in allowed:
      yield (f'expected reward.kind={" or ".join(allowed)} for reward.{name}, found '
             f'{reward.kind!r}: {why}; set reward.{name}={type(reward[name])()}')
  for name in ('probe', 'adapter'):
    if reward[name] and reward.members > 1:
      yield (f'expected reward.members=1 for reward.{name}, found {reward.members}: all members '
             f'would start alike; set reward.{name}={type(reward[name])()!r}')


def _ensemble(config: ConfigDict) -> Iterator[str]:
  rl = config.rl
  ours = 'reward' in config.stages and 'rl' in config.stages and not config.inputs.reward
  if rl.ensemble != 'mean' and ours and config.reward.members < 2:
    yield (f'expected reward.members of at least 2 for rl.ensemble={rl.ensemble}, found '
           f'{config.reward.members}; set reward.members=4, or rl.ensemble=mean')
  if rl.ensemble == 'uncertainty' and not rl.ensemble_penalty:
    yield ('expected rl.ensemble_penalty above 0 for rl.ensemble=uncertainty, found 0: that is the '
           'mean; set rl.ensemble_penalty=0.1, or rl.ensemble=mean')
  if rl.ensemble_penalty and rl.ensemble != 'uncertainty':
    yield (f'expected rl.ensemble=uncertainty for rl.ensemble_penalty, found {rl.ensemble!r}: only '
           'it weighs the variance; set rl.ensemble_penalty=0.0')


def _preferences(config: ConfigDict) -> Iterator[str]:
  section = config.preference
  if section.method not in choices.names('perl.preference.methods'):
    return
  method = methods.find(section.method)
  if method.drift and section.microbatches != 1:
    yield (f'expected preference.microbatches=1 for preference.method={section.method}, found '
           f'{section.microbatches}: its drift is of the whole batch; lower preference.batch_size')
  if method.drift and section.batch_size < 2:
    yield (f'expected preference.batch_size of at least 2 for preference.method={section.method}, '
           f'found {section.batch_size}: there must be another prompt; raise it')
  if section.share_prompt and method.examples != 'preference':
    yield (f'expected a method of pairs for preference.share_prompt, found {section.method!r}: a '
           'thumb has one response; set preference.share_prompt=False')


CHECKS = (_algorithm, _rules, _reward, _ensemble, _preferences)
"""Each config -> what is wrong, as expected, found, remedy."""
