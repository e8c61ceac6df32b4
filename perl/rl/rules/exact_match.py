"""1 for a response that is the right answer up to white space, else 0.

The answer is meta['answer'] or meta['reward_model']['ground_truth']: text, or a number.
"""

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
    ValueError: a prompt without an answer, by its row.
  """
  del dataset
  return [float(text.split() == _right(example)) for example, text in zip(examples, responses)]


def check(example: Example, dataset: ModuleType) -> None:
  """Raises ValueError for a prompt without an answer."""
  del dataset
  _right(example)


def _right(example: Example) -> list[str]:
  return meta.read(example, 'exact_match', meta.ANSWERS, _words, 'text or a number')


def _words(value: Any) -> list[str] | None:
  return str(value).split() if isinstance(value, str | int | float) else None
