"""How rows share a rectangle of tokens: packs of rows, and the edges of length buckets.

A pack is a list of row numbers that lie one after another in one row of `capacity` tokens. Packs
are best-fit-decreasing (Johnson 1974): from the longest row to the shortest, each goes into the
fullest pack that still has room for it. That is at most 11/9 of the least number of packs (+ 1),
and in practice, where short rows fill what long ones leave, nearly all of it is tokens.
"""

import bisect
import functools
from collections.abc import Sequence

import numpy as np

_FAR = 2**62  # more tokens than any padding


def epoch_rng(seed: int, epoch: int) -> np.random.Generator:
  """The randomness of one epoch, counted from 0: a function of seed and epoch alone."""
  return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, epoch])))


def pack(lengths: Sequence[int], capacity: int, *,
         order: Sequence[int] | None = None) -> list[list[int]]:
  """Which rows go together: every row in one pack, no pack above `capacity` tokens.

  How many packs there are, and of which lengths, does not depend on the order; which of the rows of
  one length goes where depends on nothing else.

  Args:
    lengths: tokens of each row, at least 1.
    capacity: tokens of a pack.
    order: row numbers, each once: rows of equal length are taken in this order. None is as they
      lie; a shuffled one gives rows other company.

  Returns:
    packs of row numbers, each from its longest row to its shortest.

  Raises:
    ValueError: a row that is empty or longer than the capacity.
  """
  lengths = np.asarray(lengths, np.int64)
  wrong = np.flatnonzero((lengths < 1) | (lengths > capacity))
  if len(wrong):
    raise ValueError(
      f'pack: expected rows of 1 to {capacity} tokens (the capacity); found {len(wrong)} others, '
      f'the first row {wrong[0]} of {lengths[wrong[0]]}; raise the capacity (the last bucket), or '
      'encode with smaller limits')
  rows = np.arange(len(lengths)) if order is None else np.asarray(order, np.int64)
  rows = rows[np.argsort(-lengths[rows], kind='stable')]
  return _best_fit(rows.tolist(), lengths[rows].tolist(), capacity)


def _best_fit(rows: list[int], lengths: list[int], capacity: int) -> list[list[int]]:
  """Packs of rows that come from the longest to the shortest.

  A row costs a bisection among the distinct amounts of room that open packs have.
  """
  packs: list[list[int]] = []
  rooms: list[int] = []  # rising, each once: what open packs have left
  having: dict[int, list[int]] = {}  # room -> numbers of the packs that have it
  for row, length in zip(rows, lengths):
    at = bisect.bisect_left(rooms, length)
    if at == len(rooms):
      number, room = len(packs), capacity
      packs.append([row])
    else:
      room = rooms[at]
      number = having[room].pop()
      packs[number].append(row)
      if not having[room]:
        del rooms[at], having[room]
    room -= length
    if room and room not in having:
      bisect.insort(rooms, room)
    if room:
      having.setdefault(room, []).append(number)
  return packs


class PackedPlan:
  """Which packs make batch number n, for all hosts alike: a function of seed and n alone.

  Every epoch shuffles the rows, packs them anew (rows of one length change places) and shuffles the
  packs. Their number K is the same in all epochs, so the epochs laid end to end are one stream in
  which pack number k is of epoch k // K, and batch number n is the packs n B to (n + 1) B - 1. No
  row sits an epoch out: a batch that an epoch cannot fill goes on with packs of the next.

  Attributes:
    packs_per_epoch: K.
  """

  def __init__(self, lengths: Sequence[int], capacity: int, batch_size: int, seed: int):
    self._lengths, self._capacity = np.asarray(lengths, np.int64), capacity
    self._batch_size, self._seed = batch_size, seed
    self.packs_per_epoch = len(pack(self._lengths, capacity))
    # Threads of the iterator work on at most two epochs at once.
    self._epoch = functools.lru_cache(maxsize=2)(self._plan_epoch)

  def batches_in(self, epochs: int) -> int:
    """Whole batches that so many epochs fill."""
    return epochs * self.packs_per_epoch // self._batch_size

  def __call__(self, batch: int) -> tuple[int, list[list[int]]]:
    """(capacity, batch_size packs of row numbers) of batch number `batch`, counted from 0."""
    places = range(int(batch) * self._batch_size, (int(batch) + 1) * self._batch_size)
    numbers = [divmod(place, self.packs_per_epoch) for place in places]
    return self._capacity, [self._epoch(epoch)[position] for epoch, position in numbers]

  def _plan_epoch(self, epoch: int) -> list[list[int]]:
    rng = epoch_rng(self._seed, epoch)
    packs = pack(self._lengths, self._capacity, order=rng.permutation(len(self._lengths)))
    return [packs[i] for i in rng.permutation(len(packs))]


def auto_buckets(lengths: Sequence[int], count: int = 4, multiple: int = 16) -> tuple[int, ...]:
  """The edges of at most `count` buckets that need the least padding, each row in its shortest.

  A dynamic programme over the rounded lengths e_1 < ... < e_m, which n_1 ... n_m rows have:

    cost(k buckets, e_1 to e_j) = min_i cost(k - 1 buckets, e_1 to e_i) + e_j (n_i+1 + ... + n_j)

  Args:
    lengths: tokens of each row, at least 1.
    count: buckets at most; each is a shape to compile.
    multiple: what every edge is a multiple of. The last may so lie above the longest row: where a
      model's context is that short, replace it by the limit.

  Returns:
    the edges, rising; the last holds the longest row.

  Raises:
    ValueError: no lengths, or a count, multiple or length below 1.
  """
  lengths = np.asarray(lengths, np.int64)
  if not lengths.size or min(count, multiple, lengths.min()) < 1:
    raise ValueError(
      'auto_buckets: expected lengths, a count and a multiple of at least 1; found '
      f'{lengths.size} lengths from {min(lengths, default=None)}, count={count}, '
      f'multiple={multiple}; raise them, and check that there are rows')
  edges, rows = np.unique(-(-lengths // multiple) * multiple, return_counts=True)
  below = np.concatenate([[0], np.cumsum(rows)])
  costs, cuts = np.full(len(edges) + 1, _FAR), []
  costs[0] = 0
  for _ in range(min(count, len(edges))):
    costs, cut = _one_more_bucket(costs, edges, below)
    cuts.append(cut)
  buckets, end = [], len(edges)
  for cut in reversed(cuts):
    buckets.append(int(edges[end - 1]))
    end = cut[end]
  return tuple(reversed(buckets))


def _one_more_bucket(costs: np.ndarray, edges: np.ndarray,
                     below: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """(costs i64[m + 1] with a bucket more, where that bucket begins): `auto_buckets`' recursion."""
  more, cut = np.full_like(costs, _FAR), np.zeros(len(costs), np.int64)
  for j in range(1, len(costs)):
    totals = costs[:j] + edges[j - 1] * (below[j] - below[:j])
    cut[j] = totals.argmin()
    more[j] = totals[cut[j]]
  return more, cut
