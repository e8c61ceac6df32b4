"""Rows to batches, on grain: shuffled, bucketed by length, sharded per host, resumable to the bit.

A batch is a dict of numpy arrays:
  document, demonstration  tokens i32[B, T], mask bool[B, T], loss_mask bool[B, T]    right-padded
  preference               chosen, chosen_mask, rejected, rejected_mask, margin f32[B] right-padded
  labelled                 tokens, mask, label f32[B]                                  right-padded
    (both with prompt_tokens i32[B]: where the response starts)
  prompt                   tokens, mask                                                LEFT-padded
and in all: weight f32[B] (0 for filler rows) and index i32[B] (the example's position in its list).
Masks come from lengths, so the id under the padding (`pad_id`) is never looked at.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from perl.data.encoding import Row, encode
from perl.data.examples import KINDS

__all__ = ['Batches', 'batches', 'encode', 'evaluation_batches']

_TOKEN_FIELDS = dict.fromkeys(KINDS, ('tokens',)) | {'preference': ('chosen', 'rejected')}
_ENDLESS = 2**48  # batches; a stream without an end, as far as anybody can see


def _length(row: Row, kind: str) -> int:
  return max(len(row[name]) for name in _TOKEN_FIELDS[kind])


def _bucketed(rows: Sequence[Row], kind: str,
              buckets: Sequence[int]) -> tuple[tuple[int, ...], np.ndarray]:
  """(bucket lengths, the bucket number of every row): the shortest bucket that holds the row."""
  if kind not in KINDS:
    raise ValueError(f'batches: expected a kind among {", ".join(KINDS)}; found {kind!r}; '
                     'ask for one of these')
  if not rows:
    raise ValueError('batches: expected rows; found none; check the split and the filter counts')
  lengths = np.array([_length(row, kind) for row in rows])
  edges = tuple(sorted(set(buckets))) or (int(lengths.max()),)
  if lengths.max() > edges[-1]:
    raise ValueError(f'batches: expected rows of at most {edges[-1]} tokens (the longest bucket); '
                     f'found one of {lengths.max()}; add a bucket, or encode with smaller limits')
  return edges, np.searchsorted(edges, lengths)


def _pad(sequences: Sequence[np.ndarray], length: int, fill: Any, left: bool) -> np.ndarray:
  """[B, length] with each sequence at its left end, or at its right end if `left` is padded."""
  result = np.full((len(sequences), length), fill, sequences[0].dtype)
  for row, sequence in zip(result, sequences):
    if left:
      row[length - len(sequence):] = sequence
    else:
      row[:len(sequence)] = sequence
  return result


def _collate(rows: Sequence[Row], kind: str, length: int, pad_id: int) -> dict[str, np.ndarray]:
  """One batch of the given rows, padded to `length`."""
  left = kind == 'prompt'
  batch = {}
  for name in _TOKEN_FIELDS[kind]:
    mask_name = 'mask' if name == 'tokens' else f'{name}_mask'
    batch[name] = _pad([row[name] for row in rows], length, pad_id, left)
    batch[mask_name] = _pad([np.ones(len(row[name]), bool) for row in rows], length, False, left)
  if 'loss_mask' in rows[0]:
    batch['loss_mask'] = _pad([row['loss_mask'] for row in rows], length, False, left)
  for name, dtype in (('margin', np.float32), ('label', np.float32), ('prompt_tokens', np.int32)):
    if name in rows[0]:
      batch[name] = np.array([row[name] for row in rows], dtype)
  batch['weight'] = np.ones(len(rows), np.float32)
  batch['index'] = np.array([row['index'] for row in rows], np.int32)
  return batch


class _Plan:
  """Which rows make batch number n, for all hosts alike: a function of seed and n alone.

  Every epoch shuffles the rows anew and fills each bucket's batches; what is left over in a bucket
  goes up into the next one, so that an epoch has floor(rows / batch_size) batches whatever the
  buckets, and fewer than batch_size rows sit it out.
  """

  def __init__(self, edges: tuple[int, ...], numbers: np.ndarray, batch_size: int, seed: int):
    self._edges, self._numbers = edges, numbers
    self._batch_size, self._seed = batch_size, seed
    self.batches_per_epoch = len(numbers) // batch_size
    # Threads of the iterator work on at most two epochs at once.
    self._epoch = functools.lru_cache(maxsize=2)(self._plan_epoch)

  def __call__(self, batch: int) -> tuple[int, np.ndarray]:
    """(length T, the row numbers i64[batch_size]) of batch number `batch`, counted from 0."""
    epoch, position = divmod(int(batch), self.batches_per_epoch)
    return self._epoch(epoch)[position]

  def _plan_epoch(self, epoch: int) -> list[tuple[int, np.ndarray]]:
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([self._seed, epoch])))
    order = rng.permutation(len(self._numbers))
    plan, left_over = [], order[:0]
    for number, length in enumerate(self._edges):
      rows = np.concatenate([left_over, order[self._numbers[order] == number]])
      whole = len(rows) - len(rows) % self._batch_size
      plan += [(length, chunk) for chunk in rows[:whole].reshape(-1, self._batch_size)]
      left_over = rows[whole:]
    return [plan[i] for i in rng.permutation(len(plan))]


class Batches:
  """An iterator of batches whose position can be saved.

  Attributes:
    batches_per_epoch: how many batches one pass over the rows gives.
  """

  def __init__(self, dataset: Any, batches_per_epoch: int, identity: dict[str, Any]):
    self._iterator = iter(dataset)
    self._identity = identity
    self.batches_per_epoch = batches_per_epoch

  def __iter__(self) -> 'Batches':
    return self

  def __next__(self) -> dict[str, np.ndarray]:
    return next(self._iterator)

  def get_state(self) -> dict[str, Any]:
    """What `set_state` needs to go on from here; JSON-able."""
    return {'iterator': dict(self._iterator.get_state()), 'identity': dict(self._identity)}

  def set_state(self, state: dict[str, Any]) -> None:
    """Goes to a saved position; the number of hosts may have changed meanwhile.

    Raises:
      ValueError: the state is of a stream with other rows, batch size, buckets or seed.
    """
    found = state['identity']
    wrong = [name for name, value in self._identity.items() if found.get(name) != value]
    if wrong:
      raise ValueError('batches: ' + '; '.join(
        f'expected {name}={self._identity[name]!r}, found {found.get(name)!r} in the saved state'
        for name in wrong) + '; resume with the config and data of the saved run')
    self._iterator.set_state(dict(state['iterator']))


def batches(rows: Sequence[Row], *, kind: str, batch_size: int, seed: int,
            buckets: Sequence[int] = (), shard_index: int = 0, shard_count: int = 1,
            epochs: int | None = None, pad_id: int = 0) -> Batches:
  """Training batches: shuffled anew each epoch, each from one length bucket.

  Args:
    rows: what `encode` gave; every host holds all of them.
    batch_size: rows of a global batch. Host i of n yields rows i::n of each, so hosts see the same
      lengths and the same number of batches, and together exactly the unsharded stream.
    buckets: token lengths T; () for one bucket as long as the longest row.
    epochs: how many passes; None never ends.
    pad_id: the id under the padding.

  Raises:
    ValueError: no rows, fewer rows than a batch, a row longer than the last bucket, or a batch
      size that the hosts cannot share equally.
  """
  import grain  # here: seconds to import, and not on every machine

  edges, numbers = _bucketed(rows, kind, buckets)
  if batch_size < 1 or batch_size % shard_count or not 0 <= shard_index < shard_count:
    raise ValueError(f'batches: expected batch_size divisible by the number of hosts, and a host '
                     f'among them; found batch_size={batch_size}, shard_index={shard_index}, '
                     f'shard_count={shard_count}; change batch_size')
  plan = _Plan(edges, numbers, batch_size, seed)
  if not plan.batches_per_epoch:
    raise ValueError(f'batches: expected at least batch_size={batch_size} rows; found {len(rows)}; '
                     'lower batch_size or add data')

  def batch(number: int) -> dict[str, np.ndarray]:
    length, chosen = plan(number)
    return _collate([rows[i] for i in chosen[shard_index::shard_count]], kind, length, pad_id)

  total = _ENDLESS if epochs is None else epochs * plan.batches_per_epoch
  dataset = grain.MapDataset.range(total).map(batch).to_iter_dataset(
    grain.ReadOptions(num_threads=1, prefetch_buffer_size=2))
  identity = {'kind': kind, 'rows': len(rows), 'tokens': _total_tokens(rows, kind),
              'batch_size': batch_size, 'seed': seed, 'buckets': list(edges)}
  return Batches(dataset, plan.batches_per_epoch, identity)


def _total_tokens(rows: Sequence[Row], kind: str) -> int:
  return sum(len(row[name]) for row in rows for name in _TOKEN_FIELDS[kind])


def evaluation_batches(rows: Sequence[Row], *, kind: str, batch_size: int,
                       buckets: Sequence[int] = (), pad_id: int = 0) -> list[dict[str, np.ndarray]]:
  """All rows once, in order (within a bucket), in batches of equal size.

  The last batch of a bucket is filled with copies of its last row that have weight 0 and an empty
  loss_mask: whole rows, so that nothing computed from them is NaN.

  Raises:
    ValueError: no rows, or a row longer than the last bucket.
  """
  edges, numbers = _bucketed(rows, kind, buckets)
  result = []
  for number, length in enumerate(edges):
    bucket = [row for row, n in zip(rows, numbers) if n == number]
    for start in range(0, len(bucket), batch_size):
      real = bucket[start:start + batch_size]
      filler = [real[-1]] * (batch_size - len(real))
      batch = _collate(real + filler, kind, length, pad_id)
      batch['weight'][len(real):] = 0.0
      if 'loss_mask' in batch:
        batch['loss_mask'][len(real):] = False
      result.append(batch)
  return result
