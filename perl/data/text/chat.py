"""Chats by the template of a published checkpoint: their ids, and examples rendered by it.

A chat is a list of messages {'role': 'system' | 'user' | 'assistant' | 'tool', 'content': str, ...}
as templates read them. The markup of our own dialogues (dialogue.py) can be read back as such.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from perl.data.examples import Document, Example, Prompt, Ranked
from perl.data.text import dialogue, special_text
from perl.data.text.offsets import before, beginning_before
from perl.data.text.templates import Message, Refusal, Template, Unopened
from perl.data.text.tokenizer import Tokenizer

_ROLES = {'user': 'user', 'agent': 'assistant', 'api': 'tool'}  # of our turns
_OPENINGS = {dialogue.MARKERS[role]: name for role, name in _ROLES.items()}


def of(tokenizer: Tokenizer, date: str = '') -> tuple[Template, Tokenizer]:
  """(a tokenizer's chat template, the tokenizer with what ends a turn of it as its eos).

  Gemma writes '<end_of_turn>' and Qwen '<|im_end|>', whatever their eos is; a policy that answers
  a chat has to stop there. A template that ends turns with no single token leaves eos as it is.
  `date` is what a template that reads the clock is told (Template).

  Raises:
    ValueError: the tokenizer has no template, or it does not render one question and its answer.
  """
  make = lambda special: Template(tokenizer.chat_template, special, date)
  template, probe = make(tokenizer.special_tokens), 'aardvark'
  question, answer = {'role': 'user', 'content': 'zebra'}, {'role': 'assistant', 'content': probe}
  asked, said = template.turn([question], answer)
  if question['content'] not in asked or probe not in said:
    raise ValueError(
      'chat template: expected it to write what the user and the assistant say; found that it '
      f'leaves it out of {asked + said!r:.80}: perhaps it writes images and lists of texts alone; '
      'use another one, or set data.chat_template=false')
  end = said.partition(probe)[2].strip()
  if not end or len(tokenizer.encode(end)) != 1:
    return template, tokenizer
  stopping = tokenizer.stopping_at(end)
  return make(stopping.special_tokens), stopping


def text_identity(tokenizer: Tokenizer, template: Template | None) -> dict[str, Any]:
  """What turns text into ids: {tokenizer, stops, template, date}.

  The template is known by its source and the special tokens that it reads; '' is none. The date is
  there where it reads the clock.
  """
  written = template and json.dumps([template.source, template.special_tokens], sort_keys=True)
  return {
    'tokenizer': tokenizer.digest, 'stops': list(tokenizer.stop_ids),
    'template': hashlib.sha256(written.encode()).hexdigest() if written else '',
    'date': template.date if template else ''}


def text_digest(tokenizer: Tokenizer, template: Template | None) -> str:
  """sha256 (hex) of `text_identity`; its own digest of a vocabulary with one end, no template."""
  if template is None and tokenizer.stop_ids == (tokenizer.eos_id,):
    return tokenizer.digest
  about = text_identity(tokenizer, template)
  return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def as_prompt(example: Example) -> Prompt:
  """What an example asks, without its answers."""
  cut = len(example.messages) - len(example.answers)
  return Prompt(example.prompt, group=example.group, meta=example.meta,
                messages=example.messages[:max(cut, 0)])


def encode(tokenizer: Tokenizer, template: Template, messages: Sequence[Message],
           tools: Sequence[dict] | None = None) -> tuple[list[int], list[bool]]:
  """(the ids of a whole chat, which of them the assistant says).

  The ids open with bos once, if the template or the tokenizer puts it there. A token that is only
  partly the assistant's is the assistant's; one that ends a turn before its end is nobody's.

  Raises:
    ValueError: see Template.spans.
  """
  text, spans = template.spans(messages, tools)
  ids, offsets = tokenizer.encode_with_offsets(text)
  mask = [False] * len(ids)
  for begin, end in spans:
    inside = slice(before(offsets, begin), beginning_before(offsets, end))
    mask[inside] = [True] * len(mask[inside])
    for end in special_text.inner_ends(ids[inside], tokenizer):
      mask[inside.start + end] = False
  if tokenizer.adds_bos and ids[:1] != [tokenizer.bos_id]:
    return [tokenizer.bos_id, *ids], [False, *mask]
  return ids, mask


def encode_document(
    tokenizer: Tokenizer, template: Template, document: Document
) -> tuple[list[int], list[bool]]:
  """`encode` of a document's messages, or of what its text holds in our markup; ([], []) of others.

  What the template refuses is put in other roles, as in `apply`.
  """
  messages, tools = _messages(document)[0], document.meta.get('tools')
  if not messages:
    return [], []
  return _as_it_takes(
    template, document, messages, lambda form: encode(tokenizer, template, form, tools))


def _forms(template: Template, messages: list[Message]) -> Iterator[list[Message]]:
  """The messages as they are, in plain roles, and those after an empty turn of the user."""
  if not any(message['role'] in ('system', 'tool') and template.leaves_out(message['role'], i == 0)
             for i, message in enumerate(messages)):
    yield messages
  yield (plain := _plain(messages))
  if not plain or plain[0]['role'] == 'assistant':
    yield [{'role': 'user', 'content': ''}, *plain]


def _as_it_takes(template: Template, example: Example, messages: list[Message],
                 write: Callable[[list[Message]], Any]) -> Any:
  """write(form) of the first of the messages' `_forms` that the template does not refuse.

  Raises:
    ValueError: it refuses all of them, which names the row.
  """
  refusal = None
  try:
    for form in _forms(template, messages):
      try:
        return write(form)
      except Refusal as error:
        refusal = refusal or error
    raise refusal
  except ValueError as error:
    if source := example.meta.get('source'):
      raise type(error)(f'{source}: {error}') from error
    raise


def as_messages(text: str) -> list[Message]:
  """The messages of a dialogue in our markup; an open '<|agent|>' at its end gives none.

  Text before the first marker is the user's.
  """
  first, *parts = re.split(f'({"|".join(map(re.escape, _OPENINGS))})', text)
  messages = [{'role': 'user', 'content': first}] if first.strip() else []
  for marker, body in zip(parts[::2], parts[1::2]):
    role = _OPENINGS[marker]
    if role == 'assistant':
      closed = body.rstrip().endswith(dialogue.END)
      body = body.rstrip().removesuffix(dialogue.END) if closed else body
      if not (closed or body):
        continue
    messages.append({'role': role, 'content': body})
  return messages


def apply(template: Template, example: Example) -> Example:
  """The example as the template writes it, in place of our markers; other fields stay.

  The prompt ends with the generation prompt. A response is what the template writes after it; if
  that ends with the tokenizer's eos it is left out, for the pipeline appends it. The messages are
  the example's; one without any has them in our markup, or its prompt is what a user says. A
  document without either is left as it is.

  Where the template refuses them, or leaves a role out, system and tool messages become the user's,
  and neighbours of one role become one message, joined by a blank line; where it refuses these too,
  and the assistant opens, an empty turn of the user stands before it.

  Raises:
    ValueError: the template refuses these too, or its generation prompt does not open the turn;
      the file and row are named.
  """
  tools = example.meta.get('tools')
  context, turns = _messages(example)
  if isinstance(example, Document) and not context:
    return example
  texts = _as_it_takes(
    template, example, context, lambda form: _texts(template, example, form, turns, tools))
  return dataclasses.replace(example, **texts)


def outline(example: Example) -> tuple:
  """By what a template refuses an example or takes it: roles, and what its messages have.

  Content is told apart by its kind and by whether it is empty; so are calls and tools.
  """
  of = lambda message: (message['role'], type(message.get('content')), bool(message.get('content')),
                        bool(message.get('tool_calls')), message.get('weight'))
  context, turns = _messages(example)
  return tuple(map(of, context)), tuple(map(of, turns)), bool(example.meta.get('tools'))


def _messages(example: Example) -> tuple[list[Message], list[Message]]:
  """(the context, the turns that answer it)."""
  if isinstance(example, Document):
    ours = example.text.startswith(tuple(_OPENINGS))
    return _named(example.messages) or (as_messages(example.text) if ours else []), []
  if example.messages:
    cut = len(example.messages) - len(example.answers)
    return _named(example.messages[:cut]), _named(example.messages[cut:])
  ours = example.prompt.startswith(tuple(_OPENINGS))
  context = as_messages(example.prompt) if ours else [{'role': 'user', 'content': example.prompt}]
  return context, [{'role': 'assistant', 'content': answer} for answer in example.answers]


def _named(messages: Sequence[Message]) -> list[Message]:
  """The messages with the roles that templates know."""
  return [message | {'role': _ROLES.get(message['role'], message['role'])} for message in messages]


def _texts(template: Template, example: Example, context: list[Message], turns: list[Message],
           tools: list[dict] | None) -> dict[str, str | tuple[str, ...]]:
  """The fields of the example that hold text."""
  if isinstance(example, Document):
    text = template.render(context, tools=tools)
    # White space after the last eos would keep the pipeline from seeing that it is there.
    return {'text': text.rstrip() if _stops(template, text) else text}
  texts = {'prompt': template.prompt(context, tools)}
  if not turns and context and context[-1]['role'] != 'assistant':
    template.answered(context, tools)  # or the prompt were another one than with its answer
  eos, answers = template.special_tokens.get('eos_token', ''), []
  for message in turns:
    spoken = _said(template, context, message, tools)
    answers.append(spoken.rstrip().removesuffix(eos) if _stops(template, spoken) else spoken)
  if isinstance(example, Ranked):
    return texts | {'responses': tuple(answers)}
  return texts | dict(zip(example.TEXTS[1:], answers))


def _stops(template: Template, text: str) -> bool:
  eos = template.special_tokens.get('eos_token')
  return bool(eos) and text.rstrip().endswith(eos)


def _said(template: Template, context: list[Message], message: Message,
          tools: list[dict] | None) -> str:
  """What the template writes for a message."""
  try:
    return template.turn(context, message, tools)[1]
  except (Refusal, Unopened):
    # A template that wants the roles to alternate has no place for a second turn of the assistant,
    # or makes one turn of both; alone, after what it answers, it is written as ever.
    answered = list(context)
    while answered and answered[-1]['role'] == message['role']:
      answered.pop()
    if len(answered) == len(context):
      raise
    return template.turn(answered, message, tools)[1]


def _plain(messages: list[Message]) -> list[Message]:
  """The messages with the roles user and assistant only, in turns."""
  result: list[Message] = []
  for message in messages:
    role = 'user' if message['role'] in ('system', 'tool') else message['role']
    last = result[-1] if result else {}
    both = [last.get('content'), message.get('content')]
    if last.get('role') == role and all(isinstance(content, str) for content in both):
      result[-1] = last | message | {'role': role, 'content': '\n\n'.join(both)} | _joined(
        last, message)
    else:
      result.append(message | {'role': role})
  return result


def _joined(first: Message, second: Message) -> Message:
  """What else two messages have together: the calls of both; they are learnt if both are."""
  calls = [*(first.get('tool_calls') or ()), *(second.get('tool_calls') or ())]
  weights = [message['weight'] for message in (first, second) if 'weight' in message]
  return ({'tool_calls': calls} if calls else {}) | ({'weight': min(weights)} if weights else {})
