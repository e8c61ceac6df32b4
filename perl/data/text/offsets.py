"""Ranges of characters (begin, end) that the tokens of a text cover, in the order of the tokens.

Tokens that share a character have its range each; one that stands for nothing (the space that some
vocabularies put before a text) has an empty range.
"""

import bisect
from collections.abc import Sequence

Offsets = list[tuple[int, int]]


def before(offsets: Sequence[tuple[int, int]], seam: int) -> int:
  """How many leading tokens lie before character `seam`; the next begins there, or covers it."""
  return bisect.bisect_left(
    offsets, True, key=lambda span: span[0] >= seam or span[1] > seam)


def beginning_before(offsets: Sequence[tuple[int, int]], seam: int) -> int:
  """How many leading tokens begin before character `seam`."""
  return bisect.bisect_left(offsets, True, key=lambda span: span[0] >= seam)


def trimmed(text: str, start: int = 0) -> tuple[int, int]:
  """The range of a text that begins at `start`, without the white space around it."""
  inner = text.strip() and text.lstrip()  # of white space alone all is kept
  begin = start + len(text) - len(inner or text)
  return begin, begin + len(inner.rstrip() or text)
