"""1 for a response that ends in the right number, meta['answer'], else 0 (data/sets/gsm8k.py)."""

from collections.abc import Sequence
from types import ModuleType

from perl.data.examples import Example
from perl.data.sets import gsm8k


def rewards(
  examples: Sequence[Example], responses: Sequence[str], dataset: ModuleType
) -> list[float]:
  """One number a response."""
  del dataset
  return [float(gsm8k.correct(text, example.meta['answer']))
          for example, text in zip(examples, responses)]
