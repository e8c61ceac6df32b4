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
import json
import pathlib
from typing import Any

CONFIG, TEMPLATE = 'tokenizer_config.json', 'chat_template.jinja'
SPECIAL, GENERATION = 'special_tokens_map.json', 'generation_config.json'
NAMES = ('bos_token', 'eos_token', 'pad_token', 'unk_token')

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


def read(folder: pathlib.Path) -> Settings:
  """The settings in a folder.

  Raises:
    ValueError: a file is not JSON of the expected kind.
  """
  files = {name: (folder / name).read_bytes() for name in _COPIED if (folder / name).is_file()}
  parse = lambda name: _object(files[name], folder / name) if name in files else {}
  config, special, older = map(parse, (CONFIG, SPECIAL, 'added_tokens.json'))
  ends = stops(folder)
  try:
    return dataclasses.replace(_settings(config, special, older, files), stops=ends)
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise ValueError(f'tokenizer: expected {", ".join(files)} in {folder} to be as transformers '
                     f'writes them; found {type(error).__name__}: {error}; save the tokenizer '
                     'again') from error


def stops(folder: pathlib.Path) -> tuple[int, ...]:
  """The ids that end a response by generation_config.json, or else by config.json; () of neither.

  Raises:
    ValueError: they are no ids, or the file is no JSON object.
  """
  for file in (folder / name for name in _STOPS if (folder / name).is_file()):
    value = _object(file.read_bytes(), file).get('eos_token_id')
    if value is None:
      continue
    ids = value if isinstance(value, list) else [value]
    if any(isinstance(i, bool) or not isinstance(i, int) for i in ids):
      raise ValueError(f'tokenizer: expected eos_token_id to be an id or a list of ids in {file}; '
                       f'found {value!r:.60}; repair the file')
    return tuple(i for i in ids if i >= 0)  # some write -1 for none
  return ()


def _settings(config: dict[str, Any], special: dict[str, Any], older: dict[str, int],
              files: dict[str, bytes]) -> Settings:
  declared = {name: _content(config[name] if name in config else special[name])
              for name in NAMES if name in config or name in special}
  # As in transformers: the older file of added tokens counts only without the newer entry.
  newer, adds_bos = config.get('added_tokens_decoder'), config.get('add_bos_token')
  template = files[TEMPLATE].decode('utf-8') if TEMPLATE in files else _template(config)
  return Settings(
    declared=declared,
    added=_older(older, {*declared.values()}) if newer is None else _newer(newer),
    adds_bos=adds_bos if isinstance(adds_bos, bool) else None,
    legacy=bool(config.get('legacy')), prefix_space=bool(config.get('add_prefix_space')),
    tokenizer_class=config.get('tokenizer_class') or '', chat_template=template, files=files)


def _object(content: bytes, file: pathlib.Path) -> dict[str, Any]:
  try:
    fields = json.loads(content.decode('utf-8'))
  except ValueError as error:
    raise ValueError(f'tokenizer: expected a JSON object in {file}; found {error}; '
                     'repair the file') from error
  if not isinstance(fields, dict):
    raise ValueError(f'tokenizer: expected a JSON object in {file}; found a '
                     f'{type(fields).__name__}; repair the file')
  return fields


def _content(token: Any) -> str | None:
  """The text of a token: transformers writes either the string or {'content': string, ...}."""
  return (token.get('content') if isinstance(token, dict) else token) or None


def _newer(tokens: dict[str, dict[str, Any]]) -> dict[str, Added]:
  return {token['content']: Added(int(index), bool(token.get('special')),
                                  bool(token.get('lstrip')), bool(token.get('rstrip')))
          for index, token in tokens.items()}


def _older(tokens: dict[str, int], special: set[str | None]) -> dict[str, Added]:
  return {text: Added(int(index), text in special) for text, index in tokens.items()}


def _template(config: dict[str, Any]) -> str | None:
  """The template of a config: a string, or the default one of several by name."""
  template = config.get('chat_template')
  if isinstance(template, list):
    template = {entry['name']: entry['template'] for entry in template}.get('default')
  return template
