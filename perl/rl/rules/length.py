"""The length of a response in characters, over 100: with a negative weight, brevity."""

from collections.abc import Sequence
from types import ModuleType

from perl.data.examples import Example


def rewards(
  examples: Sequence[Example], responses: Sequence[str], dataset: ModuleType
) -> list[float]:
  """One number a response."""
  del examples, dataset
  return [len(text) / 100 for text in responses]
