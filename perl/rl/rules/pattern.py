"""1 for a response that the regular expression meta['pattern'] matches whole, else 0."""

import re
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from perl.data.examples import Example
from perl.rl.rules import _meta as meta


def rewards(
  examples: Sequence[Example], responses: Sequence[str], dataset: ModuleType
) -> list[float]:
  """One number a response.

  Raises:
    ValueError: a prompt without a pattern, by its row.
  """
  del dataset
  return [float(_pattern(example).fullmatch(text) is not None)
          for example, text in zip(examples, responses)]


def check(example: Example, dataset: ModuleType) -> None:
  """Raises ValueError for a prompt without a pattern."""
  del dataset
  _pattern(example)


def _pattern(example: Example) -> re.Pattern:
  return meta.read(example, 'pattern', ('pattern',), _compiled, 'a regular expression')


def _compiled(value: Any) -> re.Pattern | None:
  try:
    return re.compile(value, re.DOTALL) if isinstance(value, str) else None
  except re.error:
    return None
