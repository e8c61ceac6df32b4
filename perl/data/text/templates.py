"""Chat templates of published checkpoints: jinja2 source, rendered in a sandbox.

A template is text of a stranger. It sees the messages, the tools and the special tokens as plain
values; jinja2's sandbox refuses it the rest of Python, and a process of its own bounds its time,
its memory and its output.
"""

import datetime
import re
from collections.abc import Sequence
from typing import Any

from perl import bounded
from perl.data.text import tool_calls
from perl.data.text.template_dialect import CLOSE, MARKED, OPEN

Message = dict[str, Any]

_PROBE = 'zebra aardvark'
# A generation prompt that opens a thought.
_THOUGHT = re.compile(r'<(\w+)>(\s*)$')

_write = bounded.Function('perl.data.text.template_dialect:write')


class Refusal(ValueError):
  """A template does not render these messages: its own exception, or an error in it."""


def _day(date: str) -> datetime.date:
  try:
    return datetime.date.fromisoformat(date) if date else datetime.date.today()
  except ValueError as error:
    raise ValueError("chat template: expected data.date to be a day as '2026-03-31'; found "
                     f'{date!r}; write it so') from error


class Template:
  """A chat template, compiled and rendered in bounded time and memory (perl/bounded.py).

  Args:
    source: what Tokenizer.chat_template holds.
    special_tokens: bos_token, eos_token, ... as the template reads them; Tokenizer.special_tokens.
    date: the day that a template which asks for it is told, '2026-03-31'; '' is today. The time of
      the day is midnight, so that a run's prompts are the same whenever they are rendered.

  Attributes:
    source, special_tokens: as above.
    date: the day; '' where the template does not ask.

  Raises:
    ValueError: the source is not a template, or the date is none.
  """

  def __init__(self, source: str, special_tokens: dict[str, str], date: str = ''):
    if not isinstance(source, str):
      raise ValueError(f'chat template: expected the source of a template; found {source!r:.60}; '
                       'give the path of a tokenizer that has one (an instruct checkpoint)')
    self._day = _day(date).isoformat()
    try:
      self._has_blocks = _write(source, self._day)
    except (bounded.Failed, bounded.Exceeded) as error:
      raise ValueError(f'chat template: expected a jinja2 template; found {error}; repair the '
                       'template') from error
    self.date = self._day if 'strftime_now' in source else ''
    self.source, self.special_tokens = source, dict(special_tokens)
    self._leaves_out: dict[str, bool] = {}

  def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = False,
             tools: Sequence[dict] | None = None) -> str:
    """The text of a chat; with `add_generation_prompt` up to where the assistant is to speak.

    Raises:
      Refusal (a ValueError): the template refuses the messages, or fails on them.
    """
    return self._render(messages, tools, add_generation_prompt=add_generation_prompt)

  def _render(self, messages: Sequence[Message], tools: Sequence[dict] | None,
              **variables: Any) -> str:
    # Tables have null where a message lacks a field, and templates take that for a value.
    messages = [{k: v for k, v in message.items() if v is not None} for message in messages]
    if not any(message.get('tool_calls') for message in messages):
      return self._text(messages, tools, variables)
    refused = None
    for variant in tool_calls.variants(messages):
      try:
        text = self._text(variant, tools, variables)
        lost = tool_calls.unwritten(variant, lambda m: self._text(m, tools, variables))
      except Refusal as refusal:
        refused = refused or refusal
        continue
      if not any(not messages[i].get('content') for i in lost):
        return text
      refused = Refusal(
        f'chat template: expected it to write the tool calls of message {lost[0]} (counted from '
        '0), which says nothing else; found that it leaves them out; use a template that writes '
        'them, or write the call into the content')
    raise refused

  def _text(self, messages: Sequence[Message], tools: Sequence[dict] | None,
            variables: dict[str, Any]) -> str:
    variables = self.special_tokens | variables
    try:
      return _write(self.source, self._day, variables | {
        'messages': messages, 'tools': tools, 'documents': None})
    except (bounded.Failed, bounded.Exceeded) as error:
      roles = ', '.join(str(message.get('role')) for message in messages)
      raise Refusal(f'chat template: expected it to render messages with the roles [{roles}]; '
                    f'found {error}; change the messages, or the template') from error

  def prompt(self, context: Sequence[Message], tools: Sequence[dict] | None = None) -> str:
    """The text of a chat up to where the assistant is to speak.

    It is the context with the generation prompt. Of no messages it is what the template writes
    before the first words of an assistant that opens: bos and perhaps a system turn of its own, and
    the generation prompt.

    Raises:
      Refusal (a ValueError): the template does not render the context.
    """
    if context:
      return self.render(context, add_generation_prompt=True, tools=tools)
    head = self.answered((), tools).partition(_PROBE)[0]
    asked = [{'role': 'user', 'content': _PROBE}]
    question = self.render(asked, tools=tools)
    header = self.render(asked, add_generation_prompt=True, tools=tools).removeprefix(question)
    thought = _THOUGHT.search(header)
    for known in (header, header[:thought.start()] if thought else ''):
      if known and known in head:
        return head[:head.rindex(known)] + header
    return head.rstrip()  # what stands before an answer is a part of it

  def answered(self, context: Sequence[Message], tools: Sequence[dict] | None = None) -> str:
    """The text of a chat in which the assistant says something after the context.

    Raises:
      Refusal (a ValueError): the template has no place for an answer there.
    """
    return self.render([*context, {'role': 'assistant', 'content': _PROBE}], tools=tools)

  def leaves_out(self, role: str) -> bool:
    """Whether the template writes nothing of what a message of the role 'system' or 'tool' says."""
    if role not in self._leaves_out:
      probe, user = {'role': role, 'content': _PROBE}, {'role': 'user', 'content': 'a'}
      chat = [probe, user] if role == 'system' else [
        user, {'role': 'assistant', 'content': 'b'}, probe]
      try:
        self._leaves_out[role] = _PROBE not in self.render(chat)
      except Refusal:  # it will refuse such messages, or it takes them elsewhere
        self._leaves_out[role] = False
    return self._leaves_out[role]

  def turn(self, context: Sequence[Message], message: Message,
           tools: Sequence[dict] | None = None) -> tuple[str, str]:
    """(`prompt` of the context, what the template writes for `message` after it).

    A generation prompt may open a thought that the template leaves out of what was said (DeepSeek's
    ends in '<think>'). The message is then what a policy would say there: its thought, if it has
    one, the end of it, the answer, and what the template writes after that.

    Raises:
      ValueError: the one is no beginning of the whole.
    """
    prompt = self.prompt(context, tools)
    whole = self.render([*context, message], tools=tools)
    if whole.startswith(prompt):
      return prompt, whole[len(prompt):]
    opening = _THOUGHT.search(prompt)
    if opening and whole.startswith(prompt[:opening.start()]) and not message.get('tool_calls'):
      written = self.render([*context, {**message, 'content': _PROBE}], tools=tools)
      return prompt, _thinking(message, *opening.groups()) + written.rpartition(_PROBE)[2]
    raise _differs(
      f'the turn of message {len(context)} (counted from 0) to begin with the generation prompt',
      prompt, whole, 'its generation prompt does not open its turns; change the template, or set '
      'data.chat_template=false')

  def spans(self, messages: Sequence[Message],
            tools: Sequence[dict] | None = None) -> tuple[str, list[tuple[int, int]]]:
    """(the text of a chat, the ranges of characters (begin, end) that the assistant says).

    A range holds the content and the token that ends the turn; of messages with `weight: 0` there
    is none. It is what the template's
    `{% generation %}` blocks enclose; of a template without any, what stands after the generation
    prompt of each assistant message, less the white space at its end.

    Raises:
      ValueError: the template refuses the messages, or has no such blocks and writes a turn in
        another way once others follow it.
    """
    text = self.render(messages, tools=tools)
    if self._has_blocks:
      return text, _learnt(messages, self._blocks(messages, tools, text))
    spans = []
    for index, message in enumerate(messages):
      if message.get('role') == 'assistant' and message.get('weight') != 0:
        prompt, spoken = self.turn(messages[:index], message, tools)
        turn = prompt + spoken.rstrip()
        if not text.startswith(turn):
          raise _differs(
            f'message {index} (counted from 0) to be written after what stands before it', turn,
            text, 'the template writes earlier turns anew; give it {% generation %} blocks, or set '
            'sft.whole_chats=false: a row a turn')
        spans.append((len(prompt), len(turn)))
    return text, spans

  def _blocks(self, messages: Sequence[Message], tools: Sequence[dict] | None,
              text: str) -> list[tuple[int, int]]:
    marked = self._render(messages, tools, add_generation_prompt=False, **{MARKED: True})
    if marked.replace(OPEN, '').replace(CLOSE, '') != text:
      raise ValueError(
        'chat template: expected it to write its {% generation %} blocks as they stand; found that '
        f'it works on their text afterwards, or that the chat holds {OPEN!r} or {CLOSE!r}; '
        'change the template, or take the characters out')
    spans, position, depth, begin = [], 0, 0, 0
    for piece in re.split(f'([{OPEN}{CLOSE}])', marked):
      if piece == OPEN:
        begin, depth = begin if depth else position, depth + 1
      elif piece == CLOSE:
        depth -= 1
        spans += [] if depth or begin == position else [(begin, position)]
      else:
        position += len(piece)
    return spans


def _learnt(messages: Sequence[Message], spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
  """The ranges of the assistant's messages, without those of messages with `weight: 0`."""
  weights = [message.get('weight') for message in messages if message.get('role') == 'assistant']
  if 0 not in weights:
    return spans
  if len(spans) != len(weights):
    raise ValueError(
      'chat template: expected a {% generation %} block for each message of the assistant, to '
      f'leave out those with weight 0; found {len(spans)} blocks and {len(weights)} messages; '
      'change the template, or set sft.whole_chats=false: a row a turn')
  return [span for span, weight in zip(spans, weights) if weight != 0]


def _thinking(message: Message, tag: str, space: str) -> str:
  """What is said after an opened thought: all that the message has of it, its end, the answer."""
  content, thought = message.get('content') or '', message.get('reasoning_content') or ''
  end = f'</{tag}>'
  if end in content:
    return content.lstrip().removeprefix(f'<{tag}>').removeprefix(space)
  return f'{thought}\n{end}\n\n{content}'


def _differs(expected: str, wanted: str, whole: str, remedy: str) -> ValueError:
  same = next((i for i, (a, b) in enumerate(zip(wanted, whole)) if a != b), len(whole))
  return ValueError(
    f'chat template: expected {expected}, {wanted[same:same + 40]!r} at character {same}; found '
    f'{whole[same:same + 40]!r}: {remedy}')
