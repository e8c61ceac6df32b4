"""Text to token ids and back: tokenizer.json files, SentencePiece models, and a BPE of our own.

`encode` never adds bos or eos: where they go is the pipeline's business. Special tokens that stand
in the text ('<|user|>') are single ids when the vocabulary has them.
"""

import hashlib
import json
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any

from perl.data import dialogue

PAD, BOS, EOS = '<|pad|>', '<|bos|>', '<|eos|>'

# What published tokenizers call the three, tried in this order when no tokenizer_config.json says.
_NAMES = {
  'pad_token': (PAD, '<pad>', '[PAD]', '<|padding|>', '<|finetune_right_pad_id|>', '<|endoftext|>'),
  'bos_token': (BOS, '<s>', '<bos>', '<|begin_of_text|>', '[BOS]', '<|endoftext|>'),
  'eos_token': (EOS, '</s>', '<eos>', '<|end_of_text|>', '<|im_end|>', '[EOS]', '<|endoftext|>'),
}


class Tokenizer:
  """A vocabulary with the three special ids that training needs.

  Attributes:
    vocab_size: one more than the largest id: the rows that an embedding needs.
    bos_id, eos_id, pad_id: a vocabulary without bos or pad uses eos in their place. That is safe:
      masks come from lengths, never from ids.
    digest: sha256 hex of the vocabulary and the special ids; it identifies the tokenizer.
  """

  def __init__(self, backend: '_Json | _SentencePiece', bos_id: int, eos_id: int, pad_id: int):
    self._backend = backend
    self.bos_id, self.eos_id, self.pad_id = bos_id, eos_id, pad_id
    self.vocab_size = backend.vocab_size
    ids = json.dumps([bos_id, eos_id, pad_id]).encode()
    self.digest = hashlib.sha256(backend.content() + ids).hexdigest()

  def encode(self, text: str) -> list[int]:
    """The ids of the text, without bos and eos."""
    return self.encode_batch([text])[0]

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    """`encode` of each text, in parallel where the backend can."""
    return self._backend.encode_batch(list(texts))

  def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
    """The text of the ids; special tokens (markers, bos, eos, pad) are left out or kept."""
    return self._backend.decode([int(i) for i in ids], skip_special)

  def save(self, folder: str | pathlib.Path) -> pathlib.Path:
    """Writes tokenizer.json (or tokenizer.model) and tokenizer_config.json; returns the former."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / self._backend.filename
    path.write_bytes(self._backend.content())
    names = {'bos_token': self.bos_id, 'eos_token': self.eos_id, 'pad_token': self.pad_id}
    config = {name: self._backend.token(index) for name, index in names.items()}
    (folder / 'tokenizer_config.json').write_text(json.dumps(config, indent=2) + '\n')
    return path


class _Json:
  """A tokenizer.json, through the `tokenizers` library."""

  filename = 'tokenizer.json'

  def __init__(self, backend: Any):
    self._tokenizer = backend
    # A published file may carry these; both would change ids behind our back.
    self._tokenizer.no_padding()
    self._tokenizer.no_truncation()
    self._markers = _independent_markers(json.loads(backend.to_str()))
    self.vocab_size = max(backend.get_vocab(with_added_tokens=True).values()) + 1

  def content(self) -> bytes:
    return self._tokenizer.to_str(pretty=True).encode('utf-8')

  def encode_batch(self, texts: list[str]) -> list[list[int]]:
    if self._markers is None:
      encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
      return [encoding.ids for encoding in encodings]
    # Each turn of a dialogue comes back in every later prompt: encode the distinct pieces once.
    split = [self._markers.split(text) for text in texts]
    pieces = list(dict.fromkeys(piece for text in split for piece in text))
    encodings = self._tokenizer.encode_batch_fast(pieces, add_special_tokens=False)
    ids = {piece: encoding.ids for piece, encoding in zip(pieces, encodings)}
    return [[i for piece in text for i in ids[piece]] for text in split]

  def decode(self, ids: list[int], skip_special: bool) -> str:
    return self._tokenizer.decode(ids, skip_special_tokens=skip_special)

  def id(self, token: str) -> int | None:
    return self._tokenizer.token_to_id(token)

  def token(self, index: int) -> str:
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


class _SentencePiece:
  """A SentencePiece *.model."""

  filename = 'tokenizer.model'

  def __init__(self, content: bytes):
    import sentencepiece  # here: only those who use such a model pay for the import

    self._content = content
    self._processor = sentencepiece.SentencePieceProcessor(model_proto=content)
    self.vocab_size = self._processor.vocab_size()

  def content(self) -> bytes:
    return self._content

  def encode_batch(self, texts: list[str]) -> list[list[int]]:
    return self._processor.encode(texts, out_type=int)

  def decode(self, ids: list[int], skip_special: bool) -> str:
    if skip_special:
      return self._processor.decode([i for i in ids if not self._special(i)])
    # The library drops control pieces, so runs between them are decoded one by one.
    parts, run = [], []
    for index in ids:
      if self._processor.is_control(index):
        parts += [self._processor.decode(run), self.token(index)]
        run = []
      else:
        run.append(index)
    return ''.join([*parts, self._processor.decode(run)])

  def _special(self, index: int) -> bool:
    return self._processor.is_control(index) or self.token(index) in dialogue.SPECIAL_TOKENS

  def id(self, token: str) -> int | None:
    index = self._processor.piece_to_id(token)
    return None if index == self._processor.unk_id() else index

  def token(self, index: int) -> str:
    return self._processor.id_to_piece(index)


def _declared(folder: pathlib.Path) -> dict[str, str]:
  """The special tokens that a tokenizer_config.json beside the vocabulary declares."""
  path = folder / 'tokenizer_config.json'
  config = json.loads(path.read_text('utf-8')) if path.exists() else {}
  tokens = {name: config.get(name) for name in _NAMES}
  # transformers writes either the string or {'content': string, ...}.
  return {k: v['content'] if isinstance(v, dict) else v for k, v in tokens.items() if v}


def _with_special_ids(backend: _Json | _SentencePiece, declared: dict[str, str]) -> Tokenizer:
  found = {}
  for name, candidates in _NAMES.items():
    tokens = (declared[name],) if name in declared else candidates
    ids = (backend.id(token) for token in tokens)
    found[name] = next((index for index in ids if index is not None), None)
  eos = found['eos_token']
  if eos is None:
    raise ValueError(
      f'tokenizer: expected an end-of-sequence token among {", ".join(_NAMES["eos_token"])}; '
      f'found {declared.get("eos_token", "none of them")!r} to name no id; '
      "add a tokenizer_config.json with 'eos_token' beside the file")
  bos = eos if found['bos_token'] is None else found['bos_token']
  pad = eos if found['pad_token'] is None else found['pad_token']
  return Tokenizer(backend, bos_id=bos, eos_id=eos, pad_id=pad)


def load(path: str | pathlib.Path) -> Tokenizer:
  """Reads a tokenizer.json, a SentencePiece *.model, or a folder that holds one of them.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: the file is neither, or has no end-of-sequence token.
  """
  path = pathlib.Path(path)
  if path.is_dir():
    files = [path / _Json.filename, *sorted(path.glob('*.model'))]
    file = next((file for file in files if file.is_file()), None)
  else:
    file = path if path.is_file() else None
  if file is None:
    raise FileNotFoundError(f'tokenizer: expected a tokenizer.json, a *.model, or a folder with '
                            f'one; found none at {path}; give the path of one')
  try:
    backend = _SentencePiece(file.read_bytes()) if file.suffix == '.model' else _read_json(file)
  except Exception as error:  # both libraries raise bare Exception or RuntimeError
    raise ValueError(f'tokenizer: expected a tokenizer.json or a SentencePiece model in {file}; '
                     f'found {type(error).__name__}: {error}; check the file') from error
  return _with_special_ids(backend, _declared(file.parent))


def _read_json(file: pathlib.Path) -> _Json:
  import tokenizers

  return _Json(tokenizers.Tokenizer.from_str(file.read_text('utf-8')))


def train_bpe(texts: Iterable[str], vocab_size: int,
              special_tokens: Sequence[str] = dialogue.SPECIAL_TOKENS, *,
              lowercase: bool = False) -> Tokenizer:
  """Trains a byte-level BPE (Sennrich et al. 2016; bytes as in GPT-2): every string round-trips.

  With `lowercase` all text but the special tokens loses its case, for good.

  Ids 0, 1, 2 are pad, bos, eos, then come `special_tokens`, the 256 bytes and the merges. A small
  corpus may give fewer merges than asked for; `vocab_size` of the result tells.

  Raises:
    ValueError: vocab_size has no room for the special tokens and the 256 bytes.
  """
  import tokenizers
  from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

  special = [PAD, BOS, EOS, *(t for t in special_tokens if t not in (PAD, BOS, EOS))]
  least = len(special) + 256
  if vocab_size < least:
    raise ValueError(f'train_bpe: expected vocab_size >= {least} ({len(special)} special tokens '
                     f'and 256 bytes); found {vocab_size}; set tokenizer.vocab_size higher')
  backend = tokenizers.Tokenizer(models.BPE())
  if lowercase:
    backend.normalizer = normalizers.Lowercase()
  # Words keep their underscores, so that get_menu_items is one piece; GPT-2's pattern splits it.
  words = tokenizers.Regex(r' ?[\p{L}_]+| ?\p{N}+| ?[^\s\p{L}\p{N}_]+|\s+')
  backend.pre_tokenizer = pre_tokenizers.Sequence([
    pre_tokenizers.Split(words, 'isolated'),
    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
  ])
  backend.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=vocab_size, special_tokens=special, show_progress=False,
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
  # The trainer reads special tokens as text and would spend merges on '<|' and '|>'.
  markers = re.compile('|'.join(map(re.escape, special)))
  pieces = (piece for text in texts for piece in markers.split(text) if piece)
  backend.train_from_iterator(pieces, trainer)
  return _with_special_ids(_Json(backend), {})
