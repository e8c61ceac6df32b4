r"""GSM8K: grade-school mathematics with worked solutions, for rewards that can be verified.

From github.com/openai/grade-school-math (MIT; Cobbe et al. 2021, arXiv 2110.14168): 7,473 problems
to train on and 1,319 to test, rows {question, answer}. A solution holds its sums between << and >>
and ends in a line '#### n'. A tenth of train, by the question, is dev.

`answer_of` reads the number that a text ends in: after '####', in the last \boxed{...}, or else
the last number that it names. `correct` compares numbers, not their spelling.
"""

import decimal
import re
from collections.abc import Iterator, Mapping
from typing import Any

from perl.data.sources import pins, records, tfds
from perl.data.text import dialogue

_FOLDER = 'grade_school_math/data'
_NUMBER = re.compile(r'''
  (?:(?<![\w)])[-−])?                 # a sign, where it is no minus between two terms
  \\?\$?                              # LaTeX has it as \$
  (?:\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)''', re.VERBOSE)
_CALCULATION = re.compile(r'<<[^<>]*>>')
_BOXED = re.compile(r'\\boxed\s*\{([^{}]*)\}')


def _read(files: Mapping[str, list]) -> Iterator[tuple[str, dict[str, Any]]]:
  for name, record in tfds.each_by_file(files, _record):
    split = name.removeprefix(f'{_FOLDER}/').removesuffix('.jsonl')
    yield records.held_out(record['group'], split), record


def _record(row: Mapping[str, str]) -> dict[str, Any]:
  question, solution = row['question'].strip(), row['answer'].strip()
  answer = answer_of(solution)
  if answer is None or '####' not in solution:
    raise ValueError(f'no line "#### n" in the answer, which ends in {solution[-40:]!r}')
  turns = [records.turn('user', question),
           records.turn('assistant', plain(solution))]
  return {'messages': turns, 'group': dialogue.normalised(question),
          'meta': {'answer': str(answer)}}


SOURCE = tfds.Source(
  'gsm8k', f'https://raw.githubusercontent.com/openai/grade-school-math/{pins.GSM8K}',
  {'main': tfds.Part((f'{_FOLDER}/train.jsonl', f'{_FOLDER}/test.jsonl'), _read)},
  """@article{cobbe2021gsm8k, title={Training Verifiers to Solve Math Word Problems},
  author={Cobbe et al.}, journal={arXiv:2110.14168}, year={2021}}""",
  pins.CHECKSUMS)
KINDS = dict.fromkeys(('document', 'demonstration', 'prompt'), ('main',))
"""meta['answer'] of an example is the right number."""
load = records.loader(SOURCE, KINDS)


def plain(solution: str) -> str:
  """A solution without the calculations between << and >>."""
  return _CALCULATION.sub('', solution)


def answer_of(text: str) -> decimal.Decimal | None:
  """The number that a solution ends in; None where it names none."""
  ending = text.rpartition('####')[2] if '####' in text else (_BOXED.findall(text) or [text])[-1]
  numbers = _NUMBER.findall(ending)
  if not numbers:
    return None
  # After '####' the number comes first; a text that only mentions numbers ends in its answer.
  number = numbers[0 if '####' in text else -1]
  return decimal.Decimal(re.sub(r'[\\$,]', '', number).replace('−', '-'))


def number(answer: Any) -> decimal.Decimal | None:
  """The right number as data sets have it: a number, or text that is or ends in one ('1,200')."""
  if isinstance(answer, bool) or not isinstance(answer, int | float | str):
    return None
  try:
    number = decimal.Decimal(str(answer).strip())
  except decimal.InvalidOperation:
    return answer_of(answer)
  return number if number.is_finite() else None


def correct(response: str, answer: Any) -> bool:
  """Whether a response ends in the `number` of an answer: 1,200 is 1200.00."""
  given = answer_of(response)
  return given is not None and given == number(answer)


def response_metrics(prompt: str, response: str, reference: str) -> dict[str, float]:
  """correct: 1. where the response ends in the number that the reference ends in."""
  del prompt
  return {'correct': float(correct(response, str(answer_of(reference))))}
