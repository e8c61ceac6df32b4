"""Safetensors files out: shards and their index, one tensor in memory at a time.

The library cannot write a file without holding all of it. The format is in tensors.py.
"""

import json
import math
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from perl import paths
from perl.hub.tensors import DTYPES, INDEX, SINGLE

_CODES = {dtype: code for code, dtype in DTYPES.items()}


class Source(NamedTuple):
  """A tensor that is to be written: what it will be, and how to get it when its turn comes."""

  name: str
  dtype: np.dtype
  shape: tuple[int, ...]
  make: Callable[[], np.ndarray]

  @property
  def bytes(self) -> int:
    """Its size in the file."""
    return math.prod(self.shape) * self.dtype.itemsize


def write(
  folder: epath.Path, sources: Sequence[Source], shard_bytes: int, single: str = SINGLE
) -> Iterator[int]:
  """Writes shards and index, or one file if all fits; yields the bytes of each tensor written.

  Args:
    folder: exists.
    sources: the tensors, in order.
    shard_bytes: the most that a shard holds, unless a tensor alone is larger.
    single: the name of the one file.
  """
  shards: list[list[Source]] = [[]]
  for source in sources:
    if shards[-1] and sum(s.bytes for s in shards[-1]) + source.bytes > shard_bytes:
      shards.append([])
    shards[-1].append(source)
  n = len(shards)
  files = [single] if n == 1 else [
    f'model-{i:05d}-of-{n:05d}.safetensors' for i in range(1, n + 1)]
  for file, shard in zip(files, shards):
    yield from _write_file(folder / file, shard)
  if n > 1:
    places = {s.name: file for file, shard in zip(files, shards) for s in shard}
    index = {'metadata': {'total_size': sum(s.bytes for s in sources)}, 'weight_map': places}
    (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + '\n')


def _write_file(file: epath.Path, sources: Sequence[Source]) -> Iterator[int]:
  entries: dict[str, Any] = {'__metadata__': {'format': 'pt'}}
  offset = 0
  for source in sources:
    entries[source.name] = {
      'dtype': _CODES[source.dtype], 'shape': list(source.shape),
      'data_offsets': [offset, offset + source.bytes],
    }
    offset += source.bytes
  text = json.dumps(entries, separators=(',', ':')).encode()
  text += b' ' * (-len(text) % 8)
  with file.open('wb') as stream:
    stream.write(struct.pack('<Q', len(text)) + text)
    for source in sources:
      array = np.ascontiguousarray(source.make(), source.dtype)
      stream.write(memoryview(array.reshape(-1).view(np.uint8)))
      yield source.bytes
    stream.flush()
    if paths.is_local(file):
      os.fsync(stream.fileno())
