"""SentencePiece models and the tokens added to them; what they offer is in vocabularies.py."""

import json
import re
from collections.abc import Iterator

from perl.data.text import dialogue
from perl.data.text.offsets import Offsets, before, trimmed
from perl.data.text.tokenizer_files import NOTHING, Added, Settings


class SentencePiece:
  """A SentencePiece *.model, with the tokens that were added to it.

  Control pieces and added tokens are cut out of a text first. What stands between them is encoded
  run by run, and a dummy space is put before a run that opens the text; before all with `legacy`.
  """

  filename = 'tokenizer.model'

  def __init__(self, content: bytes, settings: Settings = NOTHING):
    import sentencepiece  # here: only those who use such a model pay for the import
    from sentencepiece import sentencepiece_model_pb2

    self._content, self._settings = content, settings
    self._processor = self._later = sentencepiece.SentencePieceProcessor(model_proto=content)
    model = sentencepiece_model_pb2.ModelProto.FromString(content)
    if model.normalizer_spec.add_dummy_prefix and not settings.legacy:
      model.normalizer_spec.add_dummy_prefix = False
      self._later = sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())
    self._pieces = self._processor.vocab_size()
    self._added: dict[str, Added] = {}
    self._added = self._cut_out(settings)
    self._texts = {token.id: text for text, token in self._added.items()}
    self._special = {token.id for token in self._added.values() if token.special}
    self._special |= {i for i in map(self.id, dialogue.SPECIAL_TOKENS) if i is not None}
    self.special = tuple(self._texts[i] for i in sorted(self._special & self._texts.keys()))
    self.vocab_size = max(self._pieces, 1 + max(self._texts, default=0))
    self._pattern = _any_of(self._added)

  def _cut_out(self, settings: Settings) -> dict[str, Added]:
    """Control pieces, special tokens that the files declare, and added tokens."""
    control = filter(self._processor.is_control, range(self._pieces))
    names = [self._processor.id_to_piece(index) for index in control]
    names += [text for text in settings.declared.values() if text]
    ids = {text: self.id(text) for text in names}
    special = {text: Added(index) for text, index in ids.items() if index is not None}
    return special | settings.added

  def content(self) -> bytes:
    """The model, as it was read."""
    return self._content

  def identity(self) -> bytes:
    """The model and what was added to it; of a model alone just its bytes."""
    added = sorted((token.id, text) for text, token in self._settings.added.items())
    more = json.dumps([added, self._settings.legacy]).encode()
    return self._content + (more if added or self._settings.legacy else b'')

  def puts_first(self, index: int) -> bool:
    """The format has no word on this; those who train with it put bos first."""
    del index
    return True

  def _parts(self, text: str) -> Iterator[tuple[int, str, int | None]]:
    """(start, text, id) of each part: an added token, or a run with no id."""
    end = 0
    for match in self._pattern.finditer(text) if self._pattern else ():
      if match.start() > end:
        yield end, text[end:match.start()], None
      token = self._added.get(match[0]) or self._added[match[0].strip()]
      yield match.start(), match[0], token.id
      end = match.end()
    if end < len(text):
      yield end, text[end:], None

  def encode_batch(self, texts: list[str]) -> list[list[int]]:
    """The ids of each text."""
    return [[i for *_, ids in parts for i in ids] for parts in self._encoded(texts)]

  def encode_pairs(self, pairs: list[tuple[str, str]]) -> list[tuple[list[int], int]]:
    """(the ids of both texts as one, how many of them lie before the second) of each pair."""
    encoded = self._encoded([first + second for first, second in pairs])
    return [([i for *_, ids in parts for i in ids], self._before(parts, len(first)))
            for parts, (first, _) in zip(encoded, pairs)]

  def _before(self, parts: list[tuple[int, str, int | None, list[int]]], seam: int) -> int:
    """How many tokens of a text lie before character `seam`."""
    count = 0
    for start, run, index, ids in parts:
      if start >= seam:
        break
      whole = start + len(run) <= seam
      count += len(ids) if whole else before(self._ranges(start, run, index)[1], seam)
    return count

  def _encoded(self, texts: list[str]) -> list[list[tuple[int, str, int | None, list[int]]]]:
    """(start, text, id, ids) of the parts of each text."""
    split = [list(self._parts(text)) for text in texts]
    ids = {}
    for opens, processor in ((True, self._processor), (False, self._later)):
      runs = {run for parts in split for start, run, index in parts
              if index is None and (start == 0) is opens}
      runs = sorted(runs)
      encoded = processor.encode(runs, out_type=int)
      ids |= {(opens, run): pieces for run, pieces in zip(runs, encoded)}
    return [[(start, run, index, ids[start == 0, run] if index is None else [index])
             for start, run, index in parts] for parts in split]

  def encode_with_offsets(self, text: str) -> tuple[list[int], Offsets]:
    """(ids, the range of characters of each; the bytes of one character share its range)."""
    ids, offsets = [], []
    for part in self._parts(text):
      more, ranges = self._ranges(*part)
      ids, offsets = ids + more, offsets + ranges
    return ids, offsets

  def _ranges(self, start: int, run: str, index: int | None) -> tuple[list[int], Offsets]:
    """`encode_with_offsets` of a part; an added token's range is without the space it swallows."""
    from sentencepiece import sentencepiece_pb2

    if index is not None:
      return [index], [trimmed(run, start)]
    processor = self._later if start else self._processor
    # Every version of the library has this form, and counts in bytes there.
    serialized = processor.encode(run, out_type='serialized_proto')
    pieces = sentencepiece_pb2.SentencePieceText.FromString(serialized).pieces
    letters = enumerate(run, start)
    characters = [i for i, letter in letters for _ in letter.encode('utf-8')] + [start + len(run)]
    ranges = [(characters[piece.begin], characters[piece.end]) for piece in pieces]
    for i in reversed(range(len(ranges) - 1)):
      # The library gives a character to the last of its bytes.
      if ranges[i][0] == ranges[i][1] and processor.is_byte(pieces[i].id):
        ranges[i] = ranges[i + 1]
    return [piece.id for piece in pieces], ranges

  def decode(self, ids: list[int], skip_special: bool) -> str:
    """The text of ids in range; a number between them that is no id gives ''."""
    if skip_special:
      ids = [index for index in ids if index not in self._special]
    parts, run, processor = [], [], self._processor
    for index in ids:
      if index not in self._texts:
        run += [index] if index < self._pieces else []
        continue
      parts += [processor.decode(run), self._texts[index]]
      run, processor = [], self._later
    return ''.join([*parts, processor.decode(run)])

  def id(self, token: str) -> int | None:
    """The id of a token."""
    if token in self._added:
      return self._added[token].id
    index = self._processor.piece_to_id(token)
    known = index != self._processor.unk_id() or self._processor.id_to_piece(index) == token
    return index if known else None

  def token(self, index: int) -> str | None:
    """The token of an id."""
    if index in self._texts:
      return self._texts[index]
    return self._processor.id_to_piece(index) if index < self._pieces else None


def _any_of(added: dict[str, Added]) -> re.Pattern | None:
  longest_first = sorted(added, key=len, reverse=True)
  # White space is tried once, from its beginning: from each place in it would be n^2 steps.
  left = lambda token: r'(?:(?<!\s)\s+)?' if token.strips_left else ''
  right = lambda token: r'\s*' if token.strips_right else ''
  patterns = [left(added[text]) + re.escape(text) + right(added[text]) for text in longest_first]
  return re.compile('|'.join(patterns)) if patterns else None
