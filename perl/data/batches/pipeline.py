"""Rows to batches, on grain: shuffled, bucketed by length, sharded per host, resumable to the bit.

A batch is a dict of numpy arrays:
  document, demonstration  tokens i32[B, T], mask bool[B, T], loss_mask bool[B, T]    right-padded
  preference               chosen, chosen_mask, rejected, rejected_mask, margin f32[B] right-padded
  labelled                 tokens, mask, label f32[B]                                  right-padded
  rated                    tokens, mask, rating f32[B]                                 right-padded
  ranked                   tokens i32[B, K, T], mask, present bool[B, K], best first   right-padded
    (all four with prompt_tokens i32[B]: where the response starts)
  prompt                   tokens, mask                                                LEFT-padded
and in all: weight f32[B] (0 for filler rows) and index i32[B] (the example's position in its list).
Masks come from lengths, so the id under the padding (`pad_id`) is never looked at; loss_mask is
False at the first token of a row, which nothing predicts.

packed (document, demonstration): rows lie one after another in rows of the last bucket's length T.
  tokens, mask, loss_mask, and segments i32[B, T]: 1, 2, ... for the rows of a pack, 0 for padding
  (mask is segments > 0). index is i32[B, T], the example of each token, -1 for padding.
shared_prompt (preference): prompt, chosen and rejected response in one row, the prompt once.
  tokens, mask [B, P + 2 R]: columns :P hold the prompt, LEFT-padded, P:P + R the chosen response
  and P + R: the rejected one, right-padded; chosen_mask, rejected_mask bool[B, R] are those columns
  of mask (so R is their width, and P the rest), margin, and prompt_tokens i32[B] in place of
  chosen and rejected. P and R are a bucket's own, multiples of 16.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from perl.data.batches import collate
from perl.data.batches.encoding import Row, encode
from perl.data.batches.packing import PackedPlan, auto_buckets, epoch_rng, pack
from perl.data.examples import KINDS

__all__ = ['Batches', 'auto_buckets', 'batches', 'encode', 'evaluation_batches', 'lengths']

_ENDLESS = 2**48  # batches; a stream without an end, as far as anybody can see


def lengths(rows: Sequence[Row], kind: str) -> np.ndarray:
  """i64[rows]: tokens of each row, of the longest sequence of a pair or ranking."""
  return np.array([max(map(len, collate.sequences(row, kind))) for row in rows])


def _check(rows: Sequence[Row], kind: str, packed: bool, shared_prompt: bool) -> None:
  if kind not in KINDS:
    raise ValueError(f'batches: expected a kind among {", ".join(KINDS)}; found {kind!r}; '
                     'ask for one of these')
  if not rows:
    raise ValueError('batches: expected rows; found none; check the split and the filter counts')
  for name, wanted, kinds in (('packed', packed, ('document', 'demonstration')),
                              ('shared_prompt', shared_prompt, ('preference',))):
    if wanted and kind not in kinds:
      raise ValueError(f'batches: expected kind {" or ".join(kinds)} for {name}; found {kind!r}; '
                       f'set {name}=False')


def _bucketed(rows: Sequence[Row], kind: str,
              buckets: Sequence[int]) -> tuple[tuple[int, ...], np.ndarray]:
  """(bucket lengths, the bucket number of every row): the shortest bucket that holds the row."""
  each = lengths(rows, kind)
  edges = tuple(sorted(set(buckets))) or (int(each.max()),)
  if each.max() > edges[-1]:
    raise ValueError(f'batches: expected rows of at most {edges[-1]} tokens (the longest bucket); '
                     f'found one of {each.max()}; add a bucket, or encode with smaller limits')
  return edges, np.searchsorted(edges, each)


def _collator(rows: Sequence[Row], kind: str, edges: tuple[int, ...], numbers: np.ndarray,
              pad_id: int, packed: bool, shared_prompt: bool) -> Callable[..., dict]:
  """(T, row numbers, or packs of them) -> batch, in the layout that is asked for."""
  if packed:
    return lambda length, packs: collate.packed(
      [[rows[i] for i in pack] for pack in packs], length, pad_id)
  if shared_prompt:
    sizes = collate.pair_lengths(rows, edges, numbers)
    return lambda length, chosen: collate.pairs([rows[i] for i in chosen], *sizes[length], pad_id)
  return lambda length, chosen: collate.padded([rows[i] for i in chosen], kind, length, pad_id)


class _Plan:
  """Which rows make batch number n, for all hosts alike: a function of seed and n alone.

  Every epoch shuffles the rows anew and fills each bucket's batches; what is left over in a bucket
  goes up into the next one, so that an epoch has floor(rows / batch_size) batches whatever the
  buckets, and fewer than batch_size rows sit it out.
  """

  def __init__(self, edges: tuple[int, ...], numbers: np.ndarray, batch_size: int, seed: int):
    self._edges, self._numbers = edges, numbers
    self._batch_size, self._seed = batch_size, seed
    self._per_epoch = len(numbers) // batch_size
    # Threads of the iterator work on at most two epochs at once.
    self._epoch = functools.lru_cache(maxsize=2)(self._plan_epoch)

  def batches_in(self, epochs: int) -> int:
    """How many batches so many epochs have."""
    return epochs * self._per_epoch

  def __call__(self, batch: int) -> tuple[int, np.ndarray]:
    """(length T, the row numbers i64[batch_size]) of batch number `batch`, counted from 0."""
    epoch, position = divmod(int(batch), self._per_epoch)
    return self._epoch(epoch)[position]

  def _plan_epoch(self, epoch: int) -> list[tuple[int, np.ndarray]]:
    rng = epoch_rng(self._seed, epoch)
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
    batches_per_epoch: how many whole batches one pass over the rows gives.
  """

  def __init__(self, dataset: Any, batches_per_epoch: int, identity: dict[str, Any],
               shapes: Callable[[int], list[dict[str, np.ndarray]]]):
    self._iterator = iter(dataset)
    self._identity = identity
    self._shapes = shapes
    self.batches_per_epoch = batches_per_epoch

  def shapes(self, count: int) -> list[dict[str, np.ndarray]]:
    """A batch of each shape that the first `count` batches have, in the order of their coming."""
    return self._shapes(count)

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
      ValueError: the state is of a stream with other rows, batch size, buckets, seed or layout.
    """
    # False: a layout that a state does not name was not there yet when it was saved.
    saved = {name: state['identity'].get(name, False) for name in self._identity}
    wrong = [name for name, value in self._identity.items() if saved[name] != value]
    if wrong:
      raise ValueError('batches: ' + '; '.join(
        f'expected {name}={self._identity[name]!r}, found {saved[name]!r} in the saved state'
        for name in wrong) + '; resume with the config and data of the saved run')
    self._iterator.set_state(dict(state['iterator']))


def batches(rows: Sequence[Row], *, kind: str, batch_size: int, seed: int,
            buckets: Sequence[int] = (), shard_index: int = 0, shard_count: int = 1,
            epochs: int | None = None, pad_id: int = 0, packed: bool = False,
            shared_prompt: bool = False) -> Batches:
  """Training batches: shuffled anew each epoch, each from one length bucket or packed.

  Args:
    rows: what `encode` gave; every host holds all of them.
    batch_size: rows of a global batch. Host i of n yields rows i::n of each, so hosts see the same
      lengths and the same number of batches, and together exactly the unsharded stream.
    buckets: token lengths T; () for one bucket as long as the longest row.
    epochs: how many passes; None never ends.
    pad_id: the id under the padding.
    packed: batch_size packs of rows, each as long as the last bucket. Every row is in every epoch
      once: a batch may end one and begin the next (see packing.PackedPlan).
    shared_prompt: a pair is one row that has its prompt once.

  Raises:
    ValueError: no rows, fewer rows (or packs) than a batch, a row longer than the last bucket, a
      batch size that the hosts cannot share equally, a kind that has no such layout, or a pair
      without a shared prompt.
  """
  import grain  # here: seconds to import, and not on every machine

  _check(rows, kind, packed, shared_prompt)
  edges, numbers = _bucketed(rows, kind, buckets)
  if batch_size < 1 or batch_size % shard_count or not 0 <= shard_index < shard_count:
    raise ValueError(f'batches: expected batch_size divisible by the number of hosts, and a host '
                     f'among them; found batch_size={batch_size}, shard_index={shard_index}, '
                     f'shard_count={shard_count}; change batch_size')
  make = _collator(rows, kind, edges, numbers, pad_id, packed, shared_prompt)
  if packed:
    edges = edges[-1:]
    plan = PackedPlan(lengths(rows, kind), edges[-1], batch_size, seed)
  else:
    plan = _Plan(edges, numbers, batch_size, seed)
  if not plan.batches_in(1):
    size = f'{len(rows)} in {plan.packs_per_epoch} packs' if packed else len(rows)
    raise ValueError(f'batches: expected at least batch_size={batch_size} '
                     f'{"packs of rows" if packed else "rows"}; found {size}; '
                     'lower batch_size or add data')

  def batch(number: int) -> dict[str, np.ndarray]:
    length, chosen = plan(number)
    return make(length, chosen[shard_index::shard_count])

  def shapes(count: int) -> list[dict[str, np.ndarray]]:
    first: dict[int, int] = {}
    for number in range(count):
      first.setdefault(plan(number)[0], number)
      if len(first) == len(edges):
        break
    return [batch(number) for number in first.values()]

  total = _ENDLESS if epochs is None else plan.batches_in(epochs)
  dataset = grain.MapDataset.range(total).map(batch).to_iter_dataset(
    grain.ReadOptions(num_threads=1, prefetch_buffer_size=2))
  identity = {'kind': kind, 'rows': len(rows), 'tokens': _total_tokens(rows, kind),
              'batch_size': batch_size, 'seed': seed, 'buckets': list(edges), 'packed': packed,
              'shared_prompt': shared_prompt}
  return Batches(dataset, plan.batches_in(1), identity, shapes)


def _total_tokens(rows: Sequence[Row], kind: str) -> int:
  return sum(len(tokens) for row in rows for tokens in collate.sequences(row, kind))


def evaluation_batches(rows: Sequence[Row], *, kind: str, batch_size: int,
                       buckets: Sequence[int] = (), pad_id: int = 0, packed: bool = False,
                       shared_prompt: bool = False) -> list[dict[str, np.ndarray]]:
  """All rows once, in order (within a bucket; packs have an order of their own), in equal batches.

  The last batch of a bucket is filled with copies of its last row that have weight 0 and an empty
  loss_mask: whole rows (or packs), so that nothing computed from them is NaN.

  Args:
    rows, kind, batch_size, buckets, pad_id, packed, shared_prompt: as for `batches`.

  Raises:
    ValueError: no rows, a row longer than the last bucket, a kind that has no such layout, or a
      pair without a shared prompt.
  """
  _check(rows, kind, packed, shared_prompt)
  edges, numbers = _bucketed(rows, kind, buckets)
  make = _collator(rows, kind, edges, numbers, pad_id, packed, shared_prompt)
  if packed:
    contents = {edges[-1]: pack(lengths(rows, kind), edges[-1])}
  else:
    contents = {edge: np.flatnonzero(numbers == n).tolist() for n, edge in enumerate(edges)}
  result = []
  for length, entries in contents.items():
    for start in range(0, len(entries), batch_size):
      real = entries[start:start + batch_size]
      batch = make(length, real + real[-1:] * (batch_size - len(real)))
      batch['weight'][len(real):] = 0.0
      if 'loss_mask' in batch:
        batch['loss_mask'][len(real):] = False
      result.append(batch)
  return result
