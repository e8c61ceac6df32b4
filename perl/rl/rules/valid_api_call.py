"""1 for a response that could be carried out, else 0: `valid_api_call` of Taskmaster datasets."""

from collections.abc import Sequence
from types import ModuleType

from perl.data.examples import Example


def rewards(
  examples: Sequence[Example], responses: Sequence[str], dataset: ModuleType
) -> list[float]:
  """One number a response.

  Raises:
    ValueError: the dataset does not know which calls are valid.
  """
  return [_valid(example, text, dataset) for example, text in zip(examples, responses)]


def check(example: Example, dataset: ModuleType) -> None:
  """Raises ValueError for a dataset that does not know which calls are valid."""
  _valid(example, '', dataset)


def _valid(example: Example, text: str, dataset: ModuleType) -> float:
  known = getattr(dataset, 'response_metrics', lambda *_: {})(example.prompt, text, '')
  if 'valid_api_call' not in known:
    raise ValueError(
      f'expected a dataset with API calls for the rule valid_api_call, found {dataset.__name__}; '
      'take another rule, or data.name=taskmaster_coffee')
  return known['valid_api_call']
