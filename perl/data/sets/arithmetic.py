"""Word problems of one calculation in GSM8K's format: embedded, for rewards that can be verified.

A question adds, subtracts or multiplies two numbers; its solution is one line with the calculation
and a last line '#### n', and gsm8k.py reads and checks that. The texts are our own, none is
GSM8K's. `data.parts` sets the difficulty, by the digits of the larger number (`PARTS`); the smaller
one has one digit, so that sums carry and products stay small. Most documents are not problems, but
bare calculations or sentences with them. Those who wrote the demonstrations of `train` were hasty:
in `HASTE` of them the number is wrong, and who imitates them errs as often; a verifier tells.
Everything follows from `seed`.

Splits: the calculation ('27+5', larger number first) is a problem's group and decides its split
(`dialogue.split_of`), so that no answer to a test question was ever seen in training.
"""

import operator
import random
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from perl.data.examples import Example, check_parts, check_request
from perl.data.sets import gsm8k
from perl.data.sources import layouts, records
from perl.data.text import dialogue

OPERATIONS = {'+': operator.add, '-': operator.sub, '*': operator.mul}


class Calculation(NamedTuple):
  """'27+5=32'."""

  a: int
  sign: str
  b: int

  @property
  def group(self) -> str:
    """What is to be calculated."""
    return f'{self.a}{self.sign}{self.b}'

  @property
  def answer(self) -> int:
    """The number behind '='."""
    return OPERATIONS[self.sign](self.a, self.b)

  def __str__(self) -> str:
    return f'{self.group}={self.answer}'


QUESTIONS = (
  ('+', '{name} has {a} {things} and finds {b}. How many {things} is that?'),
  ('+', 'One crate holds {a} {things}, one {b}. How many {things} do both hold?'),
  ('-', 'Out of {a} {things} {name} loses {b}. How many {things} remain?'),
  ('-', '{name} needs {a} {things} but has {b}. How many {things} are missing?'),
  ('*', '{name} puts {a} {things} into each of {b} sacks. How many {things} are packed?'),
  ('*', '{a} {things} lie on each of {b} shelves. How many {things} lie there?'),
)
"""(sign, question) with places for {name}, {things} and the numbers {a} and {b}."""

NAMES = ('Ada', 'Bruno', 'Carla', 'Dmitri', 'Elif', 'Farid')
THINGS = ('pears', 'nails', 'shells', 'tiles', 'corks', 'plums')
HASTE = 0.6  # of the demonstrations of train are wrong
SLIPS = (1, 2, 10)  # by one of these, up or down
DRILL = 8  # calculations of a document without words
STORY = 3  # of a document of sentences

PARTS = {'one_digit': 1, 'two_digits': 2, 'three_digits': 3}
SIZES = {
  'document': {'train': 16000, 'dev': 300, 'test': 300},
  'demonstration': {'train': 8000, 'dev': 300, 'test': 300},
  'prompt': {'train': 8000, 'dev': 300, 'test': 300},
}
KINDS = tuple(SIZES)
OPTIMUM = 1.  # gold_reward of a right response, for every prompt


def load(split: str, kind: str, *, mirror: str = '', data_dir: str = '', seed: int = 0,
         parts: Sequence[str] = ()) -> list[Example]:
  """Generates the examples of one split and kind; meta['answer'] is the right number.

  Args:
    split: 'train', 'dev' or 'test'.
    kind: of KINDS.
    mirror, data_dir: not needed.
    seed: of the data.
    parts: of PARTS, in turn; () is all.

  Raises:
    ValueError: an unknown split, kind or part.
  """
  check_request('arithmetic', split, kind, KINDS)
  check_parts('arithmetic', parts, PARTS)
  rng = random.Random(f'arithmetic/{seed}/{split}/{kind}')
  digits = [PARTS[part] for part in parts or PARTS]
  examples: list[Example] = []
  while len(examples) < SIZES[kind][split]:
    number = len(examples)
    make = _DOCUMENTS[number % len(_DOCUMENTS)] if kind == 'document' else _problem
    make = _hasty if (kind, split) == ('demonstration', 'train') else make
    row = make(rng, split, digits[number % len(digits)])
    examples += layouts.examples(row, kind, f'arithmetic, {split} {number}')
  return examples


def _calculation(rng: random.Random, split: str, digits: int) -> Calculation:
  """One of the split."""
  while True:
    b, a = sorted((rng.randint(2, 9), rng.randint(max(2, 10 ** (digits - 1)), 10 ** digits - 1)))
    calculation = Calculation(a, rng.choice(tuple(OPERATIONS)), b)
    if dialogue.split_of(calculation.group) == split:
      return calculation


def _drill(rng: random.Random, split: str, digits: int) -> dict[str, Any]:
  """A row of bare calculations: a document from which a base learns to calculate."""
  calculations = [_calculation(rng, split, digits) for _ in range(DRILL)]
  return {'text': ' '.join(map(str, calculations)), 'group': calculations[0].group}


def _story(rng: random.Random, split: str, digits: int) -> dict[str, Any]:
  """A row of sentences, each with its calculation: a document without questions."""
  calculations = [_calculation(rng, split, digits) for _ in range(STORY)]
  texts = []
  for one in calculations:
    question, things = _question(rng, one)
    texts.append(f'{question.partition(".")[0]}: {one} {things}.')
  return {'text': ' '.join(texts), 'group': calculations[0].group}


def _hasty(rng: random.Random, split: str, digits: int) -> dict[str, Any]:
  """A problem whose solution is wrong with probability HASTE; meta['answer'] is right."""
  slip = rng.choice(SLIPS) * rng.choice((-1, 1)) if rng.random() < HASTE else 0
  return _problem(rng, split, digits, slip)


def _problem(rng: random.Random, split: str, digits: int, slip: int = 0) -> dict[str, Any]:
  """A row as gsm8k.py has it: messages, group and meta['answer']; the solution errs by `slip`."""
  calculation = _calculation(rng, split, digits)
  question, things = _question(rng, calculation)
  # Nobody writes of -3 pears.
  answer = calculation.answer + (slip if calculation.answer + slip >= 0 else -slip)
  solution = f'{calculation.group}={answer} {things}.\n#### {answer}'
  turns = [records.turn('user', question), records.turn('assistant', solution)]
  return {'messages': turns, 'group': calculation.group,
          'meta': {'answer': str(calculation.answer)}}


_DOCUMENTS = (_problem, *(_drill, _story) * 3, _drill)
"""What documents are in turn: mostly what teaches a small model to calculate and to copy."""


def _question(rng: random.Random, calculation: Calculation) -> tuple[str, str]:
  """(a question for that calculation, the things that it counts)."""
  question = rng.choice([text for sign, text in QUESTIONS if sign == calculation.sign])
  things = rng.choice(THINGS)
  return question.format(name=rng.choice(NAMES), things=things, a=calculation.a,
                         b=calculation.b), things


def _pattern(question: str) -> re.Pattern:
  """What reads the numbers in a question of that form."""
  words = {'name': r'\w+', 'things': r'\w+', 'a': r'(?P<a>\d+)', 'b': r'(?P<b>\d+)'}
  return re.compile(re.escape(question).replace(r'\{', '{').replace(r'\}', '}').format(**words))


_PATTERNS = tuple((_pattern(text), sign) for sign, text in QUESTIONS)


def answer_of(prompt: str) -> int | None:
  """The right number for a prompt, worked out from its words; None for other text."""
  matches = ((pattern.search(prompt), sign) for pattern, sign in _PATTERNS)
  return next((Calculation(int(match['a']), sign, int(match['b'])).answer
               for match, sign in matches if match), None)


def gold_reward(prompt: str, response: str) -> float:
  """1 for a response that ends in the right number (gsm8k.correct), else 0."""
  answer = answer_of(prompt)
  return float(answer is not None and gsm8k.correct(response, str(answer)))


response_metrics = gsm8k.response_metrics
