"""Examples from the user's own files: JSONL (plain or gzipped) and Parquet, in the usual layouts.

`mirror` is a file or a folder.
  A folder holds train, dev and test files (train.jsonl, dev.jsonl.gz, test.parquet, ...), at its
  top or in a folder per kind (preference/train.jsonl), which comes first.
  A file holds all splits: a row belongs to the split of its `group`, or else of its prompt
  (`dialogue.split_of`), so that examples that share a prompt stay together.

A row has one of these layouts, and may add `group` and, beside chosen and rejected, `margin`:
  {text}  {prompt}  {prompt, response}  {prompt, response, label}  {prompt, chosen, rejected}
  {messages: [{role, content}, ...]}    chat; roles user, assistant (or agent), system, tool
Each kind takes what it can use of a layout:
  document       text; prompt + response (or chosen); the whole chat
  demonstration  response; chosen; responses with label 1 only; every assistant turn of a chat
  preference     {prompt, chosen, rejected}
  labelled       {prompt, response, label}, label 0, 1, false or true
  prompt         prompt; the chat before the assistant's last turn
Text is used as it stands; only chats are rendered, by `dialogue.render`.
"""

import gzip
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

from perl.data import dialogue
from perl.data.examples import (
  Demonstration,
  Document,
  Example,
  Labelled,
  Preference,
  Prompt,
  check_request,
)

_SUFFIXES = ('.jsonl', '.jsonl.gz', '.parquet')
_ROLES = {'user': 'user', 'system': 'user', 'assistant': 'agent', 'agent': 'agent', 'tool': 'api'}


def load(split: str, kind: str, *, mirror: str = '', data_dir: str = '',
         seed: int = 0) -> list[Example]:
  """The examples of one split ('train', 'dev', 'test') and kind from the files at `mirror`.

  Raises:
    ValueError: an unknown split or kind, no mirror, a malformed row (named by file and line), a
      layout that the kind cannot use, or an empty split.
    FileNotFoundError: there is no file for the split.
  """
  del data_dir, seed  # nothing is prepared, nothing is drawn
  check_request('local', split, kind)
  file, whole = _file(mirror, split, kind)
  examples = [example for where, row in _rows(file) for example in _examples(row, kind, where)]
  if whole:
    examples = [example for example in examples if dialogue.split_of(example.group) == split]
  if not examples:
    raise ValueError(f'local: expected examples of kind {kind!r} in split {split!r}; found none in '
                     f'{file}; add rows, or give a folder with a file for each split')
  return examples


def _file(mirror: str, split: str, kind: str) -> tuple[pathlib.Path, bool]:
  """(the file that holds the split, whether it holds the other splits too)."""
  if not mirror:
    raise ValueError("local: expected the path of a file or folder; found ''; set data.mirror")
  path = pathlib.Path(mirror).expanduser()
  if path.is_file():
    if not path.name.endswith(_SUFFIXES):
      raise ValueError(f'local: expected a file that ends in {", ".join(_SUFFIXES)}; found {path}; '
                       'convert it, or rename it')
    return path, True
  for folder in (path / kind, path):
    for suffix in _SUFFIXES:
      if (folder / f'{split}{suffix}').is_file():
        return folder / f'{split}{suffix}', False
  found = sorted(str(p.relative_to(path)) for p in path.rglob('*') if p.name.endswith(_SUFFIXES))
  raise FileNotFoundError(
    f'local: expected {split}.jsonl, {split}.jsonl.gz or {split}.parquet in {path} or in '
    f'{path / kind}; found {", ".join(found[:10]) or "no such file"}; add the file of this split')


# --- Rows


def _rows(file: pathlib.Path) -> Iterator[tuple[str, dict[str, Any]]]:
  """('FILE, line 3', row) for each row."""
  if file.name.endswith('.parquet'):
    import pyarrow
    import pyarrow.parquet  # here: heavy, and only for those who have such files

    try:
      rows = pyarrow.parquet.read_table(file).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
      raise ValueError(f'local: expected a Parquet file in {file}; found {error}; '
                       'write the file again') from error
    for number, row in enumerate(rows):
      # Parquet has all columns in all rows: null means that the row has no such field.
      yield f'{file}, row {number}', {k: v for k, v in row.items() if v is not None}
    return
  with (gzip.open if file.name.endswith('.gz') else open)(file, 'rb') as lines:
    for number, line in enumerate(_lines(lines, file), start=1):
      if line.strip():
        yield f'{file}, line {number}', _parse(line, f'{file}, line {number}')


def _lines(lines: Any, file: pathlib.Path) -> Iterator[bytes]:
  try:
    yield from lines
  except (OSError, EOFError) as error:
    raise ValueError(f'local: expected a whole gzip file in {file}; found {error}; '
                     'write the file again') from error


def _parse(line: bytes, where: str) -> dict[str, Any]:
  try:
    row = json.loads(line.decode('utf-8'))
  except ValueError as error:  # of the JSON, or of the UTF-8
    raise ValueError(f'local: expected a JSON object in {where}; found {line[:60]!r} ({error}); '
                     'repair or delete the line') from error
  if not isinstance(row, dict):
    raise ValueError(f'local: expected a JSON object in {where}; found a {type(row).__name__}; '
                     'write one object a line')
  return row


# --- Fields


def _text(row: dict[str, Any], name: str, where: str) -> str:
  if not isinstance(row.get(name), str):
    raise ValueError(f'local: expected {name!r} to be a string in {where}; found '
                     f'{row.get(name)!r:.60}; repair the row')
  return row[name]


def _number(row: dict[str, Any], name: str, where: str, allowed: Callable[[float], bool],
            expected: str) -> float:
  value = row[name]
  if not isinstance(value, (bool, int, float)) or not allowed(float(value)):
    raise ValueError(f'local: expected {name!r} to be {expected} in {where}; found {value!r}; '
                     'repair the row')
  return float(value)


def _label(row: dict[str, Any], where: str) -> float:
  return _number(row, 'label', where, lambda value: value in (0.0, 1.0), '0, 1, false or true')


def _turns(row: dict[str, Any], where: str) -> list[dialogue.Turn]:
  """A chat as turns; what the system says is read as if the user had said it."""
  messages = row['messages']
  turns = []
  for message in messages if isinstance(messages, list) else [None]:
    if (not isinstance(message, dict) or message.get('role') not in _ROLES
        or not isinstance(message.get('content'), str)):
      raise ValueError(
        f"local: expected 'messages' to be a list of {{role, content}} with roles "
        f'{", ".join(_ROLES)} in {where}; found {message!r:.60}; repair the row')
    role = _ROLES[message['role']]
    content = 'response' if role == 'api' else 'text'
    turns.append({'role': role, content: message['content']})
  return turns


# --- Examples

_LAYOUTS = {
  'document': '{text}, {prompt, response} or {messages}',
  'demonstration': '{prompt, response} or {messages}',
  'preference': '{prompt, chosen, rejected}',
  'labelled': '{prompt, response, label}',
  'prompt': '{prompt} or {messages}',
}


def _examples(row: dict[str, Any], kind: str, where: str) -> list[Example]:
  """What one row gives of a kind: several from a chat, none from a response with label 0."""
  if 'messages' in row:
    return _of_chat(row, kind, where)
  if 'text' in row and kind == 'document':
    text = _text(row, 'text', where)
    return [Document(text, **_about(row, where, text))]
  if 'prompt' not in row:
    raise _misfit(row, kind, where)
  prompt = _text(row, 'prompt', where)
  about = _about(row, where, prompt)
  if kind == 'prompt':
    return [Prompt(prompt, **about)]
  if kind == 'preference' and {'chosen', 'rejected'} <= row.keys():
    margin = _number({'margin': 0.0} | row, 'margin', where, lambda value: value >= 0, '>= 0')
    return [Preference(prompt, _text(row, 'chosen', where), _text(row, 'rejected', where), margin,
                       **about)]
  if kind == 'labelled' and {'response', 'label'} <= row.keys():
    return [Labelled(prompt, _text(row, 'response', where), _label(row, where), **about)]
  field = 'chosen' if 'chosen' in row else 'response'
  if kind not in ('document', 'demonstration') or field not in row:
    raise _misfit(row, kind, where)
  if 'label' in row and not _label(row, where):
    return []  # nothing to imitate
  response = _text(row, field, where)
  return [Document(prompt + response, **about) if kind == 'document'
          else Demonstration(prompt, response, **about)]


def _of_chat(row: dict[str, Any], kind: str, where: str) -> list[Example]:
  turns = _turns(row, where)
  about = _about(row, where, dialogue.split_key(turns))
  agent = [i for i, turn in enumerate(turns) if turn['role'] == 'agent']
  if kind == 'document':
    return [Document(dialogue.render_document(turns), **about)]
  if kind == 'demonstration':
    return [Demonstration(*dialogue.render(turns[:i], turns[i]), **about) for i in agent]
  if kind == 'prompt':
    context = turns[:agent[-1]] if agent and agent[-1] == len(turns) - 1 else turns
    return [Prompt(dialogue.render(context, None)[0], **about)]
  raise _misfit(row, kind, where)


def _about(row: dict[str, Any], where: str, default: str) -> dict[str, Any]:
  group = _text(row, 'group', where) if 'group' in row else ' '.join(default.lower().split())
  return {'group': group, 'meta': {'source': where}}


def _misfit(row: dict[str, Any], kind: str, where: str) -> ValueError:
  return ValueError(f'local: expected a row with {_LAYOUTS[kind]} for kind {kind!r} in {where}; '
                    f'found the fields {sorted(row)}; rename the fields, or ask for another kind')
