"""What stands beside a vocabulary in the folder of a published checkpoint, in Hugging Face's files.

  tokenizer_config.json    special tokens, add_bos_token, added_tokens_decoder, chat_template
  special_tokens_map.json  special tokens, in older checkpoints
  added_tokens.json        {text: id}, in older checkpoints
  chat_template.jinja      the template, as transformers 5 writes it
  generation_config.json   eos_token_id: the ids that end a response, one or several; where it does
                           not say, config.json
Nothing in them is executed: a class that they name in `auto_map` is not looked at.
"""

import dataclasses
import os
import re
from typing import Any

from etils import epath

from perl import documents
from perl.documents import FLAG, OBJECT, TEXT, Fields

CONFIG, TEMPLATE = 'tokenizer_config.json', 'chat_template.jinja'
SPECIAL, GENERATION = 'special_tokens_map.json', 'generation_config.json'
NAMES = ('bos_token', 'eos_token', 'pad_token', 'unk_token')
MOST_IDS = 2**22
"""Of a vocabulary; an id is a row of the embedding, and of tables in the libraries."""
ID = documents.whole(0, MOST_IDS - 1)

_REMEDY = 'save the tokenizer again'
_COPIED = (CONFIG, SPECIAL, 'added_tokens.json', TEMPLATE, GENERATION,
           'vocab.json', 'merges.txt', 'tokenizer.model')
_STOPS = (GENERATION, 'config.json')


@dataclasses.dataclass(frozen=True)
class Added:
  """A token that is found in a text before the vocabulary sees it.

  `strips_left` and `strips_right`: it swallows the white space on that side of it.
  """

  id: int
  special: bool = True
  strips_left: bool = False
  strips_right: bool = False


@dataclasses.dataclass(frozen=True)
class Settings:
  """What the files of a folder say; the defaults are those of a folder without any.

  Attributes:
    declared: the texts of the tokens in NAMES that are mentioned; None where the files say null.
    added: added tokens by their text.
    adds_bos: what add_bos_token says, if anything.
    legacy: white space as transformers before 4.31 had it, in a SentencePiece model.
    prefix_space: whether a byte-level vocabulary puts a space before a text.
    tokenizer_class: the class of transformers that is named, '' if none.
    chat_template: the default one.
    stops: the ids that the checkpoint's generation ends at.
    files: the files themselves by name, to be saved with the vocabulary.
  """

  declared: dict[str, str | None] = dataclasses.field(default_factory=dict)
  added: dict[str, Added] = dataclasses.field(default_factory=dict)
  adds_bos: bool | None = None
  legacy: bool = False
  prefix_space: bool = False
  tokenizer_class: str = ''
  chat_template: str | None = None
  stops: tuple[int, ...] = ()
  files: dict[str, bytes] = dataclasses.field(default_factory=dict)


NOTHING = Settings()


def read(folder: epath.Path) -> Settings:
  """The settings in a folder.

  Raises:
    ValueError: a file is not JSON of the expected kind; it is named.
  """
  files = {name: documents.read_bytes(folder / name)
           for name in _COPIED if (folder / name).is_file()}
  return of(files, folder, stops(folder))


def of(files: dict[str, bytes], folder: epath.Path, ending: tuple[int, ...]) -> Settings:
  """The settings in files that were read.

  Args:
    files: {name: content}; others than those of this house are passed over.
    folder: where they lie, for errors.
    ending: the ids that end a response; see `stops`.

  Raises:
    ValueError: as `read`.
  """
  files = {name: content for name, content in files.items() if name in _COPIED}
  fields = lambda name: Fields(
    documents.parse(files[name], folder / name, OBJECT, remedy=_REMEDY) if name in files else {},
    folder / name, remedy=_REMEDY)
  config, special, older = map(fields, (CONFIG, SPECIAL, 'added_tokens.json'))
  declared = {name: _content(config if config.has(name) else special, name)
              for name in NAMES if config.has(name) or special.has(name)}
  # As in transformers: the older file of added tokens counts only without the newer entry.
  newer = config.get('added_tokens_decoder', documents.mapping(OBJECT, MOST_IDS))
  return Settings(
    declared=declared,
    added=_older(older, {*declared.values()}) if newer is None else _newer(config, newer),
    adds_bos=config.get('add_bos_token', FLAG), legacy=config.get('legacy', FLAG, False),
    prefix_space=config.get('add_prefix_space', FLAG, False),
    tokenizer_class=config.get('tokenizer_class', TEXT, ''),
    chat_template=_template(config, files.get(TEMPLATE), folder / TEMPLATE), files=files,
    stops=ending)


def stops(folder: epath.Path) -> tuple[int, ...]:
  """The ids that end a response by generation_config.json, or else by config.json; () of neither.

  Raises:
    ValueError: they are no ids, or the file is no JSON object.
  """
  for file in (folder / name for name in _STOPS if (folder / name).is_file()):
    if (ids := listed(documents.read(file, OBJECT), file)) is not None:
      return ids
  return ()


def listed(about: dict[str, Any], where: str | os.PathLike) -> tuple[int, ...] | None:
  """eos_token_id of a config, one or several; None where it does not say; raises as `stops`."""
  ids = Fields(about, where).get('eos_token_id', _STOP_IDS)
  if ids is None:
    return None
  return tuple(i for i in (ids if isinstance(ids, list) else [ids]) if i >= 0)  # -1 is none to some


_STOP = documents.whole(-1, MOST_IDS - 1)
_STOP_IDS = documents.either(_STOP, documents.items(_STOP, 2**10))


def _content(fields: Fields, name: str) -> str | None:
  """The text of a token: transformers writes either the string or {'content': string, ...}."""
  token = fields.get(name, documents.either(TEXT, OBJECT))
  if isinstance(token, dict):
    token = fields.check(f"the content of {name}", token.get('content'), TEXT)
  return token or None


def _newer(config: Fields, tokens: dict[str, dict[str, Any]]) -> dict[str, Added]:
  added = {}
  for index, token in tokens.items():
    fields = Fields(token, f'added_tokens_decoder of {config.where}', remedy=_REMEDY)
    number = config.check('an id', int(index) if re.fullmatch('[0-9]{1,9}', index) else index, ID)
    added[fields.need('content', TEXT)] = Added(number, *(
      fields.get(name, FLAG, False) for name in ('special', 'lstrip', 'rstrip')))
  return added


def _older(fields: Fields, special: set[str | None]) -> dict[str, Added]:
  return {text: Added(fields.need(text, ID), text in special) for text in fields}


def _template(config: Fields, content: bytes | None, file: epath.Path) -> str | None:
  """The template in a file of its own, or in the config: a string, or the default of several."""
  if content is not None:
    try:
      return content.decode('utf-8')
    except UnicodeDecodeError as error:
      raise ValueError(f'tokenizer: expected UTF-8 in {file}, found {error}; {_REMEDY}') from error
  template = config.get('chat_template', documents.either(TEXT, documents.items(OBJECT)))
  if isinstance(template, list):
    texts = [Fields(entry, f'chat_template of {config.where}') for entry in template]
    named = {fields.need('name', TEXT): fields.need('template', TEXT) for fields in texts}
    return named.get('default')
  return template
