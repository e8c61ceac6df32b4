"""Win rates: the responses of one policy against another's, by a judge who sees every pair twice.

A judge may prefer what it is shown first. Each pair is shown in both orders, and is won only if
preferred in both (Sidahmed et al. 2024; Lee et al. 2023, arXiv 2309.00267); anything else is a tie.
"""

import json
import subprocess
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from perl.evaluate.bootstrap import group_bootstrap

Judge = Callable[[Sequence[str], Sequence[Any], Sequence[Any]], np.ndarray]
"""(prompts, first responses, second responses) -> f64[N]: above 0 where the first is preferred,
below where the second is, 0 where neither. Responses are texts, or whatever the judge can read."""

ANSWERS = {'first': 1.0, 'second': -1.0, 'tie': 0.0}


def by_score(score: Callable[[Sequence[str], Sequence[Any]], Sequence[float]]) -> Judge:
  """The judge who prefers the higher score; order cannot matter to it.

  Args:
    score: (prompts, responses) -> one number each, as of a gold reward or a reward model.
  """
  def judge(prompts, first, second):
    return np.asarray(score(prompts, first), np.float64) - np.asarray(
      score(prompts, second), np.float64)

  return judge


def by_command(command: Sequence[str]) -> Judge:
  """The judge who is another program: JSON lines in, an answer a line out.

  It reads {"prompt", "first", "second"} lines on its standard input and writes as many lines, each
  of ANSWERS.

  Args:
    command: the program and its arguments; no shell reads them.

  Raises:
    ValueError: it fails, or answers otherwise.
  """
  def judge(prompts, first, second):
    pairs = [{'prompt': p, 'first': a, 'second': b} for p, a, b in zip(prompts, first, second)]
    text = ''.join(json.dumps(pair) + '\n' for pair in pairs)
    try:
      done = subprocess.run(list(command), input=text, capture_output=True, text=True)
    except OSError as error:
      raise ValueError(f'expected a program to run as judge, found {command[0]!r} ({error}); '
                       'name one that is there') from None
    if done.returncode:
      raise ValueError(f'expected the judge {command[0]} to end with 0, found {done.returncode}: '
                       f'{done.stderr.strip()[-300:]}')
    answers = done.stdout.split()
    wrong = [answer for answer in answers if answer not in ANSWERS]
    if wrong or len(answers) != len(pairs):
      raise ValueError(
        f'expected {len(pairs)} lines of the judge {command[0]}, each {", ".join(ANSWERS)}; found '
        f'{len(answers)} words{f", {wrong[0]!r} among them" if wrong else ""}')
    return np.asarray([ANSWERS[answer] for answer in answers])

  return judge


def verdicts(
  judge: Judge, prompts: Sequence[str], ours: Sequence[Any], theirs: Sequence[Any]
) -> tuple[np.ndarray, np.ndarray]:
  """What the judge says of each pair, ours shown first and ours shown second.

  Returns:
    (first, second), each int[N]: 1 where ours is preferred, -1 where theirs, 0 where neither.

  Raises:
    ValueError: other numbers of responses than of prompts, or verdicts that are not numbers.
  """
  if not len(prompts) == len(ours) == len(theirs) or not len(prompts):
    raise ValueError(f'expected a response of both to each of the prompts, at least one, found '
                     f'{len(ours)} and {len(theirs)} to {len(prompts)}')
  orders = [np.asarray(judge(prompts, ours, theirs)), -np.asarray(judge(prompts, theirs, ours))]
  if not all(x.shape == (len(prompts),) and np.isfinite(x).all() for x in orders):
    raise ValueError(f'expected a finite number for each of the {len(prompts)} pairs, found '
                     f'shapes {[x.shape for x in orders]}, some perhaps not finite')
  return tuple(np.sign(x).astype(int) for x in orders)


def report(
  first: np.ndarray, second: np.ndarray, groups: Sequence, *, bootstrap: int = 1000, seed: int = 0
) -> dict[str, float | int]:
  """Shares of pairs, with 95 % group-bootstrap intervals.

  Args:
    first, second: of `verdicts`.
    groups: [N], what is drawn together.
    bootstrap: replicates; 0 leaves the intervals out.
    seed: of the bootstrap.

  Returns:
    win, tie and loss, which add up to 1; win_rate = win + tie / 2; order_dependent, the share of
    pairs that are ties because the order decided; pairs, their number; each share but the last with
    _low and _high.
  """
  agreed = np.where(first == second, first, 0)
  shares = {
    'win_rate': (agreed + 1) / 2, 'win': agreed == 1, 'tie': agreed == 0, 'loss': agreed == -1,
    'order_dependent': first != second}
  figures: dict[str, float | int] = {}
  for name, values in shares.items():
    values = np.asarray(values, np.float64)
    figures[name] = float(values.mean())
    if bootstrap and name != 'order_dependent':
      figures[f'{name}_low'], figures[f'{name}_high'] = group_bootstrap(
        np.mean, groups, values, n=bootstrap, seed=seed)
  return {**figures, 'pairs': len(agreed)}
