"""1 for a response that the regular expression meta['pattern'] matches whole, else 0.

A line break is a character as any other. What an expression may hold: perl/patterns.py.
"""

from collections.abc import Sequence
from types import ModuleType

from perl import patterns
from perl.data.examples import Example


def rewards(
  examples: Sequence[Example], responses: Sequence[str], dataset: ModuleType
) -> list[float]:
  """One number a response.

  Raises:
    ValueError: an example whose meta holds no regular expression.
  """
  del dataset
  where = lambda example: f"meta['pattern'] of {example.meta.get('source', 'a row')}"
  return [float(patterns.matching(
    example.meta.get('pattern'), [text], where(example), flags='s')[0])
    for example, text in zip(examples, responses)]
