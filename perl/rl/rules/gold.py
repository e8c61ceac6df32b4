"""The dataset's own gold reward, where it knows one: what a perfect reward model would give."""

from collections.abc import Sequence
from types import ModuleType

from perl.data.examples import Example


def rewards(
  examples: Sequence[Example], responses: Sequence[str], dataset: ModuleType
) -> list[float]:
  """One number a response.

  Raises:
    ValueError: the dataset has no gold reward.
  """
  gold = getattr(dataset, 'gold_reward', None)
  if gold is None:
    raise ValueError(
      f'expected a dataset with a gold_reward for the rule gold, found {dataset.__name__}; '
      'take another rule, or data.name=toy')
  return [gold(example.prompt, text) for example, text in zip(examples, responses)]
