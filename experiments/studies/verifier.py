r"""GSM8K's answer checker over all its solutions: right ones, the same rewritten, corrupted ones.

    python -m experiments.studies verifier --mirror=<folder> \
        --json=experiments/results/gsm8k_verifier.json

The mirror is laid out as github.com/openai/grade-school-math. What is run is the rule that rewards
in RL (perl/rl/rules/gsm8k.py); the right number is read here in another way, as what stands behind
the last '#### ', without commas. Every rewriting keeps that number, so all should be accepted, and
every corruption changes or removes it, so none should. Both are functions of a solution alone.
"""

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from experiments.studies._engine import Table
from experiments.studies._jobs import Spec
from perl.config.fields import ConfigError
from perl.data.examples import Prompt
from perl.data.sets import gsm8k
from perl.data.sources import tfds
from perl.rl.rules import gsm8k as rule
from perl.train import provenance

NEEDS = ('mirror',)


class Solved(NamedTuple):
  """A reference solution: the lines before its answer, and the answer."""

  body: str
  answer: int

  def ending(self, text: str) -> str:
    """The solution with another last line."""
    return f'{self.body}\n{text}'


Change = Callable[[Solved], str | None]
"""A solution's new text; None where the change does not apply to it."""

REWRITTEN: Mapping[str, Change] = {
  'no calculator annotations': lambda s: re.sub('<<[^<>]*>>', '', s.ending(f'#### {s.answer}')),
  'thousands separators': lambda s: s.ending(f'#### {s.answer:,}') if _thousands(s) else None,
  'no thousands separators': lambda s: s.ending(f'#### {s.answer}') if _thousands(s) else None,
  'trailing .0': lambda s: s.ending(f'#### {s.answer}.0'),
  'trailing .00 and separators': lambda s: s.ending(f'#### {s.answer:,}.00'),
  'full stop': lambda s: s.ending(f'#### {s.answer}.'),
  'dollar sign': lambda s: s.ending(f'#### {"-" * (s.answer < 0)}${abs(s.answer)}'),
  'units': lambda s: s.ending(f'#### {s.answer} apples'),
  'per cent': lambda s: s.ending(f'#### {s.answer}%'),
  'bold': lambda s: s.ending(f'#### **{s.answer}**'),
  'white space': lambda s: s.ending(f'\t ####  \t{s.answer} \r\n\n'),
  'no white space': lambda s: s.ending(f'####{s.answer}'),
  'typographic minus': lambda s: s.ending(f'#### −{-s.answer}') if s.answer < 0 else None,
  'boxed': lambda s: s.ending(rf'So it is $\boxed{{{s.answer}}}$.'),
  'boxed, with dollar sign and separators': lambda s: s.ending(
    rf'\boxed{{ {"-" * (s.answer < 0)}\${abs(s.answer):,} }}'),
  'boxed, then another number': lambda s: s.ending(
    rf'So it is \boxed{{{s.answer}}}, not {s.answer + 1}.'),
  'in words': lambda s: s.ending(f'The answer is {s.answer}.'),
  'wrong first, then right': lambda s: s.ending(f'#### {s.answer + 1}\nNo.\n#### {s.answer}'),
}
CORRUPTED: Mapping[str, Change] = {
  'one more': lambda s: s.ending(f'#### {s.answer + 1}'),
  'one less': lambda s: s.ending(f'#### {s.answer - 1}'),
  'digits transposed': lambda s: _spelt(s, _transposed),
  'digit changed': lambda s: _spelt(s, lambda d: str((int(d[0]) + 5) % 10) + d[1:]),
  'digit dropped': lambda s: _spelt(s, lambda d: d[:-1]),
  'digit added': lambda s: _spelt(s, lambda d: d + '1'),
  'sign flipped': lambda s: s.ending(f'#### {-s.answer}') if s.answer else None,
  'ten times': lambda s: s.ending(f'#### {10 * s.answer}') if s.answer else None,
  'a half more': lambda s: s.ending(f'#### {s.answer}.5'),
  'decimal point': lambda s: _spelt(s, lambda d: f'{d[:-1]}.{d[-1]}' if int(d) else ''),
  'thousands separator misplaced': lambda s: _spelt(s, lambda d: d[:-1] and f'{d[:-1]},{d[-1]}'),
  'answer removed': lambda s: s.ending('####'),
  'answer in words': lambda s: s.ending('#### unknown'),
  'all numbers removed': lambda s: re.sub(r'\d', '', s.ending(f'#### {s.answer}')),
  'empty': lambda s: '',
  'boxed wrong': lambda s: s.ending(rf'\boxed{{{s.answer + 1}}}'),
  'boxed wrong, right beside it': lambda s: s.ending(
    rf'\boxed{{{s.answer + 1}}}, that is, {s.answer}.'),
  'boxed right, then wrong': lambda s: s.ending(rf'\boxed{{{s.answer}}} \boxed{{{s.answer + 1}}}'),
  'boxed empty': lambda s: s.ending(r'\boxed{}'),
  'wrong, right beside it': lambda s: s.ending(f'#### {s.answer + 1}, not {s.answer}'),
  'right first, then wrong': lambda s: s.ending(f'#### {s.answer}\n#### {s.answer + 1}'),
  'wrong in words': lambda s: s.ending(f'The answer is {s.answer + 1}.'),
}


def _thousands(s: Solved) -> bool:
  return abs(s.answer) >= 1000


def _spelt(s: Solved, change: Callable[[str], str]) -> str | None:
  """The solution with the answer's digits changed; None where that leaves none, or the value."""
  digits = change(str(abs(s.answer)))
  same = digits.replace('.', '', 1).isdigit() and float(digits) == abs(s.answer)
  return None if not digits or same else s.ending(f'#### {"-" * (s.answer < 0)}{digits}')


def _transposed(digits: str) -> str:
  """The first two neighbours that differ, exchanged; '' where all are alike."""
  place = next((i for i in range(len(digits) - 1) if digits[i] != digits[i + 1]), None)
  if place is None:
    return ''
  return digits[:place] + digits[place + 1] + digits[place] + digits[place + 2:]


def solved(row: Mapping[str, str]) -> Solved:
  """A row {question, answer} of the published files."""
  body, _, answer = row['answer'].rpartition('\n#### ')
  return Solved(body, int(answer.replace(',', '')))


def accepted(texts: Sequence[str], answers: Sequence[int]) -> list[bool]:
  """Whether RL's rule rewards each text, whose right answer is given."""
  prompts = [Prompt('', meta={'answer': str(answer)}) for answer in answers]
  return [reward == 1.0 for reward in rule.rewards(prompts, texts, gsm8k)]


def check(rows: Sequence[Mapping[str, str]]) -> dict[str, Any]:
  """What the checker makes of the solutions of rows {question, answer}.

  Returns:
    {'published', 'rewritten', 'corrupted'}, each {kind: {count, accepted, share, surprises}}:
    surprises are the first texts that were rejected, or of corrupted ones accepted. `published`
    has the one kind 'as published'; the others have 'all' too.
  """
  solutions = [solved(row) for row in rows]
  changed = {'rewritten': REWRITTEN, 'corrupted': CORRUPTED}
  whole = _counted([(row['answer'], s.answer) for row, s in zip(rows, solutions)], True)
  return {'published': {'as published': whole}} | {
    name: _by_kind(solutions, kinds, name == 'rewritten') for name, kinds in changed.items()}


def _by_kind(solutions: Sequence[Solved], kinds: Mapping[str, Change], expected: bool) -> dict:
  report = {}
  for kind, change in kinds.items():
    texts = [(change(s), s.answer) for s in solutions]
    report[kind] = _counted([pair for pair in texts if pair[0] is not None], expected)
  whole = {name: sum(one[name] for one in report.values()) for name in ('count', 'accepted')}
  return report | {'all': whole | {'share': _share(whole)}}


def _counted(pairs: Sequence[tuple[str, int]], expected: bool) -> dict[str, Any]:
  verdicts = accepted([text for text, _ in pairs], [answer for _, answer in pairs])
  counts = {'count': len(pairs), 'accepted': sum(verdicts)}
  wrong = [text for (text, _), verdict in zip(pairs, verdicts) if verdict != expected]
  return counts | {'share': _share(counts), 'surprises': wrong[:3]}


def _share(counts: Mapping[str, int]) -> float | None:
  return counts['accepted'] / counts['count'] if counts['count'] else None


def read(mirror: str) -> dict[str, list[dict[str, str]]]:
  """{file: its rows} of the published files.

  Raises:
    ConfigError: the mirror does not hold them.
  """
  try:
    paths = tfds.present(gsm8k.SOURCE, gsm8k.SOURCE.parts['main'].files, mirror)
    return {name: tfds.read_rows(path) for name, path in paths.items()}
  except (OSError, ValueError) as error:
    raise ConfigError(str(error)) from error


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Where the solutions are."""
  parser.add_argument('--mirror', default='', help='folder laid out as GSM8K\'s public home')


def collect(spec: Spec, options: argparse.Namespace) -> dict[str, Any]:
  """{'files': {name: its number of rows}, 'published', 'rewritten', 'corrupted', where it ran}."""
  files = read(options.mirror)
  return {'files': {name: len(rows) for name, rows in files.items()},
          **check([row for rows in files.values() for row in rows]), **provenance.record()}


def table(results: Mapping[str, Any]) -> Table:
  """A line a kind of solution."""
  body = [[name, kind, f'{one["count"]:,}', f'{one["accepted"]:,}',
           '–' if one['share'] is None else f'{100 * one["share"]:.2f} %']
          for name in ('published', 'rewritten', 'corrupted')
          for kind, one in results[name].items()]
  return ['solutions', 'kind', 'number', 'accepted', 'share'], body, [
    'Expected: 100 % of published and rewritten solutions, 0 % of corrupted ones.']
