"""Laws of the embedded task: seeds decide all, splits share nothing, the optimum is known."""

import math
import random

import pytest

from perl.data.sets import _toy_grammar as grammar
from perl.data.sets import _toy_people as people
from perl.data.sets import toy
from perl.data.text import dialogue

KINDS = sorted(toy.SIZES)
PROMPT = '<|user|>two small lattes with oat milk. no, large<|agent|>'
BEST = '{"add_order_item":{"drink":"latte","size":"large","milk":"oat","count":"2"}}'
QUESTION = '<|user|>a latte with honey<|agent|>'


@pytest.fixture(autouse=True)
def small_sizes(monkeypatch):
  sizes = {'train': 150, 'dev': 40, 'test': 40}
  monkeypatch.setattr(toy, 'SIZES', dict.fromkeys(KINDS, sizes))


@pytest.mark.parametrize('kind', KINDS)
def test_the_seed_decides_the_data(kind):
  first = toy.load('train', kind, seed=3)
  assert first == toy.load('train', kind, seed=3)
  assert first != toy.load('train', kind, seed=4)
  assert len(first) == 150


def test_splits_share_no_order_text():
  groups = {split: {example.group for kind in KINDS for seed in range(2)
                    for example in toy.load(split, kind, seed=seed)}
            for split in ('train', 'dev', 'test')}
  assert not groups['train'] & groups['dev']
  assert not (groups['train'] | groups['dev']) & groups['test']


@pytest.mark.parametrize('split, kind', [('train', 'video'), ('validation', 'prompt')])
def test_an_unknown_kind_or_split_is_an_error(split, kind):
  with pytest.raises(ValueError, match='toy: expected .* found'):
    toy.load(split, kind)


def test_known_best_responses():
  assert toy.best_response(PROMPT) == BEST
  assert toy.best_response(QUESTION) == 'what size?'
  assert toy.best_response('<|user|>a large drink<|agent|>') == 'which drink?'
  answered = '<|user|>a large drink<|agent|>which drink?<|eos|><|user|>tea please<|agent|>'
  assert toy.best_response(answered) == '{"add_order_item":{"drink":"tea","size":"large"}}'


def test_gold_reward_by_hand():
  assert toy.gold_reward(PROMPT, BEST) == 1.
  three = '{"add_order_item":{"drink":"latte","milk":"oat","count":"2"}}'  # F1 = 6 / 7
  assert toy.gold_reward(PROMPT, three) == pytest.approx(.1 + .9 * (6 / 7) ** 2)
  five = BEST.replace('"count"', '"extra":"mint","count"')  # F1 = 8 / 9
  assert toy.gold_reward(PROMPT, five) == pytest.approx(.1 + .9 * (8 / 9) ** 2)
  assert toy.gold_reward(PROMPT, 'what size?') == 0.
  assert toy.gold_reward(QUESTION, 'what size?') == 1.
  assert toy.gold_reward(QUESTION, 'which drink?') == .3
  guess = '{"add_order_item":{"drink":"latte","size":"small","extra":"honey"}}'  # F1 = 4 / 5
  assert toy.gold_reward(QUESTION, guess) == pytest.approx(.3 * .8 ** 2)


def test_the_best_response_is_the_only_best():
  for example in toy.load('train', 'prompt'):
    best = toy.best_response(example.prompt)
    assert toy.gold_reward(example.prompt, best) == toy.OPTIMUM
    turn = dialogue.parse_response(best)
    if 'api' not in turn:
      continue
    slots = turn['api'][grammar.API]
    for slot, values in grammar.VALUES.items():
      changed = [{**slots, slot: value} for value in values if value != slots.get(slot)]
      changed += [{key: value for key, value in slots.items() if key != slot}] * (slot in slots)
      for other in changed:
        _, response = dialogue.render([], grammar.call(other))
        assert toy.gold_reward(example.prompt, response) < 1.


def test_padding_a_call_lowers_its_reward():
  assert toy.gold_reward(PROMPT, BEST.replace(':', ' : ')) < 1.
  twice = BEST.replace('"size":"large"', '"size":"small","size":"large"')
  assert toy.gold_reward(PROMPT, twice) < 1.


def test_gold_reward_of_garbage_lies_in_the_unit_interval():
  rng = random.Random(0)
  garbage = ['', ' ', '{}', '[]', 'null', '{"add_order_item":3}', '{"add_order_item":{}}',
             '{"add_order_item":{"drink":["latte"],"size":null}}', '{"add_order_item":{"a":1e999}}',
             '{"other":{"drink":"latte"}}', BEST + BEST, BEST[:-1], '\ud800', '[' * 50, 'what size']
  garbage += [''.join(rng.choices(BEST + '\\\n<|é', k=rng.randrange(40))) for _ in range(200)]
  for prompt in (PROMPT, QUESTION, '', 'nonsense'):
    for response in garbage:
      assert 0. <= toy.gold_reward(prompt, response) <= 1.
      toy.response_metrics(prompt, response, '')


def test_response_metrics():
  right = toy.response_metrics(PROMPT, BEST, 'what size?')
  assert right == {'gold_reward': 1., 'exact_match': 1., 'valid_api_call': 1.}
  assert toy.response_metrics(QUESTION, 'what size?', '')['valid_api_call'] == 1.
  for invalid in (BEST[:-1], BEST.replace('oat', 'cow'), BEST.replace('milk', 'syrup'), 'hello'):
    assert toy.response_metrics(PROMPT, invalid, '')['valid_api_call'] == 0.
  assert toy.response_metrics(PROMPT, BEST.replace('oat', 'soy'), '')['exact_match'] == 0.


def test_demonstrations_are_valid_and_of_mixed_quality(monkeypatch):
  monkeypatch.setattr(toy, 'SIZES', {'demonstration': {'train': 2000}})
  examples = toy.load('train', 'demonstration')
  rewards = [toy.gold_reward(example.prompt, example.response) for example in examples]
  assert .55 < sum(rewards) / len(rewards) < .65
  for example in examples:
    turn = dialogue.parse_response(example.response)
    assert list(turn.get('api', ())) == [grammar.API] or turn['text'] in grammar.QUESTIONS.values()
    assert example.prompt.startswith('<|user|>') and example.prompt.endswith('<|agent|>')


def test_the_demonstrators_mode_is_wrong_after_a_correction():
  rng = random.Random(0)
  mentions = grammar.listen('<|user|>a small tea. no, large<|agent|>')
  turns = [people.demonstrate(rng, mentions) for _ in range(2000)]
  calls = [turn['api'][grammar.API] for turn in turns if 'api' in turn]
  assert sum(call.get('size') == 'small' for call in calls) > len(calls) / 2


def test_candidates_include_questions_that_nobody_needed():
  rng = random.Random(0)  # without them a reward model cannot learn that they are wrong
  context = [{'role': 'user', 'text': 'a small tea'}]
  mentions = grammar.listen('<|user|>a small tea<|agent|>')
  responses = [people.candidate(rng, context, mentions) for _ in range(500)]
  assert sum(response in grammar.QUESTIONS.values() for response in responses) > 20


@pytest.mark.parametrize('difference, temperature', [(0., .1), (.2, .1), (-.2, .2), (.5, .25)])
def test_choices_follow_bradley_terry(difference, temperature):
  rng, count = random.Random(1), 4000
  expected = 1. / (1. + math.exp(-difference / temperature))
  share = sum(people.prefers(rng, difference, temperature) for _ in range(count)) / count
  assert abs(share - expected) < 4. * math.sqrt(expected * (1. - expected) / count)


def test_preferences_and_thumbs_follow_the_gold_reward(monkeypatch):
  monkeypatch.setattr(toy, 'SIZES', {kind: {'train': 1500} for kind in KINDS})
  pairs = toy.load('train', 'preference')
  gaps = [toy.gold_reward(pair.prompt, pair.chosen) - toy.gold_reward(pair.prompt, pair.rejected)
          for pair in pairs]
  expected = [1. / (1. + math.exp(-abs(gap) / toy.TEMPERATURE)) for gap in gaps if gap]
  spread = 4. * math.sqrt(sum(p * (1. - p) for p in expected))
  assert abs(sum(gap > 0. for gap in gaps) - sum(expected)) < spread
  assert all(pair.chosen != pair.rejected for pair in pairs)

  thumbs = toy.load('train', 'labelled')
  chance = [1. / (1. + math.exp((toy.THRESHOLD - toy.gold_reward(thumb.prompt, thumb.response))
                                / toy.TEMPERATURE)) for thumb in thumbs]
  spread = 4. * math.sqrt(sum(p * (1. - p) for p in chance))
  assert abs(sum(thumb.label for thumb in thumbs) - sum(chance)) < spread
  assert {thumb.label for thumb in thumbs} == {0., 1.}


def test_a_document_is_one_dialogue_that_ends_with_the_agent():
  for document in toy.load('train', 'document'):
    assert document.text.startswith('<|user|>') and document.text.endswith('<|eos|>')
    assert document.text.count('<|agent|>') == document.text.count('<|eos|>') <= 2
