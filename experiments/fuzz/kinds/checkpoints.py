"""Our own checkpoints: one flipped bit anywhere is refused, or nothing is lost by it."""

import functools
import json
import pathlib
import random
import tempfile
from typing import Any

import numpy as np

from experiments.fuzz import _mutations as mutations
from perl import paths
from perl.train import storage

SHARE = 3

_NOISE = np.random.default_rng(0).standard_normal((64, 64), np.float32)  # no codec makes it less
_TREE = {'layers': {'a': _NOISE, 'b': np.float32(2.5)}, 'step': np.int32(7)}
_META = {'digest': 'd' * 64, 'config': {'layers': 2}, 'method': 'lora'}


@functools.cache
def files() -> dict[str, bytes]:
  """A saved tree."""
  with tempfile.TemporaryDirectory() as scratch:
    folder = pathlib.Path(scratch) / 'tree'
    storage.save_tree(folder, _TREE, _META)
    return {file.relative_to(folder).as_posix(): file.read_bytes()
            for file in folder.rglob('*') if file.is_file()}


def spoil(valid: dict[str, bytes], rng: random.Random) -> dict[str, bytes | None]:
  """A file of it, the list of files twice as often, or one more with the list."""
  names = [*sorted(valid), storage.FILES, storage.FILES]
  name = rng.choice(names)
  if name == storage.FILES:
    spoilt = {name: mutations.spoilt_json(valid[name], rng)}
  else:
    spoilt = {name: None if rng.random() < 0.05 else mutations.spoilt_bytes(valid[name], rng)}
  if rng.random() < 0.3:  # both at once: what the list no longer says, nothing may pass
    others = sorted(set(valid) - {storage.FILES}, key=lambda name: len(valid[name]))
    other = rng.choice([rng.choice(others), others[-1]])  # the largest holds the numbers
    table = json.loads(valid[storage.FILES])
    table.pop(other, None)
    lists = [b'{}', b'[]', b'null', json.dumps(table).encode(),
             mutations.spoilt_json(valid[storage.FILES], rng)]
    spoilt = {storage.FILES: rng.choice(lists),
              other: mutations.spoilt_bytes(valid[other], rng)}
  return spoilt


def read(folder: pathlib.Path, rng: random.Random) -> Any:
  """The tree and its meta; now and then the meta alone."""
  if rng.random() < 0.3:
    return _TREE, storage.read_about(paths.absolute(folder))['meta']
  return storage.load_tree(folder)


def check(folder: pathlib.Path, value: Any) -> None:
  """What is accepted is what was saved, to the bit."""
  del folder
  tree, meta = value
  assert meta == _META, f'meta {meta!r:.200}'
  for path in (('layers', 'a'), ('layers', 'b'), ('step',)):
    one, other = tree, _TREE
    for key in path:
      one, other = one[key], other[key]
    assert np.asarray(one).tobytes() == np.asarray(other).tobytes(), f'{path} is another'
