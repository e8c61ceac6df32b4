"""How a policy that learns does on held-out prompts: one sampled response to each.

What is measured of the anchor, before the first update, also says what rewards are centred and
scaled by, and in what units a critic that begins as the reward model has to speak.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from perl.data.examples import Example
from perl.evaluate import generation
from perl.jobs import _responses as responses
from perl.jobs._artefacts import Base
from perl.jobs._data import Data
from perl.jobs._run import Run
from perl.options import picked
from perl.rl import algorithms, experience, statistics
from perl.train import metrics
from perl.train import step as steps
from perl.types import Tree

SHOWN = 'rollouts.jsonl'
"""The texts of some dev prompts at each evaluation, in the stage's folder."""


@dataclasses.dataclass(frozen=True)
class HeldOut:
  """The prompts of a split, and what answers them is judged by."""

  run: Run
  data: Data
  anchor: Base
  frozen: dict[str, Tree]
  split: str
  known: dict[int, responses.Responses] = dataclasses.field(default_factory=dict)

  @functools.cached_property
  def examples(self) -> list[Example]:
    """What is answered."""
    return self.data.answered(self.split)

  def answers(self, state: steps.TrainState) -> responses.Responses:
    """The policy's, sampled once a step: step 0 is asked for several times."""
    step = int(state.step)
    if step not in self.known:
      first = {0: self.known[0]} if 0 in self.known else {}
      self.known.clear()  # texts of all evaluations would fill the memory
      self.known.update(first | {step: responses.respond(
        self.run, self.data, self.anchor, state.adapters['policy'], self.examples,
        jax.random.fold_in(self.run.key, 2), frozen=self.frozen)})
    return self.known[step]

  def measure(self, state: steps.TrainState) -> dict[str, float]:
    """Reward, KL, gold reward and monitors; a response that no rule can judge counts for none."""
    answers = self.answers(state)
    values = {
      'reward': generation.mean(answers.scores),
      'kl': generation.mean(answers.kl),
      **generation.monitors(answers.tokens, answers.finished, answers.logprobs),
    }
    gold = self.data.gold_rewards(self.examples, answers.texts)
    return values if gold is None else values | {'gold_reward': float(gold.mean())}

  def show(self, writer: metrics.Writer, step: int) -> None:
    """Some texts of the step's policy, to SHOWN and TensorBoard; the prompts stay the same."""
    answers, count = self.known[step], self.run.config.evaluate.samples
    places = np.linspace(0, len(self.examples) - 1, min(count, len(self.examples))).round()
    writer.texts(SHOWN, step, [
      {'prompt': self.examples[i].prompt, 'response': answers.texts[i],
       'reward': float(answers.scores[i]), 'kl': float(answers.kl[i])}
      for i in places.astype(int)])


@dataclasses.dataclass(frozen=True)
class Units:
  """How scores become returns: (1 - beta) (score - offset) scale, before any KL."""

  offset: float
  scale: float
  share: float  # 1 - beta where beta stands in the reward, else 1
  weight: float  # of the reward model's score
  rest: float  # the mean of what rules and bad ends add to it

  def of_critic(self, head: Tree) -> Tree:
    """The head of a reward model, in units of the return: V = share scale (w r + rest - offset).

    Args:
      head: with kernel and bias.
    """
    factor = self.share * self.scale
    shift = factor * (self.rest - self.offset)
    return head | {'kernel': factor * self.weight * head['kernel'],
                   'bias': factor * self.weight * head['bias'] + shift}


def units_of(rl: Any, answers: responses.Responses, running: Tree) -> tuple[Units, Tree]:
  """(the units of returns, the statistics that RL begins with) by the anchor's own responses.

  Args:
    rl: config.rl, resolved.
    answers: of the anchor to dev prompts.
    running: `statistics.first`.
  """
  lengths = np.array([len(row) for row in answers.tokens])
  scores = np.asarray(experience.less_bad_ends(
    answers.scores, answers.finished, lengths,
    **picked(rl, ('max_new_tokens', 'missing_eos_penalty', 'overlong'))))
  judged = np.isfinite(scores)
  scores, models = scores[judged], (answers.scores - answers.ruled)[judged]
  if not len(scores):
    raise ValueError('expected rules to judge some of the anchor\'s responses to dev prompts, '
                     'found no reward among them; look at rl.rules')
  running = statistics.begun(running, jnp.asarray(scores))
  scale = statistics.scale(running, jnp.zeros(1), jnp.zeros(1))
  return Units(
    offset=float(scores.mean()) if rl.reward_centre else 0.0, scale=float(scale),
    share=1.0 - rl.beta if algorithms.in_reward(rl) else 1.0, weight=rl.reward_weight,
    rest=float(scores.mean() - models.mean())), running
