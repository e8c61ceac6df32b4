"""Safetensors: a file, or shards with an index. What is accepted is what the bytes say."""

import functools
import pathlib
import random
import struct
import tempfile
from typing import Any

import numpy as np

from experiments.fuzz import _mutations as mutations
from perl.hub import shards, tensors

SHARE = 10

_SHAPES = {'a.weight': (4, 6), 'b.weight': (6, 4), 'c.bias': (8,), 'd.scale': ()}


def _arrays() -> dict[str, np.ndarray]:
  return {name: np.random.default_rng(i).standard_normal(shape).astype(np.float32)
          for i, (name, shape) in enumerate(_SHAPES.items())}


@functools.cache
def _forms() -> dict[str, dict[str, bytes]]:
  """One file, and several."""
  forms = {}
  for name, most in (('one', 2**30), ('many', 100)):
    sources = [shards.Source(n, x.dtype, x.shape, lambda x=x: x) for n, x in _arrays().items()]
    with tempfile.TemporaryDirectory() as scratch:
      for _ in shards.write(pathlib.Path(scratch), sources, most):
        pass
      forms[name] = {f.name: f.read_bytes() for f in pathlib.Path(scratch).iterdir()}
  return forms


def files() -> dict[str, bytes]:
  """One file."""
  return _forms()['one']


def spoil(valid: dict[str, bytes], rng: random.Random) -> dict[str, bytes | None]:
  """A header, its length, the index, or a length of the file; the numbers themselves stay."""
  there = dict(_forms()[rng.choice(['one', 'many', 'many'])])
  name = rng.choice(sorted(there))
  there |= {name: spoilt_file(there[name], rng) if name.endswith('.safetensors')
            else mutations.spoilt_json(there[name], rng)}
  return dict.fromkeys(valid.keys() - there.keys()) | there


def spoilt_file(content: bytes, rng: random.Random) -> bytes:
  """A file of tensors whose header, its length or that of the whole is another."""
  (length,) = struct.unpack('<Q', content[:8])
  header, data = content[8:8 + length], content[8 + length:]
  kind = rng.randrange(8)
  if kind == 0:
    return content[:rng.randrange(len(content))]
  if kind == 1:
    return content + b'\0' * rng.choice([1, 8, 100])
  if kind == 2:
    size = rng.choice([0, 1, length - 1, length + 1, 2**31, 2**63, 2**64 - 1, 100_000_000])
    return struct.pack('<Q', size) + content[8:]
  if kind == 3:
    other = mutations.spoilt_bytes(header, rng)
  else:
    other = mutations.spoilt_json(header.rstrip(), rng)
  exact = rng.random() < 0.8
  return struct.pack('<Q', len(other) if exact else length) + other + data


def read(folder: pathlib.Path, rng: random.Random) -> Any:
  """Every tensor, and the digest over them."""
  del rng
  entries = tensors.find(folder)
  arrays = {name: tensors.read(name, entry) for name, entry in entries.items()}
  tensors.digest(entries)
  return arrays


def check(folder: pathlib.Path, value: dict[str, np.ndarray]) -> None:
  """The numbers were not touched: they are those that were written, under names of that size."""
  del folder
  originals = sorted(x.tobytes() for x in _arrays().values())
  for name, array in value.items():
    assert array.tobytes() in originals, f'{name} is {array!r:.100}, which nobody wrote'
