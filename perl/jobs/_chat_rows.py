"""Rows that a chat template cannot write, found before the first stage.

What a template refuses goes by the roles of a chat and by what its messages have, rarely by words:
of all rows with the same roles one is written.
"""

from collections.abc import Iterable, Iterator

from perl.data.examples import Example
from perl.data.text import chat
from perl.jobs._data import Data
from perl.jobs._overlap import few

NAMED = 3
"""So many rows are named; a template that refuses one order of roles often refuses several."""


def check(data: Data, pairs: Iterable[tuple[str, str]], *, whole: bool) -> Iterator[str]:
  """What a stage reads, a row of every order of roles, through the template and the tokenizer.

  Args:
    data: of a stage, with its tokenizer and template.
    pairs: (kind, split) of what is read.
    whole: whether documents are learnt as whole chats.

  Yields:
    what is wrong, with the number of rows that have the roles of the one named; of files too large
    to be read twice (_overlap.few) the first row alone is looked at.
  """
  mirror = data.run.config.data.mirror
  for kind, split in pairs:
    if mirror and not few(mirror):
      rows = [data.first(split, kind)]
    else:
      rows = data.read(split, kind)
    named = 0
    for row, count in _by_roles(rows):
      try:
        if whole and kind == 'document':
          chat.encode_document(data.tokenizer, data.template, row)
        else:
          chat.apply(data.template, row)
      except ValueError as error:
        named += 1
        if named <= NAMED:
          yield f'{error} ({kind}, {split}: {count} of {len(rows)} rows have these roles)'


def _by_roles(rows: list[Example]) -> Iterator[tuple[Example, int]]:
  """(the first row, how many there are) of each order of roles."""
  rows_of: dict[tuple, list[Example]] = {}
  for row in rows:
    rows_of.setdefault(chat.outline(row), []).append(row)
  return ((same[0], len(same)) for same in rows_of.values())
