"""1 for a response that ends in the right number, 0 otherwise (data/sets/gsm8k.py).

The number is meta['answer'] or meta['reward_model']['ground_truth']: a number, or text that ends in
one, as '1,200' and whole solutions do.
"""

import decimal
from collections.abc import Sequence
from types import ModuleType

from perl.data.examples import Example
from perl.data.sets import gsm8k
from perl.rl.rules import _meta as meta


def rewards(
  examples: Sequence[Example], responses: Sequence[str], dataset: ModuleType
) -> list[float]:
  """One number a response.

  Raises:
    ValueError: a prompt without a number, by its row.
  """
  del dataset
  return [float(gsm8k.answer_of(text) == _right(example))
          for example, text in zip(examples, responses)]


def check(example: Example, dataset: ModuleType) -> None:
  """Raises ValueError for a prompt without a number."""
  del dataset
  _right(example)


def _right(example: Example) -> decimal.Decimal:
  return meta.read(example, 'gsm8k', meta.ANSWERS, gsm8k.number, 'a number, or text with one,')
