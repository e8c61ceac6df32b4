"""What sampled responses are like: metrics as means with intervals, and which ones to show."""

from collections.abc import Mapping, Sequence

import numpy as np

from perl.evaluate.bootstrap import group_bootstrap


def summarize(
  tokens: Sequence[Sequence[int]], finished: Sequence[bool], values: Mapping[str, Sequence[float]],
  groups: Sequence, *, bootstrap: int = 1000, seed: int = 0,
) -> dict[str, float | int]:
  """Metrics of N responses.

  Args:
    tokens: ids of each response, its EOS included.
    finished: whether it ends in EOS.
    values: {name: one number a response}, as reward, gold_reward, exact_match; NaN where the metric
      does not apply to a response. A metric that applies to none is left out.
    groups: [N], what is drawn together in the bootstrap.
    bootstrap: replicates; 0 leaves the intervals out.
    seed: of the bootstrap.

  Returns:
    the mean of each value, of response_tokens and finished (the EOS rate), with _low and _high
    (95 %); distinct_1, distinct_2 and repetition of the tokens; responses, their number.

  Raises:
    ValueError: values or groups for another number of responses.
  """
  columns = {**values, 'response_tokens': [len(t) for t in tokens], 'finished': finished}
  report: dict[str, float | int] = {}
  for name, column in columns.items():
    column = np.asarray(column, np.float64)
    if column.shape != (len(tokens),):
      raise ValueError(f'expected {name} to have one number for each of {len(tokens)} responses, '
                       f'found shape {column.shape}')
    if np.isfinite(column).any():
      report[name] = mean(column)
      if bootstrap:
        report[f'{name}_low'], report[f'{name}_high'] = group_bootstrap(
          mean, groups, column, n=bootstrap, seed=seed)
  report |= {f'distinct_{n}': distinct(tokens, n) for n in (1, 2)}
  return {**report, 'repetition': repetition(tokens), 'responses': len(tokens)}


def monitors(
  tokens: Sequence[Sequence[int]], finished: Sequence[bool], logprobs: Sequence[float]
) -> dict[str, float]:
  """What changes first where a policy learns to please its reward model; of N sampled responses.

  Args:
    tokens: ids of each response, its EOS included.
    finished: whether it ends in EOS.
    logprobs: [N], log pi of each response, nats.

  Returns:
    response_tokens, their mean length; finished, the EOS rate; entropy, the mean of -log pi over
    sampled tokens, in nats a token; repetition and distinct_2.
  """
  lengths = [len(row) for row in tokens]
  return {
    'response_tokens': mean(lengths),
    'finished': mean(finished),
    'entropy': -float(np.sum(logprobs, dtype=np.float64)) / max(sum(lengths), 1),
    'repetition': repetition(tokens),
    'distinct_2': distinct(tokens, 2),
  }


def change(
  before: Sequence[float], after: Sequence[float], groups: Sequence, *, bootstrap: int = 1000,
  seed: int = 0,
) -> dict[str, float]:
  """The mean of after - before on the same prompts, with its 95 % group-bootstrap interval.

  The pairing takes out what the prompts share, so that it is narrower than two intervals apart.

  Returns:
    {'change', 'change_low', 'change_high'}; NaN where no prompt has both.
  """
  difference = np.asarray(after, np.float64) - np.asarray(before, np.float64)
  low, high = group_bootstrap(mean, groups, difference, n=bootstrap, seed=seed)
  return {'change': mean(difference), 'change_low': low, 'change_high': high}


def mean(values: Sequence[float]) -> float:
  """Over the finite values; NaN if there is none."""
  values = np.asarray(values, np.float64)
  values = values[np.isfinite(values)]
  return float(values.mean()) if len(values) else float('nan')


def distinct(tokens: Sequence[Sequence[int]], n: int) -> float:
  """Distinct n-grams over all n-grams of all responses (Li et al. 2016); 0 if there is none."""
  grams = [gram for row in tokens for gram in _grams(row, n)]
  return len(set(grams)) / len(grams) if grams else 0.0


def repetition(tokens: Sequence[Sequence[int]], n: int = 4) -> float:
  """Mean over responses of the share of n-grams that occurred in it before; 0 for short ones.

  1 - distinct / all within a response (Welleck et al. 2020, seq-rep-n): a loop comes near 1.
  """
  shares = [1 - len(set(grams)) / len(grams) if (grams := _grams(row, n)) else 0. for row in tokens]
  return float(np.mean(shares)) if shares else 0.0


def spread(before: Sequence[float], after: Sequence[float], count: int) -> list[int]:
  """Rows to show: evenly over the order of after - before, from largest loss to largest gain.

  Losses are shown with the gains, so that the choice flatters nobody. Ties stay in their order;
  NaN counts as no change.

  Args:
    before, after: [N], a reward of the two responses to each prompt.
    count: rows wanted; all if there are fewer.

  Returns:
    indices in that order.
  """
  gain = np.nan_to_num(np.asarray(after, np.float64) - np.asarray(before, np.float64))
  order = np.argsort(gain, kind='stable')
  places = np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int)
  return order[places].tolist()


def _grams(row: Sequence[int], n: int) -> list[tuple[int, ...]]:
  return [tuple(row[i:i + n]) for i in range(len(row) - n + 1)]
