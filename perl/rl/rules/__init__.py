"""Rewards by rule: plain Python over prompts and the texts of their responses, or over tokens.

A rule is a file here, or a function of the user's own ('my_package.my_module:my_function'):

  rewards(examples, responses, dataset) -> one number a response, or None where it cannot say

with the example of each prompt (its `meta` holds what a right answer is checked against), the text
without its EOS, and the dataset's module (a file here may also have `check(example, dataset)`,
which is called before anything is sampled); or, told by the names of its arguments,

  rewards(tokens, mask) -> f32[B]

which is jitted, of i32[B, R] and bool[B, R], the EOS included: no text is decoded for it.

A response to which a rule gives None is left out of the update, and counted (metric `left_out`).
Config.rl.rules names them, config.rl.rule_weights weighs them; their sum is added to the reward
model's score, which config.rl.reward_weight weighs.
"""

import importlib
import inspect
import numbers
from collections.abc import Callable, Sequence
from types import ModuleType

import jax
import numpy as np

from perl import choices
from perl.data.examples import Example

Rule = Callable[[Sequence[Example], Sequence[str], ModuleType], Sequence[float]]
TokenRule = Callable[[jax.Array, jax.Array], jax.Array]


def load(name: str) -> Rule | TokenRule:
  """The rule of that name.

  Raises:
    ValueError: there is none.
  """
  module, _, function = name.partition(':')
  if not function:
    return choices.find(__name__, name).rewards
  try:
    return getattr(importlib.import_module(module), function)
  except (ImportError, AttributeError) as error:
    raise ValueError(f"expected a file of perl/rl/rules, or 'module:function', found {name!r} "
                     f'({error}); see perl/rl/rules/__init__.py') from error


class Rules:
  """Weighted rules of one dataset.

  Args:
    names: see the module's docstring.
    weights: one a rule; () is 1 each.
    dataset: the dataset's module.

  Raises:
    ValueError: a name that is none, or another number of weights.
  """

  def __init__(self, names: Sequence[str], weights: Sequence[float], dataset: ModuleType):
    if weights and len(weights) != len(names):
      raise ValueError(f'expected a weight for each of {len(names)} rules, found {len(weights)}')
    self.dataset, self.weights = dataset, tuple(weights) or (1.0,) * len(names)
    self.rules = {name: load(name) for name in names}
    self.of_tokens = {name: jax.jit(rule) for name, rule in self.rules.items()
                      if list(inspect.signature(rule).parameters) == ['tokens', 'mask']}

  def __bool__(self) -> bool:
    return bool(self.rules)

  @property
  def read_texts(self) -> bool:
    """Whether a rule asks for texts."""
    return len(self.of_tokens) < len(self.rules)

  def check(self, examples: Sequence[Example]) -> None:
    """Asks every rule of this folder whether it can check responses to these prompts.

    Raises:
      ValueError: it cannot, for what the prompt's row holds; the row is named.
    """
    for name in self.rules:
      asks = None if ':' in name else getattr(choices.find(__name__, name), 'check', None)
      for example in examples if asks else ():
        asks(example, self.dataset)

  def each(
    self, examples: Sequence[Example], responses: Sequence[str], tokens: jax.Array,
    mask: jax.Array,
  ) -> dict[str, np.ndarray]:
    """{rule: f32[N], what it gives to each response; NaN where it gives None}.

    Args:
      examples: N, those of the prompts.
      responses: N texts; may be empty where no rule reads them.
      tokens: i32[N, R], of the responses.
      mask: bool[N, R].

    Raises:
      ValueError: a rule gives another number of rewards, or some that are not finite.
    """
    rewards = {}
    for name, rule in self.rules.items():
      values = self.of_tokens[name](tokens, mask) if name in self.of_tokens else rule(
        examples, responses, self.dataset)
      rewards[name] = _numbers(values, len(tokens), name)
    return rewards

  def total(self, each: dict[str, np.ndarray]) -> np.ndarray:
    """f32[N]: the weighted sum of what `each` gives; what is no reward adds nothing."""
    return np.sum([weight * np.nan_to_num(each[name])
                   for name, weight in zip(self.rules, self.weights)], 0, dtype=np.float32)


def _numbers(values: Sequence[float | None] | jax.Array, count: int, name: str) -> np.ndarray:
  """f32[count] of a rule's rewards, NaN for None alone.

  Raises:
    ValueError: another number of them, or one that is no finite number.
  """
  listed = [x.item() if isinstance(x, np.generic | jax.Array) else x for x in values]
  ok = lambda x: x is None or (isinstance(x, numbers.Real) and np.isfinite(np.float32(x)))
  if len(listed) != count or not all(ok(x) for x in listed):
    wrong = next((x for x in listed if not ok(x)), f'{len(listed)} rewards')
    raise ValueError(f'expected {count} rewards of the rule {name}, each a finite number, or None '
                     f'for a response to be left out, found {wrong!r:.80}')
  return np.array([np.nan if x is None else x for x in listed], np.float32)
