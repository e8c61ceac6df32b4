"""What a rule checks responses against: an example's meta, read or refused with its row."""

from collections.abc import Callable
from typing import Any, TypeVar

from perl.data.examples import Example

Value = TypeVar('Value')

ANSWERS = ('answer', 'reward_model.ground_truth')
"""Where data sets have the right answer; the latter as verl's do."""


def read(
  example: Example, rule: str, names: tuple[str, ...], parse: Callable[[Any], Value | None],
  expected: str,
) -> Value:
  """parse(the first of these fields of meta that is there).

  Args:
    example: that of the prompt.
    rule: its name, for the error.
    names: of fields, those within an object after a dot.
    parse: gives None for what the rule cannot use.
    expected: what it can, in words.

  Raises:
    ValueError: none of the fields is there, or parse gives None; the row is named.
  """
  values = [value for value in (_field(example.meta, name) for name in names) if value is not None]
  parsed = parse(values[0]) if values else None
  if parsed is None:
    raise ValueError(
      f'rule {rule}: expected {expected} in {" or ".join(f"meta.{name}" for name in names)} of '
      f'{example.meta.get("source", "a prompt")}; found '
      f'{f"{values[0]!r:.60}" if values else "none"}; repair the row, or leave it out')
  return parsed


def _field(meta: dict[str, Any], name: str) -> Any:
  first, _, rest = name.partition('.')
  value = meta.get(first)
  if not rest:
    return value
  return _field(value, rest) if isinstance(value, dict) else None
