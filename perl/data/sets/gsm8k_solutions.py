"""Solutions of four models to GSM8K's test problems, right or wrong: what a verifier learns from.

From github.com/openai/grade-school-math (MIT; Cobbe et al. 2021, arXiv 2110.14168): 1,319 problems,
rows {question, ground_truth, 6b_finetuning, ...: {solution, is_correct}}; a solution ends in a line
'A: n'. 38 % of the 5,276 are right, by the number that they end in. Pairs are every right solution
against every wrong one of a problem.

By the problem, 60 % are train, 10 % dev and 30 % test. Nothing trained here may be tested on the
published test split, whose problems these are.
"""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from perl.data.sets import gsm8k
from perl.data.sources import records, tfds
from perl.data.text import dialogue

FILE = 'grade_school_math/data/example_model_solutions.jsonl'
MODELS = ('6b_finetuning', '6b_verification', '175b_finetuning', '175b_verification')
"""GPT-3 by size, tuned on solutions; `verification` is the best of 100 by a verifier."""
DEV, TEST = 60, 70
"""Percentiles at which these splits begin."""

correct, response_metrics = gsm8k.correct, gsm8k.response_metrics


def _solutions(row: Mapping[str, Any]) -> list[dict[str, Any]]:
  """A record a model, its label 1 where the solution is right."""
  return [_record(row, response=[_turn(row[model])], label=int(row[model]['is_correct']),
                  model=model) for model in MODELS]


def _pairs(row: Mapping[str, Any]) -> list[dict[str, Any]]:
  """A record for each right solution beside each wrong one."""
  right = [m for m in MODELS if row[m]['is_correct']]
  return [_record(row, chosen=[_turn(row[a])], rejected=[_turn(row[b])], model=f'{a} > {b}')
          for a, b in itertools.product(right, [m for m in MODELS if m not in right])]


def _problem(row: Mapping[str, Any]) -> list[dict[str, Any]]:
  """The question alone."""
  return [_record(row)]


def _record(row: Mapping[str, Any], *, model: str = '', **answers: Any) -> dict[str, Any]:
  question = row['question'].strip()
  meta = {'answer': str(gsm8k.answer_of(row['ground_truth']))} | ({'model': model} if model else {})
  return {'prompt': [records.turn('user', question)], **answers,
          'group': dialogue.normalised(question), 'meta': meta}


def _turn(answer: Mapping[str, Any]) -> dict[str, Any]:
  if not isinstance(answer['is_correct'], bool):
    raise ValueError(f'is_correct {answer["is_correct"]!r} is neither true nor false')
  return records.turn('assistant', gsm8k.plain(answer['solution']).strip())


def _reader(parse: Any) -> tfds.Reader:
  def read(files: Mapping[str, list]) -> Iterator[tuple[str, dict[str, Any]]]:
    for row in tfds.each(files, parse):
      for record in row:
        yield dialogue.split_at(record['group'], DEV, TEST), record

  return read


SOURCE = gsm8k.SOURCE._replace(name='gsm8k_solutions', parts={
  name: tfds.Part((FILE,), _reader(parse)) for name, parse in (
    ('solutions', _solutions), ('pairs', _pairs), ('problems', _problem))})
KINDS = {'document': ('solutions',), 'demonstration': ('solutions',), 'labelled': ('solutions',),
         'preference': ('pairs',), 'prompt': ('problems',)}
"""Documents and demonstrations are the right solutions."""
load = records.loader(SOURCE, KINDS)
