"""Vocabularies: tokenizer.json files, and one face for them and those of sentence_piece.py.

Both have
  filename                         what it is saved as
  vocab_size                       one more than the largest id
  content(), identity()            the bytes of that file, and those that identify it
  encode_batch(texts), encode_pairs(pairs), encode_with_offsets(text), decode(ids, skip_special)
  id(token), token(index)          None where there is none
  special                          the texts of its special tokens, by their ids
  puts_first(id)                   whether the file itself puts that token before every text
"""

import contextlib
import functools
import json
import re
from collections.abc import Iterator
from typing import Any

import tokenizers
from etils import epath
from tokenizers import decoders, models, pre_tokenizers, processors

from perl import documents, paths
from perl.data.text.offsets import Offsets, before, trimmed
from perl.data.text.sentence_piece import SentencePiece
from perl.data.text.tokenizer_files import ID, MOST_IDS, Added, Settings
from perl.documents import OBJECT, Fields

# What a folder with vocab.json and merges.txt may call itself: GPT-2's way of cutting words.
_AS_GPT2 = ('', 'GPT2Tokenizer', 'GPTNeoXTokenizer', 'PreTrainedTokenizer', 'TokenizersBackend')


class Json:
  """A tokenizer.json, through the `tokenizers` library."""

  filename = 'tokenizer.json'

  def __init__(self, backend: Any):
    self._tokenizer = backend
    # A published file may carry these; both would change ids behind our back.
    self._tokenizer.no_padding()
    self._tokenizer.no_truncation()
    settings = json.loads(backend.to_str())
    self._post_processor = settings['post_processor']
    self._markers = _independent_markers(settings)
    self.special = tuple(
      token['content'] for token in settings['added_tokens'] if token['special'])
    self._swallowing = {token['id'] for token in settings['added_tokens']
                        if token['lstrip'] or token['rstrip']}
    self.vocab_size = max(backend.get_vocab(with_added_tokens=True).values()) + 1

  def content(self, opening: str | None = None) -> bytes:
    """The file, without padding and truncation; it puts `opening`, a token, before a text."""
    backend = self._tokenizer
    if opening is not None:
      backend = type(backend).from_str(backend.to_str())
      backend.post_processor = processors.TemplateProcessing(
        single=f'{opening} $A', pair=f'{opening} $A $B',
        special_tokens=[(opening, backend.token_to_id(opening))])
    return backend.to_str(pretty=True).encode('utf-8')

  def identity(self) -> bytes:
    """The file says all."""
    return self.content()

  def puts_first(self, index: int) -> bool:
    """Whether the post-processor puts this id before a text."""
    processors = [self._post_processor or {}]
    if processors[0].get('type') == 'Sequence':
      processors = processors[0]['processors']
    for processor in processors:
      token = (processor.get('single') or [{}])[0].get('SpecialToken', {}).get('id')
      if token is not None:
        return processor['special_tokens'][token]['ids'][0] == index
    return False

  def encode_batch(self, texts: list[str]) -> list[list[int]]:
    """The ids of each text."""
    if self._markers is None:
      encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
      return [encoding.ids for encoding in encodings]
    return [[i for _, ids in pieces for i in ids] for pieces in self._pieces(texts)]

  def _pieces(self, texts: list[str]) -> list[list[tuple[str, list[int]]]]:
    """(text, ids) of what each text consists of: markers, and what stands between them."""
    # Each turn of a dialogue comes back in every later prompt: encode the distinct pieces once.
    split = [self._markers.split(text) for text in texts]
    pieces = list(dict.fromkeys(piece for text in split for piece in text))
    encodings = self._tokenizer.encode_batch_fast(pieces, add_special_tokens=False)
    ids = {piece: encoding.ids for piece, encoding in zip(pieces, encodings)}
    return [[(piece, ids[piece]) for piece in text] for text in split]

  def encode_pairs(self, pairs: list[tuple[str, str]]) -> list[tuple[list[int], int]]:
    """(the ids of both texts as one, how many of them lie before the second) of each pair."""
    texts = [first + second for first, second in pairs]
    if self._markers is None:
      encodings = self._untrimmed.encode_batch(texts, add_special_tokens=False)
      return [(encoding.ids, before(self._offsets(text, encoding), len(first)))
              for text, encoding, (first, _) in zip(texts, encodings, pairs)]
    return [([i for _, ids in pieces for i in ids], self._before(pieces, len(first)))
            for pieces, (first, _) in zip(self._pieces(texts), pairs)]

  def _before(self, pieces: list[tuple[str, list[int]]], seam: int) -> int:
    """How many tokens of a text lie before character `seam`."""
    start = count = 0
    for piece, ids in pieces:
      if start >= seam:
        break
      whole = start + len(piece) <= seam
      count += len(ids) if whole else before(self.encode_with_offsets(piece)[1], seam - start)
      start += len(piece)
    return count

  def encode_with_offsets(self, text: str) -> tuple[list[int], Offsets]:
    """(ids, the range of characters of each, of an added token without the space it swallows)."""
    encoding = self._untrimmed.encode(text, add_special_tokens=False)
    return encoding.ids, self._offsets(text, encoding)

  def _offsets(self, text: str, encoding: Any) -> Offsets:
    if not self._swallowing:
      return encoding.offsets
    return [trimmed(text[begin:end], begin) if i in self._swallowing else (begin, end)
            for i, (begin, end) in zip(encoding.ids, encoding.offsets)]

  @functools.cached_property
  def _untrimmed(self) -> Any:
    """The same vocabulary with all white space in its offsets, which post-processors may trim."""
    if self._post_processor is None:
      return self._tokenizer
    copy = type(self._tokenizer).from_str(self._tokenizer.to_str())
    copy.post_processor = None
    return copy

  def decode(self, ids: list[int], skip_special: bool) -> str:
    """The text of ids in range; a number between them that is no id gives ''."""
    return self._tokenizer.decode(ids, skip_special_tokens=skip_special)

  def id(self, token: str) -> int | None:
    """The id of a token."""
    return self._tokenizer.token_to_id(token)

  def token(self, index: int) -> str | None:
    """The token of an id."""
    return self._tokenizer.id_to_token(index)


def _independent_markers(settings: dict[str, Any]) -> re.Pattern | None:
  """A pattern for the special tokens, if what lies between them is encoded on its own; else None.

  So it is in a plain byte-level tokenizer. Most normalizers, prefix spaces and tokens that swallow
  the white space beside them tie pieces together.
  """
  plain = {'type': 'ByteLevel', 'add_prefix_space': False}
  split = settings['pre_tokenizer'] or {}
  if split.get('type') == 'Sequence' and split['pretokenizers'][0]['type'] == 'Split':
    split = split['pretokenizers'][-1]
  tokens = settings['added_tokens']
  tied = any(token['lstrip'] or token['rstrip'] or token['single_word'] for token in tokens)
  tied |= settings['normalizer'] not in (None, {'type': 'Lowercase'})  # that one is by character
  if tied or not tokens or not plain.items() <= split.items():
    return None
  longest_first = sorted((token['content'] for token in tokens), key=len, reverse=True)
  return re.compile('(' + '|'.join(map(re.escape, longest_first)) + ')')


@contextlib.contextmanager
def native(expected: str, remedy: str) -> Iterator[None]:
  """Errors of the native libraries as ValueError: they raise what they like.

  A panic of Rust is no Exception; it is caught here, and nowhere else.
  """
  try:
    yield
  except (KeyboardInterrupt, SystemExit, GeneratorExit, documents.Malformed):
    raise
  except BaseException as error:
    raise ValueError(f'tokenizer: expected {expected}; found {type(error).__name__}: '
                     f'{str(error):.300}; {remedy}') from error


def read(file: epath.Path, settings: Settings) -> Json | SentencePiece:
  """The vocabulary of a tokenizer.json, a *.model, or a vocab.json with its merges.txt.

  Raises:
    ValueError: the file is not of its kind, or has ids that no vocabulary has.
  """
  with native(f'a tokenizer.json or a SentencePiece model in {file}', 'check the file'):
    content = documents.read_bytes(file)
    if file.suffix == '.model':
      return SentencePiece(content, settings)
    if file.name == 'vocab.json':
      documents.parse(content, file, _VOCABULARY)
      return Json(_byte_level(file, settings))
    return parse(content, file)


def parse(content: bytes, where: epath.Path) -> Json:
  """The vocabulary of what stands in a tokenizer.json; raises as `read`."""
  with native(f'a tokenizer.json in {where}', 'check the file'):
    _check_ids(Fields(documents.parse(content, where, OBJECT), where))
    return Json(tokenizers.Tokenizer.from_str(content.decode('utf-8')))


_VOCABULARY = documents.mapping(ID, MOST_IDS)


def _check_ids(fields: Fields) -> None:
  """Requires ids that a table can have: the library makes one up to the largest."""
  model = fields.get('model', OBJECT, {})
  vocabulary = model.get('vocab')
  if isinstance(vocabulary, dict):
    fields.check('the vocabulary', vocabulary, _VOCABULARY)
  added = fields.get('added_tokens', documents.items(OBJECT, MOST_IDS), [])
  for token in added:
    fields.check('the id of an added token', token.get('id'), ID)


def _byte_level(file: epath.Path, settings: Settings) -> Any:
  """A byte-level BPE as GPT-2 has it, from vocab.json and merges.txt."""
  if settings.tokenizer_class.removesuffix('Fast') not in _AS_GPT2:
    raise ValueError(
      f'expected a class that cuts words as GPT-2 does, for a vocab.json; found '
      f'{settings.tokenizer_class}; save the tokenizer with transformers, as a tokenizer.json')
  with paths.local_copy(file) as one, paths.local_copy(file.with_name('merges.txt')) as other:
    vocabulary, merges = models.BPE.read_file(str(one), str(other))
  backend = tokenizers.Tokenizer(models.BPE(vocabulary, merges))
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=settings.prefix_space)
  backend.decoder = decoders.ByteLevel()
  special = {*settings.declared.values(), '<|endoftext|>'} & vocabulary.keys()
  added = {text: Added(vocabulary[text]) for text in special} | settings.added
  for text, token in sorted(added.items(), key=lambda item: item[1].id):
    backend.add_tokens([tokenizers.AddedToken(
      text, lstrip=token.strips_left, rstrip=token.strips_right, normalized=False,
      special=token.special)])
    if backend.token_to_id(text) != token.id:
      raise ValueError(f'expected the added token {text!r} to get the id {token.id}; found '
                       f'{backend.token_to_id(text)}; name the added tokens before it too')
  return backend
