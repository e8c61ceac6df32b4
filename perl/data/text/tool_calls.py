"""Calls of tools in messages, as chat templates take them.

OpenAI's messages have the arguments of a call as JSON text and no content beside it. Most templates
write arguments with `tojson` and want an object there; some join the text. Some write a call only
where the content is none, others fail on that. `variants` has all four ways, and `unwritten` says
which of the calls a template leaves out.
"""

import copy
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from perl import documents

Message = dict[str, Any]


class Arguments(dict):
  """An object of arguments that is JSON wherever a template writes it, with tojson or without."""

  def __str__(self) -> str:
    return json.dumps(self, ensure_ascii=False)


def parsed(arguments: Any) -> Any:
  """Arguments as an object, if they are JSON text of one; else as they are."""
  if not isinstance(arguments, str):
    return arguments
  try:
    value = documents.parse(arguments or '{}', 'the arguments of a call')
  except documents.Malformed:
    return arguments
  return value if isinstance(value, dict) else arguments


def variants(messages: Sequence[Message]) -> Iterator[list[Message]]:
  """The messages, with content of none or '' beside calls, and arguments as object or as text."""
  for as_text in (False, True):
    for content in (None, ''):
      yield [_with(message, content, _text if as_text else _object) for message in messages]


def _object(arguments: Any) -> Any:
  value = parsed(arguments)
  return Arguments(value) if isinstance(value, dict) else value


def _text(arguments: Any) -> Any:
  return arguments if isinstance(arguments, str) else str(Arguments(arguments))


def _with(message: Message, content: str | None, form: Callable[[Any], Any]) -> Message:
  if not message.get('tool_calls'):
    return message
  changed = copy.deepcopy(message | {'content': message.get('content') or content})
  for about in map(_function, changed['tool_calls']):
    about['arguments'] = form(about.get('arguments', {}))
  return changed


def _function(call: dict[str, Any]) -> dict[str, Any]:
  return call.get('function', call)


def unwritten(messages: Sequence[Message], render: Callable[[list[Message]], str]) -> list[int]:
  """The messages with a call whose name is not in the text that render(messages) gives."""
  probes, changed = {}, copy.deepcopy(list(messages))
  for index, message in enumerate(changed):
    for about in map(_function, message.get('tool_calls') or ()):
      about['name'] = f'zebra_{len(probes)}_aardvark'
      probes[about['name']] = index
  text = render(changed)
  return sorted({index for probe, index in probes.items() if probe not in text})
