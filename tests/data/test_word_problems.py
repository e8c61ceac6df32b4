"""Laws of the embedded word problems: what is right, and that splits share no calculation."""

import math
import re

import pytest

from perl.data.examples import KINDS
from perl.data.sets import arithmetic, gsm8k
from perl.rl.rules import gsm8k as rule

SPLITS = ('train', 'dev', 'test')


@pytest.fixture(autouse=True)
def small_sizes(monkeypatch):
  sizes = {'train': 200, 'dev': 60, 'test': 60}
  monkeypatch.setattr(arithmetic, 'SIZES', dict.fromkeys(arithmetic.SIZES, sizes))


def calculations(example):
  """Every 'a+b' in all that an example says, whose answer is written behind it."""
  said = vars(example)
  text = ' '.join(said.get(name, '') for name in ('text', 'prompt', 'response'))
  return re.findall(r'(\d+[-+*]\d+)=(\d+)', text)


@pytest.mark.parametrize('kind', sorted(arithmetic.SIZES))
def test_the_seed_decides_the_problems(kind):
  first = arithmetic.load('train', kind, seed=3)
  assert first == arithmetic.load('train', kind, seed=3)
  assert first != arithmetic.load('train', kind, seed=4)
  assert len(first) == 200 and all(isinstance(example, KINDS[kind]) for example in first)


@pytest.mark.parametrize('part', arithmetic.PARTS)
def test_every_demonstration_of_dev_and_test_is_right(part):
  for split in ('dev', 'test'):
    examples = arithmetic.load(split, 'demonstration', parts=(part,))
    texts = [example.response for example in examples]
    assert rule.rewards(examples, texts, arithmetic) == [1.0] * len(examples)
    for example in examples:
      assert arithmetic.gold_reward(example.prompt, example.response) == arithmetic.OPTIMUM
      assert str(arithmetic.answer_of(example.prompt)) == example.meta['answer']
      assert example.response.endswith(f'#### {example.meta["answer"]}')
      assert calculations(example) == [(example.group, example.meta['answer'])]


@pytest.mark.parametrize('part', arithmetic.PARTS)
def test_demonstrations_of_train_err_as_often_as_stated(part, monkeypatch):
  monkeypatch.setitem(arithmetic.SIZES['demonstration'], 'train', 4000)
  wrong = 0
  for example in arithmetic.load('train', 'demonstration', parts=(part,)):
    assert str(arithmetic.answer_of(example.prompt)) == example.meta['answer']
    (calculation, said), = calculations(example)
    slip = int(said) - int(example.meta['answer'])
    assert calculation == example.group and abs(slip) in (0, *arithmetic.SLIPS)
    # Verifier and gold reward see it, and both numbers of a solution are the same.
    assert example.response.endswith(f'#### {said}')
    assert rule.rewards([example], [example.response], arithmetic) == [float(slip == 0)]
    wrong += slip != 0
  # Six standard errors of a share of 4,000.
  assert abs(wrong / 4000 - arithmetic.HASTE) < 6 * math.sqrt(0.25 / 4000)


def test_prompts_know_their_answers_as_demonstrations_do():
  for example in arithmetic.load('test', 'prompt'):
    assert str(arithmetic.answer_of(example.prompt)) == example.meta['answer']
    a, b = map(int, re.findall(r'\d+', example.prompt))
    assert {a, b} == set(map(int, re.findall(r'\d+', example.group)))


def test_every_calculation_but_of_hasty_people_is_right_and_of_its_own_split():
  seen = {split: set() for split in SPLITS}
  for split in SPLITS:
    for kind in arithmetic.SIZES:
      for seed in range(2):
        for example in arithmetic.load(split, kind, seed=seed):
          seen[split].add(example.group)
          for calculation, answer in calculations(example):
            a, sign, b = re.split(r'([-+*])', calculation)
            hasty = (split, kind) == ('train', 'demonstration')
            assert arithmetic.OPERATIONS[sign](int(a), int(b)) == int(answer) or hasty
            seen[split].add(calculation)
  assert not seen['train'] & (seen['dev'] | seen['test']) and not seen['dev'] & seen['test']


def test_documents_are_a_problem_drills_and_stories_in_turn():
  turn = (1, *(arithmetic.DRILL, arithmetic.STORY) * 3, arithmetic.DRILL)
  for number, document in enumerate(arithmetic.load('train', 'document')):
    assert len(calculations(document)) == turn[number % 8]
    assert ('<|agent|>' in document.text) == (number % 8 == 0)
    assert '?' not in document.text or number % 8 == 0


@pytest.mark.parametrize('part, digits', arithmetic.PARTS.items())
def test_a_part_has_numbers_of_its_size(part, digits):
  for example in arithmetic.load('dev', 'prompt', parts=(part,)):
    larger, smaller = re.findall(r'\d+', example.group)
    assert (len(larger), len(smaller)) == (digits, 1) and int(larger) >= int(smaller) > 1


def test_without_parts_all_come_in_turn():
  groups = [re.match(r'\d+', e.group)[0] for e in arithmetic.load('train', 'prompt')]
  assert [len(number) for number in groups] == [1 + i % 3 for i in range(200)]


def test_every_question_is_asked_and_its_numbers_are_read_in_place():
  prompts = ' '.join(e.prompt for e in arithmetic.load('train', 'prompt'))
  for sign, question in arithmetic.QUESTIONS:
    said = question.format(name='Zoe', things='bolts', a=31, b=7)
    expected = {'+': 38, '-': 24, '*': 217}[sign]
    assert arithmetic.answer_of(f'<|user|>{said}<|agent|>') == expected
    assert question.rpartition('{things} ')[2] in prompts


def test_gold_reward_by_hand():
  prompt = '<|user|>Ada has 27 pears and finds 8. How many pears is that?<|agent|>'
  for right in ('27+8=35 pears.\n#### 35', '#### 35.0', r'\boxed{35}', 'It is 35.'):
    assert arithmetic.gold_reward(prompt, right) == 1.0
  for wrong in ('27+8=35 pears.\n#### 34', '#### 3,5', '', 'none', '35, no, 36'):
    assert arithmetic.gold_reward(prompt, wrong) == 0.0
  assert arithmetic.gold_reward('<|user|>How many?<|agent|>', '#### 35') == 0.0
  assert arithmetic.response_metrics(prompt, '35', '#### 35') == {'correct': 1.0}
  assert gsm8k.correct('27+8=35 pears. #### 35', '35')


@pytest.mark.parametrize('asked, said', [
  (('train', 'preference', ()), 'a kind among document'),
  (('trian', 'prompt', ()), 'a split among'),
  (('train', 'prompt', ('two',)), 'a part among one_digit')])
def test_what_it_has_not_is_an_error(asked, said):
  split, kind, parts = asked
  with pytest.raises(ValueError, match=f'arithmetic: expected {said}.* found'):
    arithmetic.load(split, kind, parts=parts)
