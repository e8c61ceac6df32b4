"""JSON from disk, within bounds, and its fields, of the kind that is asked for.

All JSON that perl reads passes `parse`: a file may nest lists a million deep, hold half of a
character, or be no text at all, and json.loads has another error for each of these, or none. What
the document says is then asked for by `Kind`: a number where a number is expected, of a size that a
machine can hold. Errors are one class, and say what was expected, what was found, and where.
"""

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from etils import epath

MOST_BYTES = 2**28
"""Of a document; the tokenizer.json of 262,144 tokens has 2**25."""
MOST_DEPTH = 64
"""Lists and objects in one another: what reads them later does so by recursion."""
REMEDY = 'repair the file, or fetch it again'

_HALF = re.compile(r'\\u[dD][89a-fA-F]')
"""A character in two escapes, or half of one."""


class Malformed(ValueError):
  """A document that is no JSON, or whose fields are of other kinds than they should be."""


class Kind(NamedTuple):
  """What a value has to be."""

  expected: str  # 'a whole number from 1 to 8'
  fits: Callable[[Any], bool]


def whole(low: int = 0, high: int = 2**31 - 1) -> Kind:
  """An integer between these; true and false are none."""
  return Kind(f'a whole number from {low:,} to {high:,}',
              lambda x: type(x) is int and low <= x <= high)


def number(low: float = -1e30, high: float = 1e30) -> Kind:
  """A finite number between these."""
  return Kind(f'a number from {low:g} to {high:g}',
              lambda x: type(x) in (int, float) and low <= x <= high)


def items(kind: Kind, most: int = 2**20) -> Kind:
  """A list of at most so many; or, of what is no JSON, a tuple."""
  return Kind(f'a list, each {kind.expected}', lambda x: (
    isinstance(x, (list, tuple)) and len(x) <= most and all(map(kind.fits, x))))


def mapping(kind: Kind, most: int = 2**24) -> Kind:
  """An object of at most so many values."""
  return Kind(f'an object, each value {kind.expected}',
              lambda x: isinstance(x, dict) and len(x) <= most and all(map(kind.fits, x.values())))


def record(**kinds: Kind) -> Kind:
  """An object with these fields, of these kinds, and perhaps others; of NULL they may be absent."""
  return Kind(
    'an object with ' + ', '.join(f'{name} ({kind.expected})' for name, kind in kinds.items()),
    lambda x: isinstance(x, dict) and all(kind.fits(x.get(name)) for name, kind in kinds.items()))


def one_of(*values: Any) -> Kind:
  """One of these, of the same type: true is not 1."""
  return Kind(' or '.join(json.dumps(value) for value in values),
              lambda x: any(type(x) is type(value) and x == value for value in values))


def either(*kinds: Kind) -> Kind:
  """Of one of these kinds."""
  return Kind(' or '.join(kind.expected for kind in kinds),
              lambda x: any(kind.fits(x) for kind in kinds))


ANY = Kind('any value', lambda x: True)
FLAG = Kind('true or false', lambda x: type(x) is bool)
TEXT = Kind('text', lambda x: isinstance(x, str))
OBJECT = Kind('an object', lambda x: isinstance(x, dict))
LIST = Kind('a list', lambda x: isinstance(x, list))
NULL = one_of(None)


def check(value: Any, kind: Kind, name: str, where: str | os.PathLike, *, remedy: str = REMEDY,
          error: type[ValueError] = Malformed) -> Any:
  """The value, if it is of the kind.

  Args:
    value: as it was read.
    kind: what it has to be.
    name: of the value, for the error: 'hidden_size'.
    where: the file, perhaps with a line.
    remedy: what to do.
    error: its class.

  Raises:
    error: it is of another kind.
  """
  if kind.fits(value):
    return value
  raise error(f'expected {name} to be {kind.expected} in {where}, found {shown(value)}; {remedy}')


def shown(value: Any) -> str:
  """A value for an error: its beginning."""
  return f'{value!r:.60}'


def parse(
  content: bytes | str, where: str | os.PathLike, kind: Kind = ANY, *, remedy: str = REMEDY,
  error: type[ValueError] = Malformed, strict: bool = True,
) -> Any:
  """The JSON in a text.

  Args:
    content: UTF-8, or text.
    where: for the error: the file, perhaps with a line.
    kind: of the whole.
    remedy, error: as for `check`.
    strict: line breaks and tabs within strings are escaped.

  Raises:
    error: no UTF-8, no JSON, nested deeper than MOST_DEPTH, half of a character (a lone surrogate),
      or another kind of value.
  """
  try:
    text = content.decode('utf-8') if isinstance(content, bytes) else content
    value = json.loads(text, strict=strict)
    if text.count('[') + text.count('{') > MOST_DEPTH:
      _check_depth(value)
    if _HALF.search(text):
      json.dumps(value, ensure_ascii=False).encode('utf-8')
  except (ValueError, TypeError, RecursionError) as reason:
    why = f'lists in lists, deeper than {MOST_DEPTH}' if isinstance(
      reason, RecursionError) else f'{content[:60]!r} ({reason})'
    raise error(f'expected {_wanted(kind)} in {where}, found {why}; {remedy}') from reason
  if not kind.fits(value):
    raise error(f'expected {_wanted(kind)} in {where}, found {shown(value)}; {remedy}')
  return value


def _wanted(kind: Kind) -> str:
  return {ANY.expected: 'JSON', OBJECT.expected: 'a JSON object'}.get(
    kind.expected, f'JSON that is {kind.expected}')


def read(
  file: str | os.PathLike, kind: Kind = ANY, *, remedy: str = REMEDY,
  error: type[ValueError] = Malformed,
) -> Any:
  """The JSON in a file; arguments as for `parse`.

  Raises:
    error: as for `parse`, or the file is larger than MOST_BYTES.
    OSError: it cannot be read.
  """
  return parse(read_bytes(file, remedy=remedy, error=error), file, kind, remedy=remedy, error=error)


def read_bytes(
  file: str | os.PathLike, *, most: int = MOST_BYTES, remedy: str = REMEDY,
  error: type[ValueError] = Malformed,
) -> bytes:
  """A whole file, if it is not larger than a file of its kind can be; raises as `read`."""
  try:
    with epath.Path(file).open('rb') as stream:
      content = stream.read(most + 1)
  except OSError as reason:
    raise type(reason)(f'expected a file {file}, found {reason}; {remedy}') from reason
  if len(content) > most:
    raise error(f'expected at most {most:,} bytes in {file}, found more; {remedy}')
  return content


def _check_depth(value: Any) -> None:
  level = [value]
  for _ in range(MOST_DEPTH):
    level = [child for node in level
             for child in (node.values() if isinstance(node, dict) else node)
             if isinstance(child, (dict, list))] if isinstance(value, (dict, list)) else []
    if not level:
      return
  raise RecursionError


class Fields:
  """The fields of an object, asked for one by one.

  Args:
    values: the object.
    where: the file, for errors.
    remedy, error: as for `check`.
  """

  def __init__(self, values: Mapping[str, Any], where: str | os.PathLike, *, remedy: str = REMEDY,
               error: type[ValueError] = Malformed):
    self.where, self._values = where, dict(values)
    self._remedy, self._error = remedy, error

  def get(self, name: str, kind: Kind, default: Any = None) -> Any:
    """The field; the default where it is absent or null.

    Raises:
      the class of errors: it is of another kind.
    """
    value = self._values.get(name)
    return default if value is None else self.check(name, value, kind)

  def __iter__(self) -> Iterator[str]:
    return iter(self._values)

  def has(self, name: str) -> bool:
    """Whether the field is there, be it null."""
    return name in self._values

  def need(self, name: str, kind: Kind) -> Any:
    """The field; raises as `get`, and where it is absent or null."""
    value = self._values.get(name)
    if value is None:
      raise self._error(
        f'expected {name!r}, {kind.expected}, in {self.where}, found none; {self._remedy}')
    return self.check(name, value, kind)

  def check(self, name: str, value: Any, kind: Kind) -> Any:
    """A value of these fields, if it is of the kind; raises as `get`."""
    return check(value, kind, name, self.where, remedy=self._remedy, error=self._error)
