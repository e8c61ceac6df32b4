"""Text to token ids and back: tokenizer.json files, SentencePiece models, and a BPE of our own.

`encode` never adds bos or eos: where they go is the pipeline's business. Special tokens that stand
in the text ('<|user|>') are single ids when the vocabulary has them.
"""

import contextlib
import copy
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from etils import epath

from perl import documents, paths
from perl.data.text import dialogue, special_tokens, tokenizer_files, training, vocabularies
from perl.data.text.sentence_piece import SentencePiece
from perl.data.text.special_tokens import BOS, EOS, PAD
from perl.data.text.tokenizer_files import NOTHING, Settings
from perl.data.text.vocabularies import Json


class Tokenizer:
  """A vocabulary with the three special ids that training needs.

  Attributes:
    vocab_size: one more than the largest id: the rows that an embedding needs.
    bos_id, eos_id, pad_id: a vocabulary without bos or pad uses eos in their place. That is safe:
      masks come from lengths, never from ids.
    adds_bos: whether a text of this vocabulary opens with bos, by its own convention.
    stop_ids: all that end a response: eos_id first, then the others that generation_config.json
      lists (Llama 3's <|eom_id|>), and eos as it was before a chat's template chose another.
    special_tokens: the texts of bos_token, eos_token, pad_token and unk_token, of those it has.
    special: the texts of all its special tokens.
    chat_template: the source of its chat template (see chat.py); None if it has none.
    digest: sha256 hex of the vocabulary and the special ids; it identifies the tokenizer.
  """

  def __init__(self, backend: Json | SentencePiece, settings: Settings = NOTHING, *,
               where: str = 'the tokenizer'):
    self._backend, self._files, self._where = backend, settings.files, where
    self._class = settings.tokenizer_class
    special = special_tokens.ids(backend, settings)
    self.eos_id = special_tokens.stop(special['eos_token'], settings)
    self.bos_id = self.eos_id if special['bos_token'] is None else special['bos_token']
    self.pad_id = self.eos_id if special['pad_token'] is None else special['pad_token']
    self.stop_ids = tuple(dict.fromkeys((self.eos_id, *settings.stops)))
    self.vocab_size, self._rows, self.special = backend.vocab_size, 0, backend.special
    self.adds_bos = special_tokens.adds_bos(backend, settings, special['bos_token'])
    texts = {name: backend.token(index) for name, index in special.items() if index is not None}
    self.special_tokens = texts | {k: v for k, v in settings.declared.items() if v}
    self._eos = self.special_tokens.get('eos_token')
    self._pads_apart = False
    self.chat_template = settings.chat_template
    # Of those that add bos, as all did once, the digest is what it was.
    ids = [self.bos_id, self.eos_id, self.pad_id] + ([] if self.adds_bos else [False])
    self.digest = hashlib.sha256(backend.identity() + json.dumps(ids).encode()).hexdigest()

  def stopping_at(self, token: str) -> 'Tokenizer':
    """The same vocabulary, whose responses end with another token (one that ends a chat's turn).

    Raises:
      ValueError: the token is not one of the vocabulary.
    """
    index = self._backend.id(token)
    if index is None:
      raise ValueError(
        f'tokenizer: expected a token of the vocabulary to stop at; found {token!r}; give one')
    other = copy.copy(self)
    other.eos_id, other.special_tokens = index, self.special_tokens | {'eos_token': token}
    other.stop_ids = tuple(dict.fromkeys((index, *self.stop_ids)))
    return other

  def padding_apart(self, rows: int) -> 'Tokenizer':
    """The same vocabulary with a pad token that ends no response, or with none: for reward models.

    Classifiers of transformers read the last token that is not pad, by its id: with pad equal to
    eos they read what stands before the end, another score. Without any pad token they refuse
    batches, and score rows one by one as they should.

    Args:
      rows: those of the model's embedding.
    """
    used = (self.chat_template or '') + self.special_tokens.get('bos_token', '')
    token = special_tokens.apart(
      self._backend, self.special_tokens.get('pad_token'), self.stop_ids, used, rows)
    other = copy.copy(self)
    other.special_tokens = {k: v for k, v in self.special_tokens.items() if k != 'pad_token'} | (
      {} if token is None else {'pad_token': token})
    other.pad_id = self.eos_id if token is None else self._backend.id(token)
    other._pads_apart = True
    return other

  def within(self, rows: int) -> 'Tokenizer':
    """The same vocabulary for an embedding of so many rows, if that has all ids but perhaps pad's.

    A pad that was added to a vocabulary without a row of its own (the usual way with Llama's) is
    never looked at, for masks come from lengths: eos stands in for it, and a text with it is
    refused.

    Raises:
      ValueError: another token has an id beyond the embedding.
    """
    if self.vocab_size <= rows:
      return self
    beyond = {self._backend.token(index) for index in range(rows, self.vocab_size)} - {None}
    if beyond != {self.special_tokens.get('pad_token')}:
      raise ValueError(
        f'expected a tokenizer of at most {rows} tokens for this model, found {self.vocab_size} '
        f'({", ".join(sorted(map(repr, beyond)))[:60]} beyond them); use the one that was '
        'published with it')
    other = copy.copy(self)
    other.pad_id, other.vocab_size, other._rows = self.eos_id, rows, rows
    return other

  def token(self, index: int) -> str | None:
    """The token of an id, as the vocabulary spells it; None where it has none."""
    return self._backend.token(index)

  def has(self, token: str) -> bool:
    """Whether the vocabulary has this token."""
    return self._backend.id(token) is not None

  def _checked(self, ids: list[int]) -> list[int]:
    if self._rows and max(ids, default=0) >= self._rows:
      token = self._backend.token(max(ids))
      raise ValueError(f'tokenizer: expected text of tokens that the model has; found {token!r}, '
                       'which has no row in its embedding; take it out of the text')
    return ids

  def encode(self, text: str) -> list[int]:
    """The ids of the text, without bos and eos."""
    return self.encode_batch([text])[0]

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    """`encode` of each text, in parallel where the backend can.

    Raises:
      ValueError: the vocabulary has no ids for a text; so do the others that encode.
    """
    with self._words():
      batch = self._backend.encode_batch(list(texts))
    return [*map(self._checked, batch)]

  def encode_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[list[int], int]]:
    """(`encode` of both texts as one, how many of its ids are the first text's) of each pair.

    A token that holds the end of the first text and the beginning of the second, or that stands for
    nothing between them, is the second's.
    """
    with self._words():
      batch = self._backend.encode_pairs(list(pairs))
    return [(self._checked(ids), count) for ids, count in batch]

  def _words(self) -> contextlib.AbstractContextManager:
    return vocabularies.native(
      f'text that {self._where} has ids for',
      'leave the text out, or use a tokenizer with an unknown token or bytes')

  def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """(`encode` of the text, for each id the range of characters (begin, end) that it covers).

    Tokens that share a character have its range each; one that stands for nothing has an empty one.
    White space that an added token swallows from beside it is not in its range.
    """
    with self._words():
      ids, offsets = self._backend.encode_with_offsets(text)
    return self._checked(ids), offsets

  def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
    """The text of the ids; special tokens (markers, bos, eos, pad) are left out or kept.

    An id that the vocabulary does not have gives '': a model may have more rows than there are ids.
    """
    known = [int(i) for i in ids if 0 <= i < self.vocab_size]
    with self._words():
      return self._backend.decode(known, skip_special)

  def save(self, folder: str | os.PathLike) -> epath.Path:
    """Writes tokenizer.json (or tokenizer.model) and what stood beside it; returns the former.

    The other files of a tokenizer that was read are copied as they were; one that had no
    tokenizer_config.json gets one with its special tokens.
    """
    return self._write(folder, {}, self._backend.content())

  def publish(self, folder: str | os.PathLike, generation: dict | None = None) -> epath.Path:
    """`save` for others: transformers gives the same ids, puts bos where our pipeline does, and
    stops at what stops here.

    One that names its class is saved as it was, but for another eos. One of ours gets the class
    that reads its file as it stands, and a post-processor that adds bos.

    Args:
      folder: where it is written.
      generation: what generation_config.json holds beside the ids; None: as it was read.
    """
    eos = self.special_tokens.get('eos_token')
    more, content = {} if eos == self._eos else {'eos_token': eos}, self._backend.content()
    if self._pads_apart:
      more |= {'pad_token': self.special_tokens.get('pad_token')}
    if not self._class and isinstance(self._backend, Json):
      opens = self.adds_bos and not self._backend.puts_first(self.bos_id)
      content = self._backend.content(self.special_tokens['bos_token'] if opens else None)
      more |= {'tokenizer_class': 'PreTrainedTokenizerFast', 'add_bos_token': self.adds_bos}
    if generation is None:
      generation = self._object(tokenizer_files.GENERATION)
    path = self._write(folder, more, content)
    ids = generation | self.special_ids(generation)
    (path.parent / tokenizer_files.GENERATION).write_bytes(_json(ids))
    return path

  def special_ids(self, about: dict) -> dict[str, Any]:
    """bos_token_id, eos_token_id (a list of several) and pad_token_id, as configs hold them.

    `about` holds those that were there: bos and pad stay (but for one that was set apart), and eos
    where it says the same.
    """
    pad = None if self._pads_apart and 'pad_token' not in self.special_tokens else self.pad_id
    return special_tokens.as_configs_hold_them(
      about, self.bos_id, self.stop_ids, pad, keeps_pad=not self._pads_apart)

  def _object(self, name: str, files: Mapping[str, bytes] | None = None) -> dict[str, Any]:
    """The object in one of the files, its own if no others are given; {} if it is not there."""
    content = (self._files if files is None else files).get(name, b'{}')
    return documents.parse(content, f'{name} of {self._where}', documents.OBJECT)

  def _write(self, folder: str | os.PathLike, more: dict, content: bytes) -> epath.Path:
    folder = paths.of(folder)
    folder.mkdir(parents=True, exist_ok=True)
    names = ('bos_token', 'eos_token', 'pad_token')
    config = {name: self.special_tokens.get(name) for name in names}
    files = {tokenizer_files.CONFIG: _json(config)} | self._files
    if len(self.stop_ids) > 1:  # perhaps of a config.json, which is not copied
      files = {tokenizer_files.GENERATION: _json({'eos_token_id': list(self.stop_ids)})} | files
    if more:
      files[tokenizer_files.CONFIG] = _json(self._object(tokenizer_files.CONFIG, files) | more)
    changed = {name: more[name] for name in names if name in more}
    if changed and tokenizer_files.SPECIAL in files:
      special = self._object(tokenizer_files.SPECIAL) | changed
      files[tokenizer_files.SPECIAL] = _json(special)
    for name, text in (files | {self._backend.filename: content}).items():
      (folder / name).write_bytes(text)
    return folder / self._backend.filename


def _json(value: dict) -> bytes:
  return (json.dumps(value, indent=2) + '\n').encode()


def load(path: str | os.PathLike) -> Tokenizer:
  """Reads a tokenizer.json, a SentencePiece *.model, or a folder that holds one of them.

  A folder may also hold a byte-level BPE as vocab.json and merges.txt. What tokenizer_files.py
  finds beside the vocabulary is read too.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: a file is not of its kind, or there is no end-of-sequence token.
  """
  path = paths.of(path)
  if path.is_dir():
    files = [path / Json.filename, *sorted(path.glob('*.model'))]
    files += [path / 'vocab.json'] if (path / 'merges.txt').is_file() else []
    file = next((file for file in files if file.is_file()), None)
  else:
    file = path if path.is_file() else None
  if file is None:
    raise FileNotFoundError(
      f'tokenizer: expected a tokenizer.json, a *.model, or a folder with one (or with vocab.json '
      f'and merges.txt); found none at {path}; give the path of one')
  settings = tokenizer_files.read(file.parent)
  return Tokenizer(vocabularies.read(file, settings), settings, where=str(file))


def of(files: dict[str, bytes], where: epath.Path, ending: tuple[int, ...]) -> Tokenizer:
  """The tokenizer of a folder with these files, tokenizer.json among them; see tokenizer_files."""
  settings = tokenizer_files.of(files, where, ending)
  return Tokenizer(vocabularies.parse(files[Json.filename], where), settings, where=str(where))


def train_bpe(texts: Iterable[str], vocab_size: int,
              special_tokens: Sequence[str] = dialogue.SPECIAL_TOKENS, *,
              lowercase: bool = False, split_digits: bool = False) -> Tokenizer:
  """Trains a byte-level BPE (Sennrich et al. 2016; bytes as in GPT-2): every string round-trips.

  With `lowercase` all text but the special tokens loses its case, for good. With `split_digits`
  each digit is a token of its own, as in Llama (Touvron et al. 2023, arXiv 2302.13971, sec. 2.1).

  Ids 0, 1, 2 are pad, bos, eos, then come `special_tokens`, the 256 bytes and the merges. A small
  corpus may give fewer merges than asked for; `vocab_size` of the result tells.

  Raises:
    ValueError: vocab_size has no room for the special tokens and the 256 bytes.
  """
  special = [PAD, BOS, EOS, *(t for t in special_tokens if t not in (PAD, BOS, EOS))]
  return Tokenizer(Json(training.byte_pairs(
    texts, vocab_size, special, lowercase=lowercase, split_digits=split_digits)))
