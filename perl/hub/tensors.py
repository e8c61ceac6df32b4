"""Folders of safetensors files, tensor by tensor: what is read is one tensor in memory.

The format (github.com/huggingface/safetensors): 8 bytes with the length of a JSON header, the
header {name: {dtype, shape, data_offsets}}, the bytes. The library checks each file; it cannot read
bfloat16 into numpy, so that is done here. shards.py writes them; gguf.py has tensors of another
container, whose entries read themselves.
"""

import contextlib
import functools
import hashlib
import math
import os
import pathlib
import struct
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import safetensors
import tqdm
from etils import epath

from perl import documents, paths

DTYPES = {
  'F64': np.dtype(np.float64), 'F32': np.dtype(np.float32), 'F16': np.dtype(np.float16),
  'BF16': np.dtype(ml_dtypes.bfloat16),
}
"""Those of weights; a checkpoint may hold others, which cannot be read here."""

INDEX = 'model.safetensors.index.json'
SINGLE = 'model.safetensors'
PICKLES = ('.bin', '.pt', '.pth', '.ckpt', '.pkl', '.msgpack', '.h5')
_REMEDY = 'fetch the checkpoint again'


class CorruptTensors(ValueError):
  """A file that is missing, cut short, or not what its index says."""


@contextlib.contextmanager
def named(folder: epath.Path, *others: type[ValueError]) -> Iterator[None]:
  """CorruptTensors, and other errors, say which folder they are about."""
  try:
    yield
  except (CorruptTensors, *others) as error:
    if str(folder) in str(error):
      raise
    raise type(error)(f'{folder}: {error}') from error


def read_bytes(
  file: epath.Path, name: str, start: int, stop: int, remedy: str = _REMEDY
) -> np.ndarray:
  """u8[stop - start] of a file, the tensor of that name, 64-byte aligned.

  Raises:
    CorruptTensors: the file was cut meanwhile.
  """
  size = stop - start
  room = np.empty(size + 64, np.uint8)
  buffer = room[-room.ctypes.data % 64 :][:size]
  with file.open('rb') as stream:
    stream.seek(start)
    done = 0
    while done < size:
      count = stream.readinto(memoryview(buffer)[done:])
      if not count:
        raise CorruptTensors(
          f'{file}: expected {size:,} bytes of {name}, found {done:,}; {remedy}')
      done += count
  return buffer


class Entry(NamedTuple):
  """Where a tensor lies."""

  file: epath.Path
  dtype: str  # the code of the format: 'BF16'
  shape: tuple[int, ...]
  start: int  # first byte in the file
  stop: int

  @property
  def bytes(self) -> int:
    """Its size."""
    return self.stop - self.start

  def read(self, name: str) -> np.ndarray:
    """The tensor, in memory that JAX on CPU can take over without a copy (64-byte aligned)."""
    if self.dtype not in DTYPES:
      raise CorruptTensors(
        f'{self.file}: expected {name} of dtype {", ".join(DTYPES)}, found {self.dtype}; quantized '
        'checkpoints are not supported, use the one in bfloat16')
    content = read_bytes(self.file, name, self.start, self.stop)
    return content.view(DTYPES[self.dtype]).reshape(self.shape)

  def chunks(self, name: str) -> Iterator[bytes]:
    """The bytes of the tensor, in pieces."""
    with self.file.open('rb') as stream:
      stream.seek(self.start)
      left = self.bytes
      while left:
        chunk = stream.read(min(left, 2**22))
        if not chunk:
          raise CorruptTensors(f'{self.file}: expected {left:,} more bytes of {name}; {_REMEDY}')
        yield chunk
        left -= len(chunk)


def find(folder: str | os.PathLike, single: str = SINGLE) -> dict[str, Entry]:
  """{name: where it lies} of all tensors of a folder, checked but not read.

  Args:
    folder: holds an index and shards, or one file.
    single: the name of that one file.

  Raises:
    FileNotFoundError: no safetensors; names the pickles that are there in their place.
    CorruptTensors: a shard is missing, cut short or malformed, or the index leads out of the folder
      or names a tensor that its shard lacks.
  """
  folder = paths.of(folder)
  if (folder / INDEX).is_file() and single == SINGLE:
    return _indexed(folder)
  if not (folder / single).is_file():
    raise FileNotFoundError(_nothing(folder, single))
  return header(folder / single)


def _nothing(folder: epath.Path, single: str) -> str:
  names = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
  pickles = [name for name in names if name.endswith(PICKLES)]
  if pickles:
    return (
      f'expected {single} in {folder}, found {pickles[0]}: a pickle can run code when it is read, '
      'and is never opened here; fetch the safetensors of that model, or convert it where that is '
      'safe (transformers: save_pretrained)')
  there = ', '.join(names[:8]) or 'nothing' if folder.is_dir() else 'no such folder'
  wanted = single if single != SINGLE else f'config.json and {single} or {INDEX}'
  return f'expected {wanted} in {folder}, found {there}; give the folder of a checkpoint'


_MAP = documents.record(weight_map=documents.mapping(documents.TEXT))


def _indexed(folder: epath.Path) -> dict[str, Entry]:
  about = documents.read(folder / INDEX, _MAP, remedy=_REMEDY, error=CorruptTensors)
  places = about['weight_map']
  files = sorted(set(places.values()))
  headers = {name: header(_beside(folder, name)) for name in files}
  for tensor, name in places.items():
    if tensor not in headers[name]:
      raise CorruptTensors(
        f'{folder / INDEX}: expected {tensor} in {name}, found it without that tensor; {_REMEDY}')
  return {tensor: headers[name][tensor] for tensor, name in places.items()}


def _beside(folder: epath.Path, name: Any) -> epath.Path:
  """A file of the folder itself: an index may not lead anywhere else."""
  plain = isinstance(name, str) and name.endswith('.safetensors') and '\\' not in name
  if not plain or pathlib.PurePath(name).name != name:
    raise CorruptTensors(
      f'{folder / INDEX}: expected the names of safetensors files in this folder, found {name!r}; '
      'the index leads elsewhere, do not trust this checkpoint')
  if not (folder / name).is_file():
    raise CorruptTensors(
      f'{folder / INDEX}: expected the shard {name}, found no such file; {_REMEDY}')
  return folder / name


_MOST_HEADER_BYTES = 100_000_000
"""As in the library."""
_ENTRY = documents.record(
  dtype=documents.TEXT, shape=documents.items(documents.whole(0, 2**48), 16),
  data_offsets=documents.items(documents.whole(0, 2**62), 2))


def header(file: epath.Path) -> dict[str, Entry]:
  """The tensors of one file.

  Raises:
    CorruptTensors: it is cut short or malformed, or its tensors are not the bytes after the header,
      each once.
  """
  size = paths.size_bytes(file)
  try:
    if paths.is_local(file):
      with safetensors.safe_open(file, 'np'):  # the library's own checks
        pass
    with file.open('rb') as stream:
      (length,) = struct.unpack('<Q', stream.read(8))
      if length > min(size, _MOST_HEADER_BYTES):
        raise ValueError(f'a header of {length:,} bytes')
      fields = documents.parse(stream.read(length), file, documents.OBJECT)
    fields.pop('__metadata__', None)
    documents.check(fields, documents.mapping(_ENTRY), 'the header', file)
    entries = {name: Entry(file, e['dtype'], tuple(e['shape']), *(
      8 + length + offset for offset in e['data_offsets'])) for name, e in fields.items()}
    _check_places(entries, 8 + length, size)
  except (OSError, ValueError, TypeError, struct.error, safetensors.SafetensorError) as error:
    raise CorruptTensors(
      f'{file}: expected a whole safetensors file, found {size:,} bytes that are none '
      f'({error}); {_REMEDY}'
    ) from error
  return entries


def _check_places(entries: dict[str, Entry], start: int, stop: int) -> None:
  """Raises ValueError unless the tensors fill the bytes from start to stop, one after another."""
  for name, entry in sorted(entries.items(), key=lambda item: item[1].start):
    width = DTYPES[entry.dtype].itemsize if entry.dtype in DTYPES else None
    fits = width is None or entry.bytes == math.prod(entry.shape) * width
    if entry.start != start or entry.stop < entry.start or not fits:
      raise ValueError(f'{name:.80} of shape {list(entry.shape)} at bytes {entry.start:,} to '
                       f'{entry.stop:,}, where byte {start:,} comes next')
    start = entry.stop
  if start != stop:
    raise ValueError(f'tensors up to byte {start:,} of {stop:,}')


def read(name: str, entry: Entry) -> np.ndarray:
  """The tensor.

  Raises:
    CorruptTensors: a dtype that weights do not have here, or a file that was cut meanwhile.
  """
  return entry.read(name)


def digest(entries: dict[str, Entry]) -> str:
  """sha256 (hex) over name, dtype, shape and bytes of every tensor, however they are sharded."""

  def one(item: tuple[str, Entry]) -> bytes:
    name, entry = item
    sha = hashlib.sha256(f'{name}:{entry.dtype}:{entry.shape}:'.encode())
    for chunk in entry.chunks(name):
      sha.update(chunk)
    return sha.digest()

  with ThreadPoolExecutor() as pool:  # hashing lets other threads run
    return hashlib.sha256(b''.join(pool.map(one, sorted(entries.items())))).hexdigest()


def widest(dtypes: Iterable[np.dtype]) -> np.dtype:
  """The dtype that holds all of these without loss."""
  return functools.reduce(jnp.promote_types, sorted(set(dtypes), key=str))


def bar(total: int, what: str, progress: bool) -> tqdm.tqdm:
  """A bar over bytes, on a terminal, for what takes more than two seconds."""
  return tqdm.tqdm(total=total, unit='B', unit_scale=True, desc=what, delay=2,
                   disable=None if progress else True)
