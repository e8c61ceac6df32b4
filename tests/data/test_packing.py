"""Packs: every row once and whole, nearly no padding, the same on any host and after a stop."""

import itertools
import json
import sys

import numpy as np
import pytest
import tiny

from perl.data.batches import packing, pipeline

CAPACITY = 32


def lognormal(count, median=150, longest=1024):
  """Lengths as those of instruction data: many short rows, a long tail."""
  drawn = np.random.default_rng(0).lognormal(np.log(median), 0.8, count)
  return np.clip(drawn.astype(int), 2, longest)


def language_rows(count=90):
  """Rows whose tokens are all their own: row i has i + 1, and every other row opens a response."""
  lengths = np.random.default_rng(0).integers(1, CAPACITY // 2, count)
  return [{'index': i, 'tokens': np.full(n, i + 1, np.int32),
           'loss_mask': np.arange(n) >= (n // 2 if i % 2 else 0)} for i, n in enumerate(lengths)]


def stream(rows=None, **options):
  defaults = {'kind': 'demonstration', 'batch_size': 4, 'seed': 0, 'buckets': (8, CAPACITY),
              'packed': True}
  return pipeline.batches(language_rows() if rows is None else rows, **(defaults | options))


def rows_of(batch):
  """(example, its tokens, its loss_mask) of every segment of a batch."""
  for tokens, mask, segments, index in zip(*(batch[name] for name in (
      'tokens', 'loss_mask', 'segments', 'index'))):
    for segment in range(1, segments.max() + 1):
      here = segments == segment
      (example,) = set(index[here].tolist())
      yield example, tokens[here], mask[here]


def test_packs_hold_every_row_once_and_never_more_than_the_capacity():
  rng = np.random.default_rng(0)
  for capacity in rng.integers(1, 60, 20).tolist():
    lengths = rng.integers(1, capacity + 1, rng.integers(0, 200)).tolist()
    order = rng.permutation(len(lengths))
    packs = packing.pack(lengths, capacity, order=order)
    assert sorted(itertools.chain.from_iterable(packs)) == list(range(len(lengths)))
    assert all(0 < sum(lengths[row] for row in pack) <= capacity for pack in packs)
    assert packs == packing.pack(lengths, capacity, order=order)
  assert packing.pack([], 8) == []


def test_the_order_changes_the_company_but_not_the_lengths_of_the_packs():
  lengths = lognormal(3000)
  plain = packing.pack(lengths, 1024)
  other = packing.pack(lengths, 1024, order=np.random.default_rng(0).permutation(3000))
  shapes = lambda packs: sorted([lengths[row] for row in pack] for pack in packs)
  assert shapes(plain) == shapes(other)
  assert {frozenset(pack) for pack in plain} != {frozenset(pack) for pack in other}


def test_a_row_goes_into_the_fullest_pack_that_has_room():
  assert packing.pack([3, 6, 5, 4, 2], 10) == [[1, 3], [2, 0, 4]]
  assert packing.pack([10, 10], 10) == [[0], [1]]


def test_few_rows_need_at_most_11_ninths_of_the_fewest_packs():
  rng, capacity = np.random.default_rng(0), 12
  for lengths in rng.integers(1, 10, (10, 6)).tolist():
    fits = lambda into, packs, lengths=lengths: all(
      sum(n for n, pack in zip(lengths, into) if pack == i) <= capacity for i in range(packs))
    fewest = next(packs for packs in range(1, 7) if any(
      fits(into, packs) for into in itertools.product(range(packs), repeat=6)))
    assert fewest <= len(packing.pack(lengths, capacity)) <= 11 / 9 * fewest + 1


@pytest.mark.parametrize('median, capacity', [(150, 1024), (150, 2048), (400, 4096)])
def test_realistic_lengths_leave_almost_no_padding(median, capacity):
  lengths = lognormal(5000, median=median, longest=capacity)
  packs = packing.pack(lengths, capacity)
  share = sum(lengths[row] for rows in packs for row in rows) / (len(packs) * capacity)
  assert share > 0.99 and share == lengths.sum() / (len(packs) * capacity)


def test_planning_an_epoch_takes_calls_in_proportion_to_its_rows():
  """By calls, not by the clock: twice the rows are at most a little more than twice the work."""
  def calls(rows):
    plan, events = packing.PackedPlan(lognormal(rows), 1024, 32, seed=0), []
    sys.setprofile(lambda frame, event, _: events.append(event) if event.endswith('call') else 0)
    try:
      plan(0)
    finally:
      sys.setprofile(None)
    return len(events)

  assert 1 <= calls(40_000) <= 2.3 * calls(20_000)


def test_rows_that_cannot_be_packed_are_refused():
  with pytest.raises(ValueError, match=r'1 to 8 tokens .*found 2 others, the first row 1 of 9; r'):
    packing.pack([8, 9, 0], 8)
  with pytest.raises(ValueError, match='at most 8 tokens .*found one of 15; add a bucket'):
    stream(buckets=(4, 8))
  with pytest.raises(ValueError, match=r'batch_size=64 packs .*found 90 in \d+ packs; lower'):
    stream(batch_size=64)
  with pytest.raises(ValueError, match="document or demonstration for packed; found 'prompt'; set"):
    stream(kind='prompt')


@pytest.mark.parametrize('batch_size', [1, 4, 6])
def test_epochs_laid_end_to_end_hold_every_row_once_each(batch_size):
  rows = language_rows()
  packs = len(packing.pack([len(row['tokens']) for row in rows], CAPACITY))
  epochs = 12  # whole batches: 12 is a multiple of every batch size
  batches = list(stream(rows, batch_size=batch_size, epochs=epochs))
  assert len(batches) == epochs * packs // batch_size
  assert stream(rows, batch_size=batch_size).batches_per_epoch == packs // batch_size
  each = {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}
  epoch = lambda n: {name: x[n * packs:(n + 1) * packs] for name, x in each.items()}
  for n in range(epochs):
    found = sorted(rows_of(epoch(n)), key=lambda row: row[0])
    assert [example for example, _, _ in found] == list(range(90))
    for (_, tokens, mask), row in zip(found, rows):
      np.testing.assert_array_equal(tokens, row['tokens'])
      np.testing.assert_array_equal(mask, row['loss_mask'] & (np.arange(len(tokens)) > 0))
  company = [{frozenset(row) for row in epoch(n)['index'].tolist()} for n in range(2)]
  assert company[0] != company[1]
  used = [epoch(n)['mask'].sum(1).tolist() for n in range(2)]
  assert sorted(used[0]) == sorted(used[1]) and used[0] != used[1]


def test_segments_count_from_1_without_gaps_and_padding_comes_last():
  for batch in itertools.islice(stream(pad_id=-7), 30):
    assert {name: (x.dtype.name, x.shape) for name, x in batch.items()} == {
      'tokens': ('int32', (4, CAPACITY)), 'segments': ('int32', (4, CAPACITY)),
      'loss_mask': ('bool', (4, CAPACITY)), 'index': ('int32', (4, CAPACITY)),
      'mask': ('bool', (4, CAPACITY)), 'weight': ('float32', (4,))}
    np.testing.assert_array_equal(batch['mask'], batch['segments'] > 0)
    np.testing.assert_array_equal(batch['weight'], np.ones(4))
    padding = ~batch['mask']
    assert (batch['tokens'][padding] == -7).all() and (batch['index'][padding] == -1).all()
    for segments in batch['segments']:
      real = segments[segments > 0]
      np.testing.assert_array_equal(segments[:len(real)], real)
      assert real[0] == 1 and set(np.diff(real)) <= {0, 1}
    first = np.diff(batch['segments'], axis=1, prepend=0) > 0
    assert not batch['loss_mask'][first | padding].any()


def test_packed_and_unpacked_rows_count_the_same_tokens():
  rows = language_rows()
  options = {'kind': 'demonstration', 'batch_size': 4, 'buckets': (8, CAPACITY)}
  found = {packed: pipeline.evaluation_batches(rows, packed=packed, **options)
           for packed in (False, True)}
  counted = {packed: sum(b['loss_mask'].sum() for b in batches)
             for packed, batches in found.items()}
  assert counted[True] == counted[False] == sum(row['loss_mask'][1:].sum() for row in rows)
  places = {packed: sum(b['mask'].size for b in batches) for packed, batches in found.items()}
  assert places[True] < places[False]


def test_evaluation_packs_every_row_once_and_fills_up_with_a_copy_that_counts_nothing():
  batches = pipeline.evaluation_batches(language_rows(), kind='document', batch_size=16,
                                        packed=True, buckets=(CAPACITY,))
  assert {b['tokens'].shape for b in batches} == {(16, CAPACITY)}
  each = {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}
  real = each['weight'] > 0
  seen = rows_of({name: x[real] for name, x in each.items()})
  assert sorted(example for example, _, _ in seen) == list(range(90))
  assert 0 < (~real).sum() < 16 and each['mask'][~real].any(1).all()
  assert not each['loss_mask'][~real].any()


@pytest.mark.parametrize('shard_count', [2, 4])
def test_hosts_together_have_the_unsharded_packs(shard_count):
  whole = list(itertools.islice(stream(), 20))
  hosts = [itertools.islice(stream(shard_index=i, shard_count=shard_count), 20)
           for i in range(shard_count)]
  for batch, *parts in zip(whole, *hosts):
    for name, x in batch.items():
      np.testing.assert_array_equal(np.stack([p[name] for p in parts], 1).reshape(x.shape), x)


@pytest.mark.parametrize('steps', [0, 1, 5, 7, 23])
def test_a_restored_stream_goes_on_as_if_never_stopped(steps):
  original = stream()
  list(itertools.islice(original, steps))
  state = json.loads(json.dumps(original.get_state()))
  restored = stream(buckets=(CAPACITY,))  # of which only the last is used
  next(restored)
  restored.set_state(state)
  tiny.equal(list(itertools.islice(restored, 12)), list(itertools.islice(original, 12)))


@pytest.mark.parametrize('change', [
  {'packed': False}, {'seed': 1}, {'batch_size': 2}, {'buckets': (64,)}])
def test_the_state_of_another_stream_is_refused(change):
  make = lambda **options: stream(**({'buckets': (CAPACITY,)} | options))
  for one, other in ((make(), make(**change)), (make(**change), make())):
    with pytest.raises(ValueError, match=r'expected .*found .*in the saved state.*resume with'):
      one.set_state(other.get_state())


def padding(lengths, edges):
  return sum(min(edge for edge in edges if edge >= n) - n for n in lengths)


def test_auto_buckets_pad_least_of_all_edges():
  rng = np.random.default_rng(0)
  for count, multiple in rng.integers(1, (5, 9), (20, 2)).tolist():
    lengths = rng.integers(1, 30, rng.integers(1, 40))
    edges = packing.auto_buckets(lengths, count, multiple)
    assert edges == tuple(sorted(set(edges))) and len(edges) <= count
    assert all(edge % multiple == 0 for edge in edges) and 0 <= edges[-1] - lengths.max() < multiple
    others = range(multiple, edges[-1], multiple)
    least = min(padding(lengths, (*chosen, edges[-1])) for n in range(count)
                for chosen in itertools.combinations(others, n))
    assert least == padding(lengths, edges)


def test_auto_buckets_of_little():
  assert packing.auto_buckets([3]) == (16,)
  assert packing.auto_buckets([16, 17, 16, 100]) == (16, 32, 112)
  assert packing.auto_buckets([5, 5, 5, 100], count=1) == (112,)
  for wrong in ({'lengths': []}, {'lengths': [0]}, {'lengths': [3], 'count': 0},
                {'lengths': [3], 'multiple': 0}):
    with pytest.raises(ValueError, match=r'auto_buckets: expected .*found .*raise them'):
      packing.auto_buckets(**wrong)
