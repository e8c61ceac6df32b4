"""Task dialogues (Taskmaster-3 and -4) as text: one format for every stage.

A turn is one of
  {'role': 'user' | 'agent', 'text': str}
  {'role': 'agent', 'api': {name: arguments}}       a call
  {'role': 'api', 'response': {name: value}}        what the call gave back
as in the reward files of github.com/google-research-datasets/Taskmaster (TM-3-2020, TM-4-2024).

Rendered, a turn opens with the marker of its role, and an agent turn closes with '<|eos|>':
  <|user|>a latte<|agent|>{"get_menu_items":{"query":"latte"}}<|eos|>
  <|api|>{"items":{"latte-1":"Latte"}}<|agent|>
in one line. Calls and responses are compact JSON; ids are renamed, copies stay copies (`_Names`).
"""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from perl import documents

Turn = dict[str, Any]

END = '<|eos|>'
MARKERS = {'user': '<|user|>', 'agent': '<|agent|>', 'api': '<|api|>'}
SPECIAL_TOKENS = tuple(MARKERS.values())

# The order matters: an entry of a response is keyed by the first of these that it has.
_ENTRY_KEYS = ('attribute_id', 'addon_id', 'menu_item_id')
_ENTRY_VALUES = ('option', 'options', 'name')
_RENAMED_KEYS = ('menu_item_id', 'addon_id', 'order_id', 'order_item_id')
_RANDOM_ID = re.compile(r'(?=.*\d)([0-9a-f]{8}[0-9a-f-]*|\d{4,})')
# What a response repeats of its own ids.
_REPEATED = ('attribute_name', 'addon_type_id', 'addon_type_name', 'modifier_name', 'default')


class _Names:
  """Short names for the ids of one dialogue, given in order of appearance.

  'latte-0002' becomes 'latte-1' and 'mocha-0006' after it 'mocha-2'; '8f81...' in order_id becomes
  'order-1'. The same id always gets the same name, so a copied id reads as a copy and one that the
  agent made up ('latte-0099') reads as a number that the dialogue has not shown ('latte-3').
  """

  def __init__(self) -> None:
    self._names: dict[str, str] = {}
    self._counts: dict[str, int] = {}

  def known(self, text: str) -> str:
    return self._names.get(text, text)

  def give(self, key: str, value: str, label: str = '') -> None:
    """Names the id `value` of the field `key`; a bare number takes its stem from `label`."""
    kind = key.removesuffix('_id')
    if value in self._names or not (key in _RENAMED_KEYS or _RANDOM_ID.fullmatch(value)):
      return
    stem = re.sub(r'-?\d+$', '', value)
    if _RANDOM_ID.fullmatch(value) or not stem:
      stem = label or kind.removeprefix('order_')
    stem = re.sub(r'[^a-z0-9]+', '-', stem.lower()).strip('-')
    self._counts[kind] = self._counts.get(kind, 0) + 1
    self._names[value] = f'{stem}-{self._counts[kind]}'

  def scan(self, value: Any) -> None:
    """Names every id in a call or a response."""
    if isinstance(value, dict):
      label = value.get('name') or value.get('menu_item_name')
      for key, item in value.items():
        if key.endswith('_id') and key != 'attribute_id' and isinstance(item, str):
          self.give(key, item, label if isinstance(label, str) else '')
        else:
          self.scan(item)
    elif isinstance(value, list):
      for item in value:
        self.scan(item)

  def apply(self, value: Any) -> Any:
    """The same value with every id replaced by its name; other strings are stripped."""
    if isinstance(value, dict):
      return {key: self.apply(item) for key, item in value.items()}
    if isinstance(value, list):
      return [self.apply(item) for item in value]
    return self.known(value).strip() if isinstance(value, str) else value


def _keyed(entries: list) -> dict | None:
  """[{attribute_id: a, option: x}, ...] as {a: x, ...}; None where that would lose something."""
  result: dict[str, Any] = {}
  for entry in entries:
    if not isinstance(entry, dict) or len(entry) != 2:
      return None
    key = next((entry[k] for k in _ENTRY_KEYS if k in entry), None)
    value = next((entry[k] for k in _ENTRY_VALUES if k in entry), None)
    if not isinstance(key, str) or value is None or key in result:
      return None
    result[key] = value
  return result or None


def _compact(value: Any, response: bool) -> Any:
  """Shortens lists of entries to objects; in responses also drops what their ids say already."""
  if isinstance(value, list):
    entries = [_compact(item, response) for item in value]
    keyed = _keyed(entries)
    return entries if keyed is None else keyed
  if not isinstance(value, dict):
    return value
  fields = dict(value)
  if response:
    for key in _REPEATED + (('menu_item_name',) if 'menu_item_id' in fields else ()):
      fields.pop(key, None)
    if ('attribute_id' in fields or 'addon_id' in fields) and 'options' in fields:
      fields.pop('name', None)
    if 'menu_items' in fields:  # as the dialogs call what the reward files call 'items'
      fields['items'] = fields.pop('menu_items')
  return {key: _compact(item, response) for key, item in fields.items()}


def _content(turn: Turn) -> Any:
  """What a turn says: its text, its call, or the value of its response."""
  if 'text' in turn or 'api' in turn:
    return turn['text'] if 'text' in turn else turn['api']
  if 'response' in turn:
    response = turn['response']
    single = isinstance(response, dict) and len(response) == 1
    # The call just before names the API: its name would be read twice.
    return next(iter(response.values())) if single else response
  raise ValueError(
      f"a turn with 'text', 'api' or 'response' was expected, found the keys {sorted(turn)}; "
      'see the module docstring for the three kinds of turn')


def _body(turn: Turn, names: _Names) -> str:
  content = _content(turn)
  if isinstance(content, str):
    text = ' '.join(content.split())
  else:
    names.scan(content)
    compact = _compact(names.apply(content), turn['role'] == 'api')
    text = json.dumps(compact, separators=(',', ':'), ensure_ascii=False)
  # A marker inside a text would open a turn that nobody spoke.
  return text.replace('<|', '< |')


def _render(turns: Iterable[Turn], names: _Names) -> str:
  parts = []
  for turn in turns:
    if turn.get('role') not in MARKERS:
      raise ValueError(f'a role among {sorted(MARKERS)} was expected, found {turn.get("role")!r}; '
                       'rename the speakers of the turns')
    closing = END if turn['role'] == 'agent' else ''
    parts.append(MARKERS[turn['role']] + _body(turn, names) + closing)
  return ''.join(parts)


def render(context: Sequence[Turn], response: Turn | None) -> tuple[str, str]:
  """(prompt, response) as text: the prompt ends in '<|agent|>', the response has no end token.

  `context` is the turns so far, oldest first. Raises ValueError for a turn of no known kind.
  """
  names = _Names()
  prompt = _render(context, names) + MARKERS['agent']
  return prompt, '' if response is None else _body(response, names)


def render_document(turns: Sequence[Turn]) -> str:
  """A whole dialogue as text; every agent turn closes with '<|eos|>'."""
  return _render(turns, _Names())


def parse_response(text: str) -> Turn:
  """The agent turn that a rendered response says; what is not one whole call is text."""
  try:
    call = documents.parse(text, 'a response')
  except documents.Malformed:
    call = None
  if isinstance(call, dict) and len(call) == 1 and isinstance(next(iter(call.values())), dict):
    return {'role': 'agent', 'api': call}
  return {'role': 'agent', 'text': text.strip()}


def split_key(turns: Iterable[Turn]) -> str:
  """The key that keeps a dialogue in one split: its first user turn, normalised ('' if none)."""
  return normalised(next((turn['text'] for turn in turns if turn['role'] == 'user'), ''))


def normalised(text: str) -> str:
  """A text as a grouping key: its words in lower case."""
  return ' '.join(text.lower().split())


def split_of(key: str) -> str:
  """'train' (80 %), 'dev' (10 %) or 'test' (10 %), by `percentile`."""
  return split_at(key, 80, 90)


def split_at(key: str, dev: int, test: int) -> str:
  """'train' for keys whose `percentile` is below `dev`, 'test' for those from `test` on."""
  place = percentile(key)
  return 'train' if place < dev else 'dev' if place < test else 'test'


def percentile(key: str) -> int:
  """0 to 99, by SHA-256 of the key modulo 100: the same for ever, and as good as drawn."""
  return int(hashlib.sha256(key.encode('utf-8')).hexdigest(), 16) % 100


_REPAIR = 'repair the row or take it out of the file'


def _loads(text: str, what: str, where: str) -> Any:
  """JSON as the files hold it: some dialogs quote a value twice (\"\"a\"\") or hold tabs."""
  documents.check(text, documents.TEXT, what, where)
  about = dict(remedy=_REPAIR, strict=False)
  try:
    return documents.parse(text, where, **about)
  except documents.Malformed:
    repaired = re.sub(r'""([^"\[\]{},:]+)"', r'"\1"', text)
    return documents.parse(
      re.sub(r'(?<=\w)""', '"', repaired), f'{what} of {where}', **about)


def _check_turn(turn: Any, where: str) -> Turn:
  """The turn, if it is one of the three; the user's have text.

  Raises:
    ValueError: it is none.
  """
  fields = documents.Fields(
    documents.check(turn, documents.OBJECT, 'a turn', where), where, remedy=_REPAIR)
  role = fields.need('role', documents.one_of(*MARKERS))
  if role == 'user' or 'text' in turn:
    fields.need('text', documents.TEXT)
  elif not {'api', 'response'} & turn.keys():
    raise ValueError(f"expected a turn with 'text', 'api' or 'response' in {where}, found the keys "
                     f'{sorted(turn)}; {_REPAIR}')
  return turn


def turns_of_reward_row(row: dict[str, Any]) -> tuple[list[Turn], Turn]:
  """(context, generation) of a row {conversation_id, context, generation, reward}.

  The agent's fixed greeting at the start is left out, as the dialogs do not have it.
  Raises ValueError for what is not JSON of the expected kind, KeyError for an absent column.
  """
  where = str(row.get('conversation_id', 'row'))
  context = _loads(row['context'] or '[]', 'context', where)
  generation = _loads(row['generation'], 'generation', where)
  if not isinstance(context, list) or not isinstance(generation, dict):
    raise ValueError(f'{where}: a list of turns and one turn were expected, found '
                     f'{type(context).__name__} and {type(generation).__name__}; check the columns')
  context = [_check_turn(turn, where) for turn in context]
  if context and context[0]['role'] == 'agent' and 'text' in context[0]:
    context = context[1:]
  return context, _check_turn(generation, where)


def turns_of_dialog(dialog: dict[str, Any]) -> list[Turn]:
  """The turns of a TM-4 dialog {conversation_id, utterances: [{speaker, text, annotations}]}.

  Annotations hold the calls that follow a user's text: api_call and request name a call and its
  arguments, api_response and response what it gave back. A call without request has no arguments.
  Raises ValueError for a request or a response that is not JSON.
  """
  where = str(dialog.get('conversation_id', 'dialog'))
  turns: list[Turn] = []
  for utterance in dialog['utterances']:
    role = 'user' if utterance['speaker'] == 'user' else 'agent'
    turns.append({'role': role, 'text': utterance['text']})
    name = ''
    for annotation in utterance.get('annotations', ()):
      kind, value = annotation['name'], annotation['value']
      if kind == 'api_call':
        turns.append({'role': 'agent', 'api': {value: {}}})
      elif kind == 'request':
        turns[-1] = {'role': 'agent', 'api': {name: _loads(value, kind, where)}}
      elif kind == 'api_response':
        turns.append({'role': 'api', 'response': {value: {}}})
      elif kind == 'response':
        turns[-1] = {'role': 'api', 'response': {name: _loads(value, kind, where)}}
      if kind in ('api_call', 'api_response'):
        name = value
  return [_check_turn(turn, where) for turn in turns]
