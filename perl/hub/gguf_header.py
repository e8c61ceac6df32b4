"""The header of a GGUF file (llama.cpp's container): its fields, and where each tensor lies.

The format (github.com/ggml-org/ggml/blob/master/docs/gguf.md), little-endian: 'GGUF', version,
count of tensors, count of fields; fields (key, type, value); tensors (name, dimensions, the fastest
first, type, offset); padding; the bytes of the tensors. The `gguf` package reads it too, but trusts
its counts: one of 2^60 keeps it busy for ever. Here all is bounded by the file and by MOST_BYTES.
"""

import dataclasses
import functools
import math
import os
import struct
from typing import Any, BinaryIO

from etils import epath

from perl import documents, paths
from perl.documents import MOST_BYTES, Fields
from perl.hub.config_json import Unsupported
from perl.hub.tensors import CorruptTensors

END = '.gguf'
KINDS = (
  'F32', 'F16', 'BF16', 'Q4_0', 'Q4_1', 'Q5_0', 'Q5_1', 'Q8_0', 'Q2_K', 'Q3_K', 'Q4_K', 'Q5_K',
  'Q6_K', 'IQ4_NL', 'IQ4_XS',
)
"""The types of tensors that can be read."""

REMEDY = 'fetch the file again'
_VERSIONS = (2, 3)
_NUMBERS = {0: 'B', 1: 'b', 2: 'H', 3: 'h', 4: 'I', 5: 'i', 6: 'f', 7: '?', 10: 'Q', 11: 'q',
            12: 'd'}
_TEXT, _LIST = 8, 9
_MOST_ENTRIES = 2**17
"""Of fields, and of tensors; the largest model that is published has 3,000."""
_ALIGNMENT = documents.one_of(*(2**i for i in range(16)))


@dataclasses.dataclass(frozen=True)
class Place:
  """Where a tensor lies.

  Attributes:
    kind: of KINDS.
    shape: as arrays have it, the fastest axis last.
    start, stop: bytes in the file.
  """

  kind: str
  shape: tuple[int, ...]
  start: int
  stop: int


@dataclasses.dataclass(frozen=True)
class Header:
  """What a file says before its tensors.

  Attributes:
    file: it.
    fields: key -> number, flag, text, or a list of these.
    tensors: name -> place, in the file's order.
  """

  file: epath.Path
  fields: dict[str, Any]
  tensors: dict[str, Place]

  @property
  def checked(self) -> Fields:
    """The fields, asked for by kind."""
    return Fields(self.fields, self.file, remedy=REMEDY, error=CorruptTensors)


def is_one(place: str | os.PathLike) -> bool:
  """Whether a path names a GGUF file: by its end."""
  return os.fspath(place).lower().endswith(END)


def read(file: str | os.PathLike) -> Header:
  """The header of a file; of the last ones it is kept, while they are not written to.

  Raises:
    FileNotFoundError: there is no such file.
    CorruptTensors: it is no GGUF file, cut short, or its header leads out of it.
    Unsupported: a version or a type of tensors that cannot be read, by name.
  """
  file = paths.of(file)
  if not file.is_file():
    raise FileNotFoundError(
      f'expected a GGUF file {file}, found none; give the path of one, or a folder without the '
      f'end {END}')
  return _read(str(file), str(paths.stamps(file)))


@functools.lru_cache(maxsize=2)
def _read(name: str, stamps: str) -> Header:
  del stamps  # of the file: it is read again when they change
  file = epath.Path(name)
  size = paths.size_bytes(file)
  with file.open('rb') as stream:
    cursor = _Cursor(stream, file, min(size, MOST_BYTES))
    try:
      tensors, fields = _counts(cursor)
      values = dict(_unique(cursor, 'field', (_field(cursor) for _ in range(fields))))
      infos = dict(_unique(cursor, 'tensor', (_tensor(cursor) for _ in range(tensors))))
    except (struct.error, UnicodeDecodeError, OverflowError) as error:
      raise cursor.broken(f'another ({error})') from error
  fields = Fields(values, file, remedy=REMEDY, error=CorruptTensors)
  alignment = fields.get('general.alignment', _ALIGNMENT, 32)
  start = -(-cursor.done // alignment) * alignment
  return Header(file, values, {
    name: _place(file, name, *info, start, size) for name, info in infos.items()})


class _Cursor:
  """Reads a stream within bounds."""

  def __init__(self, stream: BinaryIO, file: epath.Path, most: int):
    self._stream, self._file, self._most, self.done = stream, file, most, 0

  def broken(self, found: str) -> CorruptTensors:
    return CorruptTensors(
      f'expected the header of a GGUF file in {self._file}, found {found} at byte {self.done:,}; '
      f'{REMEDY}')

  def take(self, count: int) -> bytes:
    """The next bytes."""
    if count > self._most - self.done:
      raise self.broken(f'something of {count:,} bytes, more than there are')
    content = self._stream.read(count)
    if len(content) != count:
      raise self.broken('its end')
    self.done += count
    return content

  def number(self, letter: str) -> Any:
    return struct.unpack(f'<{letter}', self.take(struct.calcsize(f'<{letter}')))[0]

  def text(self) -> str:
    return self.take(self.number('Q')).decode('utf-8')

  def values(self, kind: int, count: int) -> list[Any]:
    """A list."""
    if kind in _NUMBERS:
      width = struct.calcsize(f'<{_NUMBERS[kind]}')
      return list(struct.unpack(f'<{count}{_NUMBERS[kind]}', self.take(count * width)))
    if kind != _TEXT or 8 * count > self._most - self.done:
      raise self.broken(f'a list of {count:,} values of the type {kind}')
    return [self.text() for _ in range(count)]


def _counts(cursor: _Cursor) -> tuple[int, int]:
  """(number of tensors, number of fields)."""
  if (magic := cursor.take(4)) != b'GGUF':
    raise cursor.broken(f'{magic!r} in the place of its first letters')
  version = cursor.number('I')
  if version not in _VERSIONS:
    turned = version >= 2**16 and version % 2**16 == 0
    raise Unsupported(
      f'expected a GGUF file of version {" or ".join(map(str, _VERSIONS))}, little-endian, found '
      f'{"a big-endian one" if turned else f"version {version}"}; that is not supported, convert '
      'the model again')
  counts = cursor.number('Q'), cursor.number('Q')
  if max(counts) > _MOST_ENTRIES:
    raise cursor.broken(f'{counts[0]:,} tensors and {counts[1]:,} fields')
  return counts


def _unique(cursor: _Cursor, what: str, pairs):
  names = set()
  for name, value in pairs:
    if name in names:
      raise cursor.broken(f'a second {what} {name:.60}')
    names.add(name)
    yield name, value


def _field(cursor: _Cursor) -> tuple[str, Any]:
  key, kind = cursor.text(), cursor.number('I')
  if kind == _LIST:
    return key, cursor.values(*struct.unpack('<IQ', cursor.take(12)))
  if kind == _TEXT:
    return key, cursor.text()
  if kind not in _NUMBERS:
    raise cursor.broken(f'{key:.60} of the type {kind}')
  return key, cursor.number(_NUMBERS[kind])


def _tensor(cursor: _Cursor) -> tuple[str, tuple[tuple[int, ...], int, int]]:
  """(name, (shape, type, offset))."""
  name, axes = cursor.text(), cursor.number('I')
  if not 1 <= axes <= 4:
    raise cursor.broken(f'{name:.60} of {axes} dimensions')
  shape = struct.unpack(f'<{axes}Q', cursor.take(8 * axes))[::-1]
  return name, (shape, *struct.unpack('<IQ', cursor.take(12)))


def _place(
  file: epath.Path, name: str, shape: tuple[int, ...], number: int, offset: int, start: int,
  size: int,
) -> Place:
  """The place of a tensor, whose blocks are whole and lie in the file."""
  types, sizes = library().GGMLQuantizationType, library().GGML_QUANT_SIZES
  known = {item.value: item.name for item in types}
  kind = known.get(number, f'the number {number}')
  if kind not in KINDS:
    raise Unsupported(
      f'expected tensors of type {", ".join(KINDS)} in {file}, found {name:.60} of {kind}; that is '
      'not supported, use a file in another quantization')
  block, width = sizes[types[kind]]
  count = math.prod(shape)
  bytes_ = count // block * width
  begin = start + offset
  if shape[-1] % block or not count or begin + bytes_ > size:
    raise CorruptTensors(
      f'expected {name:.60} of {kind} to be whole blocks of {block} within {file}, found shape '
      f'{list(shape)} at byte {begin:,} of {size:,}; {REMEDY}')
  return Place(kind, shape, begin, begin + bytes_)


def library() -> Any:
  """The package `gguf`: names and sizes of the types of tensors, and what makes numbers of them.

  Raises:
    ValueError: it is not installed.
  """
  try:
    import gguf
  except ModuleNotFoundError as error:
    raise ValueError(
      "expected the package gguf, which reads such files, found it not installed; pip install "
      "'perl-rlhf[gguf]'") from error
  return gguf
