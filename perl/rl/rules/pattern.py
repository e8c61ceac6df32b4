"""1 for a response that the regular expression meta['pattern'] matches whole, else 0.

A line break is a character as any other. What an expression may hold: perl/patterns.py.
"""

from collections.abc import Sequence
from types import ModuleType
from typing import Any

from perl import patterns
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
  match = lambda example, text: patterns.matching(
    _pattern(example), [text], "meta['pattern']", flags='s')[0]
  return [float(match(example, text)) for example, text in zip(examples, responses)]


def check(example: Example, dataset: ModuleType) -> None:
  """Raises ValueError for a prompt without a pattern."""
  del dataset
  _pattern(example)


def _pattern(example: Example) -> str:
  return meta.read(example, 'pattern', ('pattern',), _known, 'a regular expression')


def _known(value: Any) -> str | None:
  try:
    return patterns.check(value, "meta['pattern']")
  except ValueError:
    return None
