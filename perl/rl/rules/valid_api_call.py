"""1 for a response that could be carried out, else 0: `valid_api_call` of Taskmaster datasets."""

from collections.abc import Sequence
from types import ModuleType

from perl.data.examples import Example


def rewards(
  examples: Sequence[Example], responses: Sequence[str], dataset: ModuleType
) -> list[float]:
  """One number a response."""
  return [dataset.response_metrics(example.prompt, text, '')['valid_api_call']
          for example, text in zip(examples, responses)]
