"""Files of rows, whole or line by line, gzipped or not, within bounds.

A gzip file of a megabyte may hold a gigabyte, in one line: what is larger than a file or a line of
rows can be is refused before it fills the memory.
"""

import gzip
import zlib
from collections.abc import Iterator

from etils import epath

MOST_BYTES = 2**33
"""Of a file, once it is unpacked."""
MOST_LINE_BYTES = 2**26

_DAMAGED = (OSError, EOFError, zlib.error)
"""What gzip raises; BadGzipFile is an OSError."""


def read_text(file: epath.Path) -> str:
  """A whole file; whether it is gzipped its content tells.

  Raises:
    ValueError: it is cut short, too large, or no UTF-8; the file is named.
    OSError: it cannot be read.
  """
  with file.open('rb') as stream:
    packed = stream.read(2) == b'\x1f\x8b'
  content = b''.join(_blocks(file, packed))
  try:
    return content.decode('utf-8')
  except UnicodeDecodeError as error:
    raise ValueError(f'expected UTF-8 in {file}, found {error}; fetch the file again') from error


def lines(file: epath.Path) -> Iterator[bytes]:
  """The lines of a file, which is gzipped if its name ends in .gz; raises as `read_text`."""
  rest = b''
  for block in _blocks(file, file.name.endswith('.gz')):
    *whole, rest = (rest + block).split(b'\n')
    yield from whole
    if len(rest) > MOST_LINE_BYTES:
      raise ValueError(f'expected lines of at most {MOST_LINE_BYTES:,} bytes in {file}, found a '
                       'longer one; write a row a line')
  yield rest


def _blocks(file: epath.Path, packed: bool) -> Iterator[bytes]:
  if not packed:
    with file.open('rb') as stream:
      while block := stream.read(2**20):
        yield block
    return
  size = 0
  try:
    with file.open('rb') as source, gzip.GzipFile(fileobj=source) as stream:
      while block := stream.read(2**20):
        size += len(block)
        if size > MOST_BYTES:
          raise ValueError(f'expected at most {MOST_BYTES:,} bytes in {file}, found more once '
                           'unpacked; split it')
        yield block
  except _DAMAGED as error:
    raise ValueError(
      f'expected a whole gzip file in {file}, found {error}; write the file again') from error
