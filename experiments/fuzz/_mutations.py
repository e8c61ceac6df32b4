"""Ways to spoil a document: its values, its text, its bytes. All follow from a random.Random."""

import json
import random
import re
from collections.abc import Callable
from typing import Any

_DEEP = '@deep@'
"""Stands for lists in lists, which json.dumps could not write."""

VALUES: tuple[Callable[[random.Random], Any], ...] = (
  lambda r: None, lambda r: True, lambda r: False, lambda r: 0, lambda r: 1, lambda r: -1,
  lambda r: r.choice([2, 3, 7, 64, 1000]), lambda r: r.choice([1.5, 0.5, -0.0, 1e-9, 2.0]),
  lambda r: r.choice([2**31, 2**31 - 1, 2**32, 2**63, 2**64, 10**30, -2**31, 10**9, 2**24]),
  lambda r: r.choice([1e308, -1e308, 5e-324]),
  lambda r: r.choice([float('nan'), float('inf'), float('-inf')]),
  lambda r: '', lambda r: r.choice(['a', '0', '1e9', 'null', 'true', '../x', '/etc/passwd', '\0']),
  lambda r: r.choice(['\ud800', 'a\udc00b', '\ufdd0', '\u202e', '\U0010ffff', 'é' * 3]),
  lambda r: 'x' * r.choice([300, 10_000, 1_000_000]),
  lambda r: '([a-z0-9_.]+)+!', lambda r: '(' * r.choice([1, 50]), lambda r: '.*' * 20 + '!',
  lambda r: [], lambda r: {}, lambda r: [None], lambda r: [2], lambda r: ['a', 'a'],
  lambda r: {'a': 1}, lambda r: {'a': {'a': {'a': []}}}, lambda r: {'': None},
  lambda r: [0] * r.choice([10, 10_000]), lambda r: [[1, 2], [3, 4]],
  lambda r: _DEEP + str(r.choice([20, 200, 2000, 100_000])),
)
"""Values that take another's place."""


def value(document: Any, rng: random.Random) -> Any:
  """The document with one value of it absent, in another place, or another value."""
  document = json.loads(json.dumps(document))
  spots = _spots(document)
  if not spots or rng.random() < 0.02:
    return rng.choice(VALUES)(rng)
  parent, key = rng.choice(spots)
  old, kind = parent[key], rng.randrange(12)
  if kind == 0:
    del parent[key]
  elif kind == 1 and isinstance(parent, dict):
    parent[rng.choice([f'{key}s', key.upper(), '', f'{key}\0', 'x' * 1000])] = parent.pop(key)
  elif kind == 2:
    parent[key] = rng.choice([[old], {'a': old}, str(old), [old] * 3, json.dumps(old)])
  elif kind == 3:
    other, name = rng.choice(spots)
    parent[key] = json.loads(json.dumps(other[name])) if name in (
      other if isinstance(other, dict) else range(len(other))) else None
  elif kind == 4 and isinstance(old, (int, float)):
    parent[key] = rng.choice(
      [-old, old + 1, old * 1000, float(old), old * 10**12, str(old), -old - 1])
  elif kind == 5 and isinstance(old, str):
    parent[key] = rng.choice([old[:-1], old + old, old[::-1], old.upper(), f' {old}', old + '\0'])
  elif kind == 6 and isinstance(parent, list):
    parent.insert(key, rng.choice([old, rng.choice(VALUES)(rng)]))
  else:
    parent[key] = rng.choice(VALUES)(rng)
  return document


def _spots(node: Any) -> list[tuple[Any, Any]]:
  """(container, key) of every value below a node."""
  spots = []
  items = node.items() if isinstance(node, dict) else (
    enumerate(node) if isinstance(node, list) else ())
  for key, child in items:
    spots += [(node, key), *_spots(child)]
  return spots


def text(document: Any) -> bytes:
  """The document as JSON: also what JSON has no word for, as Python writes it."""
  deep = lambda match: '[' * int(match[1]) + ']' * int(match[1])
  return re.sub(f'"{_DEEP}(\\d{{1,6}})"', deep, json.dumps(document)).encode()


def spoilt_json(content: bytes, rng: random.Random) -> bytes:
  """A JSON document with values, or its text, or its bytes spoilt."""
  kind = rng.random()
  if kind < 0.75:
    document = json.loads(content)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
      try:
        document = value(document, rng)
      except ValueError:  # the document is no JSON any more: nan, say, has no way back
        break
    return text(document)
  if kind < 0.8 and content.lstrip().startswith(b'{'):
    return _twice(content, rng)
  return spoilt_bytes(content, rng)


def _twice(content: bytes, rng: random.Random) -> bytes:
  """A key of the outer object stands there a second time, with another value."""
  keys = list(json.loads(content)) or ['a']
  pair = f'{json.dumps(rng.choice(keys))}: '.encode() + text(rng.choice(VALUES)(rng))
  begin, end = content.index(b'{'), content.rindex(b'}')
  comma = b', ' if json.loads(content) else b''
  if rng.random() < 0.5:
    return content[:begin + 1] + pair + comma + content[begin + 1:]
  return content[:end] + comma + pair + content[end:]


def spoilt_bytes(content: bytes, rng: random.Random) -> bytes:
  """Bytes cut short, flipped, put in, taken out, doubled, or in another encoding."""
  kind, at = rng.randrange(12), rng.randrange(len(content) + 1)
  garbage = bytes(rng.randrange(256) for _ in range(rng.choice([1, 4, 64])))
  if kind == 0:
    return content[:at]
  if kind in (1, 2, 3) and content:
    out = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 8])):
      out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)
  if kind == 4:
    return content[:at] + garbage + content[at:]
  if kind == 5:
    return content[:at] + content[at + rng.choice([1, 2, 16]):]
  if kind == 6:
    return content[:at] + rng.choice([b'\xff', b'\xc3', b'\xed\xa0\x80', b'\x00', b'\xf5'
                                      ]) + content[at:]
  if kind == 7:
    return rng.choice([b'', b'\n', b'null', b'[]', b'{}', b'0', b'"', b'\x1f\x8b', b'\xef\xbb\xbf'
                       + content, content + content])
  if kind == 8:
    return rng.choice([content.decode('latin-1').encode('utf-16'), garbage * 64])
  if kind == 9:
    return rng.choice([b'[', b'{"a":']) * rng.choice([10, 1000, 100_000])
  if kind == 10:
    return content.replace(b'1', b'1' * rng.choice([2, 30, 5000]), 1)
  return content[:at] + content[at:at + 32] * rng.choice([2, 100]) + content[at + 32:]


def spoilt_one(files: dict[str, bytes], rng: random.Random, names: list[str] | None = None
               ) -> dict[str, bytes | None]:
  """One of the files spoilt as its name says, or absent."""
  name = rng.choice(names or sorted(files))
  if rng.random() < 0.01:
    return {name: None}
  how = spoilt_json if name.endswith('.json') else spoilt_bytes
  return {name: how(files[name], rng)}
