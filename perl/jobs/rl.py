"""Stage `rl`: the policy's adapter learns from the reward model, held to the anchor by a KL.

Four roles over one base (the anchor): the policy and the critic learn; the reference, which is the
policy's own adapter before its first update, and the reward model are frozen adapters. There is one
copy of the base in memory, unless rl.layout asks for the conventional four.
"""

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from perl import trees
from perl.evaluate import generation
from perl.jobs import _artefacts as artefacts
from perl.jobs import _responses as responses
from perl.jobs import _setting as settings
from perl.jobs._collect import Step
from perl.peft import adapters
from perl.rl import algorithms, statistics
from perl.train import loop
from perl.train import step as steps
from perl.types import Tree


def run(config: ConfigDict, workdir: str) -> dict:
  """Leaves adapter/ (the policy's); returns reward, KL and gold reward of the test prompts."""
  setting = settings.begin(config, workdir, 'rl')
  anchor, rl = artefacts.load_anchor(setting), setting.config.rl
  learning = {role: _fresh(setting, anchor, role) for role in learners(setting)}
  reference = artefacts.reference(setting, anchor, learning['policy'])
  frozen = {'reference': reference, **responses.judges(setting, anchor)}
  tx = _optimizer(setting)
  state, places = artefacts.first_state(
    setting, anchor.params, learning, tx, running=statistics.first(**rl))
  dev, test = (_make_evaluation(setting, anchor, frozen, split) for split in ('dev', 'test'))
  start, offset = test(state), dev(state)['reward']
  step = Step(
    setting, anchor, frozen, tx, places, offset=offset if rl.reward_centre else 0.0)
  state, result = loop.fit(
    step, state, step.stream(),
    meta=artefacts.run_meta(setting, anchor, head=False),
    evaluate=dev,
    **setting.loop_options(),
  )
  artefacts.save_adapter(setting, anchor, state.adapters['policy'])
  return setting.finish({
    **{f'dev_{name}': value for name, value in result.items() if name != 'step_seconds'},
    'step_seconds': result.get('step_seconds'),
    **test(state),
    **{f'{name}_start': value for name, value in start.items()},
    **step.memory(state),
    'parameters_trainable': adapters.count(state.adapters['policy']),
    'parameters_trainable_all_roles': adapters.count(state.adapters),
    'parameters_total': trees.count(anchor.params),
  })


def learners(setting: settings.Setting) -> tuple[str, ...]:
  """The roles that the config's algorithm trains."""
  rl = setting.config.rl
  return algorithms.trains(rl.algorithm, rl)


def _fresh(setting: settings.Setting, anchor: artefacts.Base, role: str) -> Tree:
  """The role's adapter before the first update: the anchor's function; a critic's values are 0,
  or the reward model's scores.
  """
  rl, critic = setting.config.rl, role == 'critic'
  key = jax.random.fold_in(setting.key, ('policy', 'critic').index(role))
  adapter = artefacts.new_adapter(
    setting, anchor, key, head=critic, start='' if critic else rl.adapter)
  if critic and rl.critic_from == 'reward':
    return _of_reward(setting, anchor, adapter)
  if critic:
    adapter['head'] = jax.tree.map(jnp.zeros_like, adapter['head'])
  return adapter


def _of_reward(setting: settings.Setting, anchor: artefacts.Base, fresh: Tree) -> Tree:
  """The reward model as a critic: what its head reads of the last hidden state, and no more."""
  found, _ = artefacts.load_adapter(setting, setting.input('reward'), anchor)
  made = found | {'head': {name: found['head'][name] for name in fresh['head']}}
  if jax.tree.map(jnp.shape, made) != jax.tree.map(jnp.shape, fresh):
    raise ValueError(
      "expected a reward model of the critic's method, ranks and modules for "
      'rl.critic_from=reward, found another; train it with this config.peft, or set '
      'rl.critic_from=zero')
  return made


def _optimizer(setting: settings.Setting) -> optax.GradientTransformation:
  """A chain for each role: the gradient of one is not clipped for the other's sake."""
  rates = {'critic': setting.config.rl.value_learning_rate}
  chains = {
    role: setting.optimizer(**({'learning_rate': rates[role]} if role in rates else {}))
    for role in learners(setting)
  }
  labels = lambda tree: {
    role: jax.tree.map(lambda _, role=role: role, part) for role, part in tree.items()
  }
  return optax.partition(chains, labels)


def _make_evaluation(
  setting: settings.Setting, anchor: artefacts.Base, frozen: dict[str, Tree], split: str
):
  """State -> reward, KL, length, gold reward of one sample for each prompt of the split."""
  examples = responses.examples(setting, split)
  key = jax.random.fold_in(setting.key, 2)
  known: dict[int, dict[str, float]] = {}  # step 0 is asked for twice: for the offset, by the loop

  def evaluate(state: steps.TrainState) -> dict[str, float]:
    step = int(state.step)
    if step not in known:
      known[step] = of_policy(state)
    return known[step]

  def of_policy(state: steps.TrainState) -> dict[str, float]:
    found = responses.respond(
      setting, anchor, state.adapters['policy'], examples, key, frozen=frozen
    )
    values = {
      'reward': float(found.scores.mean()),
      'kl': float(found.kl.mean()),
      **generation.monitors(found.tokens, found.finished, found.logprobs),
    }
    gold = responses.gold_rewards(setting, examples, found.texts)
    return values if gold is None else values | {'gold_reward': float(gold.mean())}

  return evaluate
