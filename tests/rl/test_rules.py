"""Rewards by rule: each by hand, their sum, and what is refused."""

import json
import pathlib
import types

import numpy as np
import pytest

from perl.data.examples import Prompt
from perl.data.sets import gsm8k, local, taskmaster_coffee, toy
from perl.rl import rules

HERE = pathlib.Path(__file__).resolve()
CASES = {
  'gsm8k': ({'answer': '1200'}, {'#### 1,200': 1, 'it is 1200.0.': 1, '#### 12': 0, 'none': 0}),
  'exact_match': ({'answer': 'a b'}, {' a  b\n': 1, 'a b c': 0}),
  'pattern': ({'pattern': r'(yes|no)\.'}, {'yes.': 1, 'yes. no.': 0, 'yes': 0}),
  'length': ({}, {'': 0, 'x' * 50: 0.5}),
  'repetition': ({}, {'': 0, 'abcd': 0, 'abab': 1 / 3, 'aaaa': 2 / 3, 'abxab': 1 / 4}),
  'valid_api_call': ({}, {'{"show_menu":{}}': 1, '{"brew":{}}': 0, 'which size?': 1, '': 0}),
}


def made(*names, weights=(), dataset=taskmaster_coffee):
  return rules.Rules(names, weights, dataset)


def doubled(examples, responses, dataset):
  """A rule of a user."""
  return [2.0 * len(text) for text in responses]


def each(made, examples, texts):
  """Of texts whose tokens are their characters."""
  longest = max(map(len, texts), default=0) + 1
  mask = np.arange(longest) < np.asarray([len(text) for text in texts])[:, None]
  tokens = np.zeros(mask.shape, np.int32)
  tokens[mask] = [ord(character) for text in texts for character in text]
  return made.each(examples, texts, tokens, mask)


def test_gold_is_the_datasets():
  example = toy.load('test', 'demonstration')[0]
  said = [example.response, example.response + '?']
  found = each(made('gold', dataset=toy), [Prompt(example.prompt)] * 2, said)['gold']
  np.testing.assert_allclose(found, [toy.gold_reward(example.prompt, text) for text in said])
  with pytest.raises(ValueError, match='a gold_reward for the rule gold, found .*coffee'):
    each(made('gold'), [Prompt('p')], ['x'])


def test_every_rule_has_a_case():
  assert {*CASES, 'gold'} == {p.stem for p in (HERE.parents[2] / 'perl/rl/rules').glob('[a-z]*.py')}


@pytest.mark.parametrize('name', CASES)
def test_by_hand(name):
  meta, expected = CASES[name]
  found = each(made(name), [Prompt('p', meta=meta)] * len(expected), list(expected))[name]
  np.testing.assert_array_equal(found, np.asarray(list(expected.values()), np.float32))


@pytest.mark.parametrize('answer', [
  '1,200', '1200', ' 1200.00 ', 1200, 1200.0, 'They pay 3 * 400. #### 1,200', r'\boxed{1200}',
  '1.2e3'])
@pytest.mark.parametrize('place', [
  lambda answer: {'answer': answer}, lambda answer: {'reward_model': {'ground_truth': answer}}])
def test_a_right_number_is_read_as_data_sets_have_it(answer, place):
  examples = [Prompt('p', meta=place(answer))] * 2
  made('gsm8k').check(examples)
  assert each(made('gsm8k'), examples, ['it is 1200', '12'])['gsm8k'].tolist() == [1, 0]


REFUSED = {
  'gsm8k': [None, '', 'none', True, [7], {'a': 7}, float('nan'), float('inf'), 'NaN'],
  'exact_match': [None, ['a'], {'a': 1}], 'pattern': [None, '(', 3, ['a']]}


@pytest.mark.parametrize('name, value', [(n, v) for n, values in REFUSED.items() for v in values])
@pytest.mark.parametrize('ask', [
  lambda rules, examples: rules.check(examples),
  lambda rules, examples: each(rules, examples, ['x'])])
def test_what_a_rule_cannot_use_names_its_row(name, value, ask):
  field = 'pattern' if name == 'pattern' else 'answer'
  for meta in ({field: value}, *([{}] if value is None else [])):
    example = Prompt('p', meta=meta | {'source': 'a.jsonl, line 7'})
    with pytest.raises(ValueError, match=rf'{name}: expected .* in meta.{field}.* of a.jsonl, '
                       'line 7; found .*repair the row'):
      ask(made(name), [example])


def test_a_dataset_without_calls_is_refused():
  with pytest.raises(ValueError, match='rule valid_api_call, found .*gsm8k; take another rule'):
    made('valid_api_call', dataset=gsm8k).check([Prompt('p')])


def test_columns_of_the_users_reach_a_rule(tmp_path):
  row = {'prompt': 'p', 'reward_model': {'style': 'rule', 'ground_truth': '1,200'}, 'level': 3}
  (tmp_path / 'train.jsonl').write_text(json.dumps(row))
  examples = local.load('train', 'prompt', mirror=str(tmp_path))
  made('gsm8k').check(examples)
  assert each(made('gsm8k'), examples, ['#### 1200'])['gsm8k'].tolist() == [1]
  assert examples[0].meta['level'] == 3


def test_weights_and_a_function_of_the_users():
  both = made('length', f'{__name__}:doubled', weights=(-1.0, 0.5))
  found = each(both, [Prompt('p')] * 2, ['x' * 10, ''])
  np.testing.assert_allclose(both.total(found), [-0.1 + 0.5 * 20, 0.0])
  assert both and not made()
  np.testing.assert_allclose(made('length').total(found), [0.1, 0.0])
  assert both.read_texts and not made('repetition').read_texts


@pytest.mark.parametrize('name, said', [
  ('lenght', "expected a file of perl/rl/rules .* found 'lenght'; did you mean 'length'"),
  ('no.such:rule', "found 'no.such:rule'"), (f'{__name__}:none', 'has no attribute')])
def test_a_rule_that_is_not_there(name, said):
  with pytest.raises(ValueError, match=said):
    made(name)


def test_weights_that_do_not_fit():
  with pytest.raises(ValueError, match='expected a weight for each of 1 rules, found 2'):
    made('length', weights=(1.0, 2.0))


@pytest.mark.parametrize('given', [[1.0], [1.0, np.nan], [1.0, 1e300], [[1.0, 2.0]]])
def test_a_rule_that_gives_something_else(given, monkeypatch):
  module = types.SimpleNamespace(rewards=lambda *_: given)
  monkeypatch.setattr(rules, 'load', lambda name: module.rewards)
  with pytest.raises(ValueError, match='expected 2 rewards of the rule odd, each a finite number'):
    each(made('odd'), [Prompt('p')] * 2, ['a', 'b'])
