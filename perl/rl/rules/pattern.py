"""1 for a response that the regular expression meta['pattern'] matches whole, else 0."""

import re
from collections.abc import Sequence
from types import ModuleType

from perl.data.examples import Example


def rewards(
  examples: Sequence[Example], responses: Sequence[str], dataset: ModuleType
) -> list[float]:
  """One number a response."""
  del dataset
  return [float(re.fullmatch(example.meta['pattern'], text, re.DOTALL) is not None)
          for example, text in zip(examples, responses)]
