"""Fields of the user's rows, as their layouts have them; errors name the field and the line."""

import math
from collections.abc import Callable
from typing import Any

from perl.data.text import tool_calls

NAMES = frozenset((
  'text', 'prompt', 'response', 'completion', 'label', 'chosen', 'rejected', 'responses', 'rating',
  'messages', 'tools', 'group', 'meta', 'margin'))
"""Of the fields that layouts have."""

IN_MESSAGES = frozenset((
  'role', 'content', 'name', 'tool_calls', 'tool_call_id', 'weight', 'reasoning_content'))
"""Of the fields of messages that are read here, or known to templates."""

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
  """The messages of a field, as they stand there; the assistant may call and say nothing."""
  chat = row[name]
  for message in chat if isinstance(chat, list) else [None]:
    named = isinstance(message, dict) and isinstance(message.get('role'), str)
    if not named or message['role'] not in ROLES:
      raise _no_message(name, message, where)
    called = ROLES[message['role']] == 'agent' and calls(message, where)
    if not isinstance(message.get('content', '' if called else None), str):
      raise _no_message(name, message, where)
    weight(message, where)
  return chat


def _no_message(name: str, message: Any, where: str) -> ValueError:
  return ValueError(
    f'local: expected {name!r} to be a list of {{role, content}} with roles '
    f'{", ".join(ROLES)} in {where}; found {message!r:.60}; repair the row')


def calls(message: dict[str, Any], where: str = 'a message') -> list[dict[str, dict[str, Any]]]:
  """[{name: arguments}, ...] of a message's tool_calls, in OpenAI's form or without 'function'.

  Arguments may be an object or JSON text of one.
  """
  found = []
  for call in message.get('tool_calls', ()):
    about = call.get('function', call) if isinstance(call, dict) else {}
    arguments = tool_calls.parsed(about.get('arguments', {})) if isinstance(about, dict) else None
    if not isinstance(arguments, dict) or not isinstance(about.get('name'), str):
      raise ValueError(
        "local: expected 'tool_calls' to be a list of {function: {name, arguments}}, the arguments "
        f'an object or JSON text of one, in {where}; found {call!r:.80}; repair the row')
    found.append({about['name']: arguments})
  return found


def weight(message: dict[str, Any], where: str = 'a message') -> float:
  """0 for a message that is not to be learnt, else 1 (OpenAI's field)."""
  return number({'weight': 1} | message, 'weight', where, lambda value: value in (0.0, 1.0),
                '0 or 1')


def present(value: Any, where: str) -> Any:
  """A row without its nulls, wherever they stand in an object: null means absent.

  Formats of tables have null for each field of each row that lacks it, so rows of all formats are
  the same.

  Raises:
    ValueError: text that is no Unicode (half of a surrogate pair), which no tokenizer reads.
  """
  if isinstance(value, dict):
    return {k: present(v, where) for k, v in value.items() if v is not None}
  if isinstance(value, list):
    return [present(v, where) for v in value]
  if isinstance(value, str) and not value.isascii():
    try:
      value.encode('utf-8')
    except UnicodeEncodeError as error:
      raise ValueError(f'local: expected text in {where}; found half of a surrogate pair at '
                       f'character {error.start} of {value[:40]!r}; repair the row') from None
  return value
