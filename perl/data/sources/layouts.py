"""Rows of the user's files to examples: the layouts in which data sets are published.

A row has one of these layouts, and may add `group`, `meta` (an object that stays with the example:
what a rule checks responses against, say), `tools`, a list, and, beside chosen and rejected,
`margin`. A field that no layout has (`answer`, `reward_model`, ...) is taken into meta. Null means
absent, everywhere in a row.
  {text}  {prompt}  {prompt, response}  {prompt, response, label}  {prompt, chosen, rejected}
  {prompt, responses: [best, ..., worst]}  {prompt, response, rating}
  {messages: [{role, content}, ...]}    chat; roles user, assistant (or agent), system, tool
`completion` is another name of `response`. Each of prompt, response, chosen, rejected and the
responses may be a list of messages too: responses then end in one message of the assistant, and may
repeat the prompt, which those to compare need not name if they share it. A message of the assistant
may have `tool_calls`, and then needs no content, and `weight: 0`: it is no demonstration.
Each kind takes what it can use of a layout:
  document       text; prompt + response (or chosen); the whole chat
  demonstration  response; chosen; the best of responses; those with label 1 only; every assistant
                 turn of a chat
  preference     {prompt, chosen, rejected}
  labelled       {prompt, response, label}, label 0, 1, false or true
  ranked         {prompt, responses}, at least two
  rated          {prompt, response, rating}, any finite number
  prompt         prompt; the chat before the assistant's last turn
Text is used as it stands; only chats are rendered, by `dialogue.render` (calls as JSON after what
is said). Their messages stay with the examples as they are.
"""

import json
from collections.abc import Sequence
from typing import Any

from perl.data.examples import KINDS, Demonstration, Document, Example, Prompt, Ranked
from perl.data.sources import layout_fields as fields
from perl.data.text import dialogue

_LAYOUTS = {
  'document': '{text}, {prompt, response} or {messages}',
  'demonstration': '{prompt, response} or {messages}',
  'preference': '{prompt, chosen, rejected}',
  'labelled': '{prompt, response, label}',
  'ranked': '{prompt, responses}',
  'rated': '{prompt, response, rating}',
  'prompt': '{prompt} or {messages}',
}
_OF_CHATS = ('document', 'demonstration', 'prompt')
_ANSWERS = ('chosen', 'rejected', 'response')
_NUMBERS = {'labelled': ('label',), 'rated': ('rating',)}
_READ_NUMBER = {'preference': fields.margin, 'labelled': fields.label, 'rated': fields.rating}
_OF_RANKINGS = {'document': 1, 'demonstration': 1, 'ranked': 2, 'prompt': 0}
"""Kinds that read a row's `responses` -> how many they need."""


def _turns(messages: Sequence[dict[str, Any]]) -> list[dialogue.Turn]:
  """A chat as turns; what the system says is read as if the user had said it."""
  return [_turn(fields.ROLES[message['role']], message) for message in messages]


def _turn(role: str, message: dict[str, Any]) -> dialogue.Turn:
  """A message as a turn; of calls beside words both, in this order."""
  content, calls = message.get('content', ''), fields.calls(message)
  if not calls:
    return {'role': role, 'response' if role == 'api' else 'text': content}
  api = calls if len(calls) > 1 else calls[0]
  if not content:
    return {'role': role, 'api': api}
  return {'role': role, 'text': f'{content} {json.dumps(api, separators=(",", ":"))}'}


def _about(row: dict[str, Any], where: str, default: str) -> dict[str, Any]:
  group = fields.text(row, 'group', where) if 'group' in row else dialogue.normalised(default)
  meta = row.get('meta', {})
  if not isinstance(meta, dict):
    raise ValueError(f"local: expected 'meta' to be an object in {where}; found {meta!r:.60}; "
                     'repair the row')
  more = {name: value for name, value in row.items() if name not in fields.NAMES}
  if twice := [name for name in more if name in meta and meta[name] != more[name]]:
    raise ValueError(f"local: expected one {twice[0]!r} in {where}; found {more[twice[0]]!r:.60}, "
                     f"and {meta[twice[0]]!r:.60} in 'meta'; take one of them out")
  if 'tools' in row:
    if not isinstance(row['tools'], list):
      raise ValueError(f"local: expected 'tools' to be a list in {where}; found "
                       f'{row["tools"]!r:.60}; write JSON in place of text')
    more['tools'] = row['tools']
  return {'group': group, 'meta': {**more, **meta, 'source': where}}


def _about_chat(row: dict[str, Any], where: str, context: list[dict[str, Any]]) -> dict[str, Any]:
  """Group and meta of a chat, which is known by the first thing that the user says."""
  # Many data sets have one system prompt for all: it would put them all into one group.
  spoken = [message for message in context if message['role'] != 'system'] or context
  return _about(row, where, dialogue.split_key(_turns(spoken)))


def _misfit(row: dict[str, Any], kind: str, where: str) -> ValueError:
  return ValueError(f'local: expected a row with {_LAYOUTS[kind]} for kind {kind!r} in {where}; '
                    f'found the fields {sorted(row)}; rename the fields, or ask for another kind')


# --- Examples


def examples(row: dict[str, Any], kind: str, where: str) -> list[Example]:
  """What one row gives of a kind: several from a chat, none from a response with label 0.

  Args:
    row: the fields.
    where: 'FILE, line 3', for errors and meta['source'].

  Raises:
    ValueError: a malformed field, or a layout that the kind cannot use.
  """
  row = fields.present(row, where)
  if 'messages' in row and kind in _OF_CHATS:
    return _of_chat(row, kind, where)
  if 'text' in row and kind == 'document':
    text = fields.text(row, 'text', where)
    return [Document(text, **_about(row, where, text))]
  if 'responses' in row and kind in _OF_RANKINGS:
    fields.check_responses(row, where, least=_OF_RANKINGS[kind])
  whole = _whole(row, kind)
  if not _fits(whole, kind):
    raise _misfit(row, kind, where)
  if kind in ('document', 'demonstration') and 'label' in row and not fields.label(row, where):
    return []  # nothing to imitate
  names = _answers(whole, kind)
  if _has_messages(whole):
    return _of_parts(whole, kind, where, names)
  prompt = fields.text(row, 'prompt', where)
  answers = [fields.text(whole, name, where) for name in names]
  return [_example(whole, kind, where, prompt, answers, _about(row, where, prompt))]


def kinds(row: dict[str, Any]) -> tuple[str, ...]:
  """The kinds that a row can give, by the names of its fields; what they hold may be malformed."""
  row = {name: value for name, value in row.items() if value is not None}
  return tuple(
    kind for kind in KINDS
    if ('messages' in row and kind in _OF_CHATS) or ('text' in row and kind == 'document')
    or _fits(_whole(row, kind), kind))


def unknown(row: dict[str, Any]) -> set[str]:
  """The names of a row's fields that no layout has, those of messages as 'messages[].train'."""
  given = lambda about, known: {k for k, v in about.items() if v is not None} - known
  ranked = row.get('responses')
  chats = [('responses[]', chat) for chat in (ranked if isinstance(ranked, list) else ())]
  names = given(row, fields.NAMES)
  for field, chat in [*row.items(), *chats]:
    if field.removesuffix('[]') in fields.NAMES - {'tools'} and isinstance(chat, list):
      names |= {f'{field}[].{name}' for message in chat if isinstance(message, dict)
                for name in given(message, fields.IN_MESSAGES)}
  return names


def _whole(row: dict[str, Any], kind: str) -> dict[str, Any]:
  """The row with `response`, by its other name, and 'responses[0]', the best one, and so on."""
  whole = {'response': row['completion']} | row if 'completion' in row else row
  ranking = row.get('responses') if kind in _OF_RANKINGS else None
  answers = ranking if isinstance(ranking, list) else []
  return whole | {f'responses[{i}]': answer for i, answer in enumerate(answers)}


def _fits(row: dict[str, Any], kind: str) -> bool:
  """Whether a row has the fields that a kind reads."""
  needed = {*_answers(row, kind), *_NUMBERS.get(kind, ())}
  return needed <= row.keys() and ('prompt' in row or _has_messages(row))


def _has_messages(row: dict[str, Any]) -> bool:
  """Whether the prompt or an answer is a list of messages."""
  return any(isinstance(row.get(name), list) for name in ('prompt', *_all_answers(row)))


def _answers(row: dict[str, Any], kind: str) -> tuple[str, ...]:
  """The fields besides the prompt that a kind takes."""
  if kind in ('document', 'demonstration'):
    return next(((name,) for name in ('chosen', 'responses[0]') if name in row), ('response',))
  if kind == 'ranked':
    return tuple(name for name in row if name.startswith('responses[')) or ('responses',)
  return {'preference': ('chosen', 'rejected'), 'prompt': ()}.get(kind, ('response',))


def _all_answers(row: dict[str, Any]) -> list[str]:
  """The fields of a row that are answers, whatever the kind."""
  return [name for name in row if name in _ANSWERS or name.startswith('responses[')]


def _example(row: dict[str, Any], kind: str, where: str, prompt: str, answers: list[str],
          about: dict[str, Any]) -> Example:
  if kind == 'document':
    return Document(prompt + answers[0], **about)
  if kind == 'ranked':
    return Ranked(prompt, tuple(answers), **about)
  number = [_READ_NUMBER[kind](row, where)] if kind in _READ_NUMBER else []
  return KINDS[kind](prompt, *answers, *number, **about)


def _of_chat(row: dict[str, Any], kind: str, where: str) -> list[Example]:
  messages = fields.messages(row, 'messages', where)
  turns = _turns(messages)
  about = _about_chat(row, where, messages)
  agent = [i for i, turn in enumerate(turns) if turn['role'] == 'agent']
  if kind == 'document':
    return [Document(dialogue.render_document(turns), **about, messages=tuple(messages))]
  if kind == 'demonstration':
    return [Demonstration(*dialogue.render(turns[:i], turns[i]), **about,
                          messages=tuple(messages[:i + 1]))
            for i in agent if fields.weight(messages[i])]
  end = agent[-1] if agent and agent[-1] == len(turns) - 1 else len(turns)
  return [Prompt(dialogue.render(turns[:end], None)[0], **about, messages=tuple(messages[:end]))]


def _of_parts(
    row: dict[str, Any], kind: str, where: str, names: tuple[str, ...]) -> list[Example]:
  """The example, if there is one, of a row whose prompt or answers are messages."""
  context, answers = _parts(row, where)
  messages = [answers[name] for name in names]
  about = _about_chat(row, where, context) | {'messages': (*context, *messages)}
  if kind == 'document':
    return [Document(dialogue.render_document(_turns([*context, *messages])), **about)]
  if kind == 'demonstration' and not fields.weight(messages[0]):
    return []
  turns = _turns(context)
  texts = [dialogue.render(turns, turn)[1] for turn in _turns(messages)]
  return [_example(row, kind, where, dialogue.render(turns, None)[0], texts, about)]


def _parts(row: dict[str, Any],
           where: str) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
  """(the context, the message that each answer of the row is)."""
  read = lambda name, role: ([{'role': role, 'content': row[name]}]
                             if isinstance(row[name], str) else fields.messages(row, name, where))
  context = read('prompt', 'user') if 'prompt' in row else []
  answers = {name: read(name, 'assistant') for name in _all_answers(row)}
  first = [messages[0] for messages in answers.values() if messages]
  opened = any(fields.ROLES[message['role']] == 'user' for message in first)
  if opened and isinstance(row.get('prompt'), str):
    context = []  # the answers are whole chats; the prompt repeats what the user says there
  length = len(context)
  answers = {name: messages[length:] if messages[:length] == context else messages
             for name, messages in answers.items()}
  shared = _shared(list(answers.values()))
  context = context + next(iter(answers.values()), [])[:shared]
  answers = {name: messages[shared:] for name, messages in answers.items()}
  for name, messages in answers.items():
    if [fields.ROLES[message['role']] for message in messages] != ['agent']:
      raise ValueError(f'local: expected {name!r} to end in one message of the assistant after the '
                       f'prompt (or what they share) in {where}; found '
                       f'{len(messages)} messages there; split the row, or leave it out')
  if not context:
    raise ValueError(f'local: expected messages before the answer in {where}; found none; '
                     "add them, or a 'prompt'")
  return context, {name: messages[0] for name, messages in answers.items()}


def _shared(chats: list[list[dict[str, Any]]]) -> int:
  """How many messages open all the chats; of a single one, those before the assistant's first."""
  alone = len(chats) == 1
  count = 0
  while chats and all(len(chat) > count + 1 and chat[count] == chats[0][count] for chat in chats):
    if alone and fields.ROLES[chats[0][count]['role']] == 'agent':
      break
    count += 1
  return count
