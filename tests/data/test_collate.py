"""Pairs that share their prompt: the two whole sequences, told in fewer tokens."""

import itertools
import json

import numpy as np
import pytest
from letters import Letters

from perl.data.batches import pipeline
from perl.data.examples import Preference

BUCKETS = (16, 32, 64)


def pairs(count=40, shortest=1):
  rng = np.random.default_rng(0)
  found = []
  for index in range(count):
    prompt, one, other = (rng.integers(3, 1000, rng.integers(shortest, high), np.int32)
                          for high in (40, 12, 24))
    found.append({'index': index, 'chosen': np.concatenate([prompt, one]),
                  'rejected': np.concatenate([prompt, other]), 'margin': index / 2,
                  'prompt_tokens': len(prompt)})
  return found


def stream(rows, **options):
  defaults = {'kind': 'preference', 'batch_size': 4, 'seed': 0, 'buckets': BUCKETS,
              'shared_prompt': True}
  return pipeline.batches(rows, **(defaults | options))


def parts(batch):
  """(prompt, chosen, rejected), each (tokens, mask), by the layout that pipeline.py states."""
  response = batch['chosen_mask'].shape[1]
  prompt = batch['tokens'].shape[1] - 2 * response
  cuts = [prompt, prompt + response]
  return list(zip(np.split(batch['tokens'], cuts, 1), np.split(batch['mask'], cuts, 1)))


def test_a_pair_can_be_read_back_from_its_one_row():
  rows = pairs()
  for batch in stream(rows, epochs=2, pad_id=-7):
    (prompts, prompt_mask), (chosen, chosen_mask), (rejected, rejected_mask) = parts(batch)
    assert prompts.shape[1] % 16 == chosen.shape[1] % 16 == 0
    np.testing.assert_array_equal(batch['chosen_mask'], chosen_mask)
    np.testing.assert_array_equal(batch['rejected_mask'], rejected_mask)
    assert (batch['tokens'][~batch['mask']] == -7).all()
    for b, index in enumerate(batch['index']):
      row = rows[index]
      prompt = prompts[b, prompts.shape[1] - batch['prompt_tokens'][b]:]
      np.testing.assert_array_equal(prompts[b][prompt_mask[b]], prompt)
      for name, response, mask in (('chosen', chosen, chosen_mask),
                                   ('rejected', rejected, rejected_mask)):
        assert mask[b, :mask[b].sum()].all()
        np.testing.assert_array_equal(np.concatenate([prompt, response[b][mask[b]]]), row[name])
      assert batch['margin'][b] == row['margin'] and batch['weight'][b] == 1
  assert {name: x.dtype.name for name, x in batch.items()} == {
    'tokens': 'int32', 'mask': 'bool', 'chosen_mask': 'bool', 'rejected_mask': 'bool',
    'margin': 'float32', 'prompt_tokens': 'int32', 'index': 'int32', 'weight': 'float32'}


def test_the_same_pairs_make_a_batch_whether_or_not_they_share_their_prompt():
  rows = pairs()
  shared, whole = ([b['index'].tolist() for b in stream(rows, epochs=2, shared_prompt=shared)]
                   for shared in (True, False))
  assert shared == whole


def test_a_pair_that_goes_up_a_bucket_fits_there_too():
  ids = lambda n: np.arange(n, dtype=np.int32)
  row = lambda i, prompt, whole: {'index': i, 'chosen': ids(whole), 'rejected': ids(whole - 1),
                                  'margin': 0.0, 'prompt_tokens': prompt}
  rows = [row(i, 29, 32) for i in range(5)] + [row(5 + i, 10, 60) for i in range(3)]
  shapes = sorted(b['tokens'].shape for b in stream(rows, epochs=1))
  assert shapes == [(4, 32 + 2 * 16), (4, 32 + 2 * 64)]


def test_a_bucket_has_one_shape_on_all_hosts_and_they_share_each_batch():
  rows = pairs(200)
  batches = list(stream(rows, epochs=1))
  assert len({b['tokens'].shape for b in batches}) <= len(BUCKETS)
  hosts = [list(stream(rows, epochs=1, shard_index=i, shard_count=2)) for i in range(2)]
  for batch, *halves in zip(batches, *hosts):
    for name, x in batch.items():
      np.testing.assert_array_equal(np.stack([h[name] for h in halves], 1).reshape(x.shape), x)


def test_the_layout_is_part_of_a_saved_state():
  rows = pairs()
  original = stream(rows)
  next(original)
  state = json.loads(json.dumps(original.get_state()))
  restored = stream(rows)
  restored.set_state(state)
  for a, b in zip(itertools.islice(original, 12), restored):
    np.testing.assert_array_equal(a['tokens'], b['tokens'])
  with pytest.raises(ValueError, match='expected shared_prompt=False, found True in the saved'):
    stream(rows, shared_prompt=False).set_state(state)
  old = {**state, 'identity': {name: value for name, value in state['identity'].items()
                               if name not in ('packed', 'shared_prompt')}}
  stream(rows, shared_prompt=False).set_state(old)  # saved before there were such layouts


def test_evaluation_has_every_pair_once():
  batches = pipeline.evaluation_batches(pairs(), kind='preference', batch_size=16, buckets=BUCKETS,
                                        shared_prompt=True)
  index = np.concatenate([b['index'][b['weight'] > 0] for b in batches])
  assert sorted(index) == list(range(40))
  assert {len(b['tokens']) for b in batches} == {16}
  assert all(b['chosen_mask'].any(1).all() for b in batches)  # fillers are whole pairs


@pytest.mark.parametrize('overlong', ['filter', 'truncate'])
@pytest.mark.parametrize('adds_bos', [True, False])
def test_encode_gives_both_sequences_of_a_pair_one_prompt(overlong, adds_bos):
  rng = np.random.default_rng(0)
  text = lambda longest: ''.join(rng.choice(list('^.abc'), rng.integers(0, longest)))
  examples = [Preference(text(14), text(9), text(9)) for _ in range(300)]
  rows, counts = pipeline.encode(
    examples, Letters(adds_bos=adds_bos), kind='preference', max_prompt_tokens=8,
    max_response_tokens=5, overlong=overlong)
  assert len(rows) > 50 and (counts['truncated_prompts'] > 0) == (overlong == 'truncate')
  for row in rows:
    start = row['prompt_tokens']
    assert 1 <= start <= 8 and start < min(len(row['chosen']), len(row['rejected']))
    np.testing.assert_array_equal(row['chosen'][:start], row['rejected'][:start])
  batch = pipeline.evaluation_batches(rows, kind='preference', batch_size=4, shared_prompt=True)[0]
  assert batch['tokens'].shape == (4, 16 + 2 * 16)


def test_pairs_without_a_shared_prompt_are_refused():
  rows = pairs()
  rows[7]['rejected'][0] += 1
  with pytest.raises(ValueError, match=r'the same \d+ .*found .* at token 0 of example 7; make'):
    stream(rows)
  stream(rows, shared_prompt=False)
  for prompt_tokens in (0, 1000):
    rows = pairs()
    rows[3]['prompt_tokens'] = prompt_tokens
    with pytest.raises(ValueError, match=f'a response .*found {prompt_tokens} of .* 3; make'):
      stream(rows)
  del rows[3]['prompt_tokens']
  with pytest.raises(ValueError, match=r'a response after .*found 0 of .*example 3; make'):
    stream(rows)
  with pytest.raises(ValueError, match="kind preference for shared_prompt; found 'labelled'; set"):
    stream(pairs(), kind='labelled')


def test_nothing_predicts_the_first_token_of_a_row():
  rows = [{'index': 0, 'tokens': np.array([5, 6], np.int32), 'loss_mask': np.ones(2, bool)}]
  (batch,) = pipeline.evaluation_batches(rows, kind='document', batch_size=1, buckets=(4,))
  np.testing.assert_array_equal(batch['loss_mask'], [[False, True, False, False]])
