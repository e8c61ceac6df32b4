"""Rows that stand in two splits: a result on them is none on data that nobody has learnt from."""

import itertools
import logging
from collections.abc import Iterable, Iterator

from ml_collections import ConfigDict

from perl import paths
from perl.data import examples
from perl.data.examples import SPLITS, Example
from perl.jobs import _data

LOOKED_AT_BYTES = 200 * 2**20
"""Files of more bytes are compared only where data.overlap=refuse asks for it: it takes a while."""


def check(config: ConfigDict, needed: Iterable[tuple[str, str]]) -> Iterator[str]:
  """Counts the rows of the user's files that stand in two splits, and says so in the log.

  Splits of other datasets are made apart, by groups; data.overlap=refuse looks at them too.

  Args:
    config: with data.overlap.
    needed: (kind, split) of what is to be read; of its kinds all splits are looked at.

  Yields:
    what is wrong: rows in two splits, where data.overlap=refuse; a row of what is needed that
    cannot be read, wherever it stands.
  """
  refuses = config.data.overlap == 'refuse'
  if not refuses and not (config.data.name == 'local' and few(config.data.mirror)):
    return
  needed = set(needed)
  for kind in sorted({kind for kind, _ in needed}):
    rows: dict[str, list[Example]] = {}
    for split in SPLITS:
      try:
        rows[split] = _data.load(config.data, split, kind)
      except (ValueError, OSError) as error:
        if (kind, split) in needed:
          yield f'data: {error}'
    for text in _said(kind, rows):
      if refuses:
        yield f'{text}; remove them, or set data.overlap=say'
      else:
        logging.warning('%s; data.overlap=refuse refuses them', text)


def few(mirror: str) -> bool:
  """Whether the user's files are of few enough bytes to be read once more."""
  small = sum(size for _, size, *_ in paths.stamps(mirror)) <= LOOKED_AT_BYTES
  if not small:
    logging.info('data: splits of more than %d MiB are compared with data.overlap=refuse alone',
                 LOOKED_AT_BYTES >> 20)
  return small


def _said(kind: str, rows: dict[str, list[Example]]) -> Iterator[str]:
  known = {split: {hash(examples.row(e)) for e in rows[split]} for split in rows}
  for one, other in itertools.combinations(rows, 2):
    both = [e for e in rows[other] if hash(examples.row(e)) in known[one]]
    if both:
      where = both[0].meta.get('source', repr(getattr(both[0], both[0].TEXTS[0]))[:60])
      yield (f'data: expected no {kind} of {other} in {one}, found {len(both)} of '
             f'{len(rows[other])} (the first: {where})')
