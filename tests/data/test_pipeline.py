"""Batches: every row once, in its bucket, in an order that is resumed to the bit, on any host."""

import json

import numpy as np
import pytest
import tiny

from perl.data.batches import pipeline

BUCKETS = (4, 8, 12)


def language_rows(count=45):
  rng = np.random.default_rng(0)
  lengths = rng.integers(2, 13, count)
  return [{'index': i, 'tokens': np.full(n, i + 1, np.int32), 'loss_mask': np.arange(n) > 0}
          for i, n in enumerate(lengths)]


def stream(rows=None, **options):
  defaults = {'kind': 'document', 'batch_size': 4, 'seed': 0, 'buckets': BUCKETS}
  return pipeline.batches(language_rows() if rows is None else rows, **(defaults | options))


def test_an_epoch_holds_each_row_at_most_once_and_leaves_less_than_a_batch():
  found = list(stream(epochs=1))
  seen = np.concatenate([batch['index'] for batch in found])
  assert len(seen) == len(set(seen)) == 44
  assert len(found) == stream().batches_per_epoch == 11


def test_all_rows_are_seen_over_the_epochs_and_the_order_changes():
  found = list(stream(epochs=6))
  assert {i for batch in found for i in batch['index'].tolist()} == set(range(45))
  first, second = found[:11], found[11:22]
  assert [b['index'].tolist() for b in first] != [b['index'].tolist() for b in second]


def test_batches_are_a_function_of_the_seed():
  tiny.equal(list(stream(epochs=2)), list(stream(epochs=2)))
  other = [batch['index'].tolist() for batch in stream(epochs=1, seed=1)]
  assert other != [batch['index'].tolist() for batch in stream(epochs=1)]


def test_every_batch_fits_its_bucket_and_masks_come_from_lengths():
  rows = language_rows()
  for batch in stream(rows, epochs=2):
    assert batch['tokens'].shape[1] in BUCKETS and batch['tokens'].shape[0] == 4
    for row, index in enumerate(batch['index']):
      length = len(rows[index]['tokens'])
      real = np.arange(batch['tokens'].shape[1]) < length
      np.testing.assert_array_equal(batch['mask'][row], real)
      np.testing.assert_array_equal(batch['tokens'][row, :length], rows[index]['tokens'])
      np.testing.assert_array_equal(batch['loss_mask'][row].sum(), length - 1)
      assert not batch['loss_mask'][row, length:].any()
    np.testing.assert_array_equal(batch['weight'], np.ones(4))
    assert {name: batch[name].dtype.name for name in batch} == {
      'tokens': 'int32', 'mask': 'bool', 'loss_mask': 'bool', 'weight': 'float32',
      'index': 'int32'}


def test_short_rows_go_up_a_bucket_only_when_they_would_be_left_over():
  rows = [{'index': i, 'tokens': np.ones(3, np.int32), 'label': 1.0} for i in range(10)]
  rows += [{'index': 10 + i, 'tokens': np.ones(7, np.int32), 'label': 0.0} for i in range(2)]
  shapes = sorted(b['tokens'].shape for b in stream(rows, kind='labelled', epochs=1))
  assert shapes == [(4, 4), (4, 4), (4, 8)]


@pytest.mark.parametrize('steps', [0, 1, 7, 11, 12, 25])
def test_a_restored_stream_goes_on_as_if_never_stopped(steps):
  original = stream()
  for _ in range(steps):
    next(original)
  state = json.loads(json.dumps(original.get_state()))
  rest = [next(original) for _ in range(15)]
  restored = stream()
  next(restored)  # where the new stream stands does not matter
  restored.set_state(state)
  tiny.equal([next(restored) for _ in range(15)], rest)


def test_a_stream_can_be_wound_back():
  original = stream()
  state = original.get_state()
  first = [next(original) for _ in range(13)]
  original.set_state(state)
  tiny.equal([next(original) for _ in range(13)], first)


@pytest.mark.parametrize('change', [
  {'seed': 1}, {'batch_size': 8}, {'buckets': (12,)}, {'rows': language_rows(44)}])
def test_the_state_of_another_stream_is_refused(change):
  with pytest.raises(ValueError, match=r'expected .*found .*in the saved state.*resume with'):
    stream(**change).set_state(stream().get_state())


@pytest.mark.parametrize('shard_count', [2, 4])
def test_hosts_share_each_batch_without_overlap(shard_count):
  whole = list(stream(epochs=2))
  shards = [list(stream(epochs=2, shard_index=i, shard_count=shard_count))
            for i in range(shard_count)]
  assert {len(shard) for shard in shards} == {len(whole)}
  for batch, *parts in zip(whole, *shards):
    assert len({part['tokens'].shape for part in parts}) == 1  # one program on all hosts
    assert sorted(np.concatenate([p['index'] for p in parts])) == sorted(batch['index'])


def test_a_state_survives_a_change_of_the_number_of_hosts():
  one = stream()
  next(one)
  two = stream(shard_index=1, shard_count=2)
  two.set_state(one.get_state())
  assert set(next(two)['index']) < set(next(one)['index'])


@pytest.mark.parametrize('kind', ['document', 'preference', 'labelled', 'prompt'])
def test_the_pad_id_changes_nothing_but_the_padding(kind):
  rows = mixed_rows(kind)
  plain = list(stream(rows, kind=kind, epochs=1))
  eos = list(stream(rows, kind=kind, epochs=1, pad_id=2))
  for a, b in zip(plain, eos):
    for name in a:
      mask = a.get({'tokens': 'mask'}.get(name, f'{name}_mask'), True)
      np.testing.assert_array_equal(np.where(mask, a[name], 0), np.where(mask, b[name], 0))


def mixed_rows(kind):
  ids = lambda n: np.arange(2, n + 2, dtype=np.int32)
  make = {
    'document': lambda i: {'tokens': ids(i), 'loss_mask': np.ones(i, bool)},
    'preference': lambda i: {'chosen': ids(i), 'rejected': ids(13 - i), 'margin': i / 2},
    'labelled': lambda i: {'tokens': ids(i), 'label': float(i % 2)},
    'prompt': lambda i: {'tokens': ids(i)}}[kind]
  return [{'index': i - 1, **make(i)} for i in range(1, 13)]


def test_prompts_are_padded_on_the_left():
  (batch,) = pipeline.evaluation_batches(
    [{'index': 0, 'tokens': np.array([5, 6], np.int32)}], kind='prompt', batch_size=1, buckets=(4,))
  np.testing.assert_array_equal(batch['tokens'], [[0, 0, 5, 6]])
  np.testing.assert_array_equal(batch['mask'], [[False, False, True, True]])


def test_both_sides_of_a_pair_share_their_length():
  for batch in stream(mixed_rows('preference'), kind='preference', epochs=1):
    assert batch['chosen'].shape == batch['rejected'].shape == batch['chosen_mask'].shape
    np.testing.assert_array_equal(
      batch['chosen_mask'].sum(1) + batch['rejected_mask'].sum(1), np.full(4, 13))
    np.testing.assert_array_equal(batch['margin'], (batch['index'] + 1) / 2)


def test_evaluation_keeps_the_order_and_fills_the_last_batch_with_weight_0():
  rows = language_rows(10)
  found = pipeline.evaluation_batches(rows, kind='document', batch_size=4)
  longest = max(len(row['tokens']) for row in rows)
  assert [batch['tokens'].shape for batch in found] == [(4, longest)] * 3
  index = np.concatenate([b['index'][b['weight'] > 0] for b in found])
  np.testing.assert_array_equal(index, np.arange(10))
  np.testing.assert_array_equal(found[-1]['weight'], [1, 1, 0, 0])
  assert not found[-1]['loss_mask'][2:].any() and found[-1]['mask'][2:].any(axis=1).all()


def test_evaluation_in_buckets_sees_every_row_once():
  found = pipeline.evaluation_batches(language_rows(), kind='document', batch_size=4,
                                      buckets=BUCKETS)
  index = np.concatenate([b['index'][b['weight'] > 0] for b in found])
  assert sorted(index) == list(range(45))
  assert {batch['tokens'].shape[1] for batch in found} == set(BUCKETS)


def test_errors():
  with pytest.raises(ValueError, match='at least batch_size=64 rows; found 45; lower'):
    stream(batch_size=64)
  with pytest.raises(ValueError, match='at most 8 tokens .*found one of 12; add a bucket'):
    stream(buckets=(4, 8))
  with pytest.raises(ValueError, match='divisible by the number of hosts'):
    stream(shard_count=3)
  with pytest.raises(ValueError, match='expected rows; found none'):
    stream([])
  with pytest.raises(ValueError, match="expected a kind .*found 'pairs'"):
    stream(kind='pairs')
