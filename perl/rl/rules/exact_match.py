"""1 for a response that is meta['answer'] up to white space, else 0."""

from collections.abc import Sequence
from types import ModuleType

from perl.data.examples import Example


def rewards(
  examples: Sequence[Example], responses: Sequence[str], dataset: ModuleType
) -> list[float]:
  """One number a response."""
  del dataset
  return [float(text.split() == str(example.meta['answer']).split())
          for example, text in zip(examples, responses)]
