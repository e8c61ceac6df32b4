"""Rankings and ratings: from files and from the toy to batches."""

import itertools
import json
import math

import numpy as np
import pytest
from letters import Letters

from perl.data.batches import pipeline
from perl.data.batches.encoding import encode
from perl.data.examples import Demonstration, Prompt, Ranked, Rated
from perl.data.sets import local, toy

ASKED = {'role': 'user', 'content': 'tea'}
GREEN, BLACK = ({'role': 'assistant', 'content': c} for c in ('green?', 'black?'))


def rows_of(kind, *examples, responses=3, overlong='filter'):
  return encode(examples, Letters(), kind=kind, max_prompt_tokens=4, max_response_tokens=3,
                overlong=overlong, responses=responses)


def load(folder, kind, *rows):
  (folder / 'train.jsonl').write_text('\n'.join(json.dumps(row) for row in rows))
  return local.load('train', kind, mirror=str(folder))


# --- Rows and batches


def test_the_responses_of_a_ranking_follow_their_prompt():
  (row,), counts = rows_of('ranked', Ranked('ab', ('c', 'de')))
  for found, expected in zip(row['responses'], ([12, 2], [13, 14, 2], [13, 14, 2])):
    np.testing.assert_array_equal(found, [1, 10, 11, *expected])
  np.testing.assert_array_equal(row['present'], [True, True, False])
  assert row['prompt_tokens'] == 3 and counts['surplus_responses'] == 0


def test_of_too_many_responses_the_best_and_the_worst_are_kept():
  (row,), counts = rows_of('ranked', Ranked('a', tuple('bcdef')))
  assert [int(ids[2]) for ids in row['responses']] == [11, 13, 15]
  assert row['present'].all() and counts['surplus_responses'] == 2


def test_of_responses_that_are_the_same_the_better_is_kept():
  rows, counts = rows_of(
    'ranked', Ranked('a', ('bcde', 'f', 'bcdf')), Ranked('a', ('bcde', 'bcdf')),
    overlong='truncate')
  assert [row['index'] for row in rows] == [0] and counts['identical_pairs'] == 2
  np.testing.assert_array_equal(rows[0]['present'], [True, True, False])


def test_an_overlong_response_leaves_its_ranking_out():
  rows, counts = rows_of('ranked', Ranked('a', ('b', 'cdef')), Ranked('a', ('b', 'c')))
  assert [row['index'] for row in rows] == [1] and counts['filtered'] == 1


def test_a_ranking_of_one_is_refused():
  with pytest.raises(ValueError, match='expected responses >= 2 of a ranking; found 1; raise'):
    rows_of('ranked', Ranked('a', ('b', 'c')), responses=1)


def test_a_batch_of_rankings_is_one_element_a_prompt():
  rows, _ = rows_of('ranked', Ranked('ab', ('c', 'de')), Ranked('a', ('b', 'c', 'd')))
  stream = pipeline.batches(rows, kind='ranked', batch_size=2, seed=0, buckets=(8,), epochs=1)
  (batch,) = stream
  assert batch['tokens'].shape == batch['mask'].shape == (2, 3, 8)
  for place, index in enumerate(batch['index']):
    for found, real, ids in zip(
        batch['tokens'][place], batch['mask'][place], rows[index]['responses']):
      np.testing.assert_array_equal(found[real], ids)
    np.testing.assert_array_equal(batch['present'][place], rows[index]['present'])
  np.testing.assert_array_equal(pipeline.lengths(rows, 'ranked'), [6, 4])
  assert set(batch) == {'tokens', 'mask', 'present', 'prompt_tokens', 'index', 'weight'}


def test_ratings_stay_beside_their_tokens():
  rows, _ = rows_of('rated', Rated('a', 'b', -1.5), Rated('a', 'bc', 2.25))
  (batch,) = pipeline.evaluation_batches(rows, kind='rated', batch_size=2)
  np.testing.assert_array_equal(batch['rating'], np.float32([-1.5, 2.25]))
  np.testing.assert_array_equal(batch['tokens'][1], [1, 10, 11, 12, 2])


# --- Files


@pytest.mark.parametrize('kind, row, expected', [
  ('ranked', {'prompt': 'p', 'responses': ['a', 'b', 'c']}, Ranked('p', ('a', 'b', 'c'))),
  ('demonstration', {'prompt': 'p', 'responses': ['a', 'b']}, Demonstration('p', 'a')),
  ('prompt', {'prompt': 'p', 'responses': ['a', 'b']}, Prompt('p')),
  ('rated', {'prompt': 'p', 'response': 'r', 'rating': 3}, Rated('p', 'r', 3.0)),
  ('ranked', {'prompt': [ASKED], 'responses': [[GREEN], 'black?']},
   Ranked('<|user|>tea<|agent|>', ('green?', 'black?'))),
  ('ranked', {'responses': [[ASKED, GREEN], [ASKED, BLACK]]},
   Ranked('<|user|>tea<|agent|>', ('green?', 'black?'))),
  ('rated', {'prompt': [ASKED], 'response': [GREEN], 'rating': -0.5},
   Rated('<|user|>tea<|agent|>', 'green?', -0.5)),
])
def test_layouts(kind, row, expected, tmp_path):
  (found,) = load(tmp_path, kind, row)
  about = {name: getattr(found, name) for name in ('group', 'meta', 'messages')}
  assert found == type(expected)(**{**vars(expected), **about})
  chats = any(isinstance(part, list) for part in (row.get('prompt'), row.get('responses', [''])[0]))
  answers = (GREEN, BLACK)[:2 if kind == 'ranked' else 1]
  assert found.messages == ((ASKED, *answers) if chats else ())


@pytest.mark.parametrize('kind, row, message', [
  ('ranked', {'prompt': 'p', 'responses': 'a'}, "expected 'responses' to be a list of at least 2"),
  ('ranked', {'prompt': 'p', 'responses': ['a']}, r"at least 2, .*line 1; found \['a'\]; repair"),
  ('ranked', {'prompt': 'p', 'responses': ['a', 3]}, r"expected 'responses\[1\]' to be a string"),
  ('ranked', {'prompt': 'p', 'response': 'a'}, 'expected a row with {prompt, responses}'),
  ('rated', {'prompt': 'p', 'response': 'a'}, 'expected a row with {prompt, response, rating}'),
  ('rated', {'prompt': 'p', 'response': 'a', 'rating': True}, "name thumbs 'label'"),
  ('rated', {'prompt': 'p', 'response': 'a', 'rating': '5'}, "expected 'rating' to be a finite"),
  ('rated', {'prompt': 'p', 'response': 'a', 'rating': float('inf')}, 'found inf; repair'),
])
def test_a_malformed_row_is_named(kind, row, message, tmp_path):
  with pytest.raises(ValueError, match=message) as error:
    load(tmp_path, kind, row)
  assert 'train.jsonl, line 1' in str(error.value)


# --- The toy


def test_toy_rankings_and_ratings_follow_the_gold_reward(monkeypatch):
  monkeypatch.setattr(toy, 'SIZES', dict.fromkeys(('ranked', 'rated'), {'train': 400}))
  gaps = []
  for ranked in toy.load('train', 'ranked'):
    assert len(set(ranked.responses)) == toy.RESPONSES
    golds = [toy.gold_reward(ranked.prompt, response) for response in ranked.responses]
    gaps += [better - worse for better, worse in itertools.combinations(golds, 2)]
  # Of a Plackett-Luce ranking each pair is a Bradley-Terry choice.
  chance = [1 / (1 + math.exp(-abs(gap) / toy.TEMPERATURE)) for gap in gaps if gap]
  spread = 4 * math.sqrt(6 * sum(p * (1 - p) for p in chance))  # six pairs of a ranking go together
  assert abs(sum(gap > 0 for gap in gaps) - sum(chance)) < spread
  noise = [rated.rating - toy.gold_reward(rated.prompt, rated.response)
           for rated in toy.load('train', 'rated')]
  deviation = toy.TEMPERATURE * math.pi / math.sqrt(3)
  assert abs(np.mean(noise)) < 4 * deviation / 20
  assert np.std(noise) == pytest.approx(deviation, rel=0.25)


def test_toy_margins_are_what_the_rater_saw(monkeypatch):
  monkeypatch.setattr(toy, 'SIZES', {'preference': {'train': 400}})
  pairs = toy.load('train', 'preference')
  gaps = [toy.gold_reward(p.prompt, p.chosen) - toy.gold_reward(p.prompt, p.rejected)
          for p in pairs]
  noise = [p.margin - gap for p, gap in zip(pairs, gaps)]
  assert min(p.margin for p in pairs) >= 0
  assert abs(np.mean(noise)) < 0.05 and np.std(noise) < 3 * toy.TEMPERATURE
