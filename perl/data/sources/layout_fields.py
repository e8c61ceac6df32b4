"""Fields of the user's rows, as their layouts have them; errors name the field and the line."""

import math
from collections.abc import Callable
from typing import Any

ROLES = {'user': 'user', 'system': 'user', 'assistant': 'agent', 'agent': 'agent', 'tool': 'api'}
"""Whose turn a message is, by its role."""


def text(row: dict[str, Any], name: str, where: str) -> str:
  """A field that is a string."""
  if not isinstance(row.get(name), str):
    raise ValueError(f'local: expected {name!r} to be a string in {where}; found '
                     f'{row.get(name)!r:.60}; repair the row')
  return row[name]


def number(row: dict[str, Any], name: str, where: str, allowed: Callable[[float], bool],
           expected: str) -> float:
  """A field that is a number of those that are allowed; `expected` says which."""
  value = row[name]
  if not isinstance(value, (bool, int, float)) or not allowed(float(value)):
    raise ValueError(f'local: expected {name!r} to be {expected} in {where}; found {value!r}; '
                     'repair the row')
  return float(value)


def label(row: dict[str, Any], where: str) -> float:
  """A thumb."""
  return number(row, 'label', where, lambda value: value in (0.0, 1.0), '0, 1, false or true')


def rating(row: dict[str, Any], where: str) -> float:
  """A number of any size; true and false are thumbs."""
  if isinstance(row['rating'], bool):
    raise ValueError(f"local: expected 'rating' to be a number in {where}; found {row['rating']}; "
                     "name thumbs 'label'")
  return number(row, 'rating', where, math.isfinite, 'a finite number')


def check_responses(row: dict[str, Any], where: str, *, least: int) -> None:
  """Raises ValueError unless `responses` is a list of so many."""
  value = row['responses']
  if not isinstance(value, list) or len(value) < least:
    raise ValueError(f"local: expected 'responses' to be a list of at least {least}, best first, "
                     f'in {where}; found {value!r:.60}; repair the row')


def margin(row: dict[str, Any], where: str) -> float:
  """By how much chosen is better than rejected; 0 where the row does not say."""
  return number({'margin': 0.0} | row, 'margin', where, lambda value: value >= 0, '>= 0')


def messages(row: dict[str, Any], name: str, where: str) -> list[dict[str, Any]]:
  """The messages of a field, as they stand there."""
  chat = row[name]
  for message in chat if isinstance(chat, list) else [None]:
    if not isinstance(message, dict) or not all(
        isinstance(message.get(name), str) for name in ('role', 'content')) or (
        message['role'] not in ROLES):
      raise ValueError(
        f'local: expected {name!r} to be a list of {{role, content}} with roles '
        f'{", ".join(ROLES)} in {where}; found {message!r:.60}; repair the row')
  return chat
