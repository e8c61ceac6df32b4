"""LoRA (or any method) against full tuning: the table's cells, and the claims that they test."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from experiments import paper
from experiments.statistics import Estimate, estimate, sign, within

Row = dict[str, Any]
FULL = 'full'
NONE = '–'


@dataclasses.dataclass(frozen=True)
class Metric:
  """One line of the table: a figure of a stage's summary, over seeds."""

  title: str
  stage: str
  name: str
  start: str = ''  # its name before RL, if the cell shows both
  paper: str = NONE
  show: Callable[[float], str] = '{:.3f}'.format
  ratio: Callable[[float, float], str] | None = None  # (method's, full's) -> text


def _percent_of(mine: float, full: float) -> str:
  return f'{100 * mine / full:.0f} % of full'


def _times(mine: float, full: float) -> str:
  return f'{full / mine:.2f} times full'


def _mebibytes(value: float) -> str:
  return f'{value / 2**20:.1f}'


def _milliseconds(value: float) -> str:
  return f'{1000 * value:.0f}'


_ACCURACY = '; '.join(f'{m} {paper.spread(paper.REWARD_ACCURACY[m])} %' for m in ('full', 'lora'))
_WINS = '; '.join(f'{m} {paper.spread(paper.POLICY_WIN_RATE[m])} %' for m in ('full', 'lora'))

METRICS = (
  Metric('RM AUC, test', 'reward', 'auc'),
  Metric('RM AUC of a bag of words, test', 'reward', 'baseline_auc'),
  Metric('RM AUC before training (probe), test', 'reward', 'probe_auc'),
  Metric('RM pair accuracy, test', 'reward', 'pair_accuracy', paper=_ACCURACY),
  Metric('RM accuracy, test', 'reward', 'accuracy', paper=_ACCURACY),
  Metric('RM balanced accuracy, test', 'reward', 'balanced_accuracy'),
  Metric('RL reward, test', 'evaluate', 'reward', 'reward_before'),
  Metric('Gold reward, test', 'evaluate', 'gold_reward', 'gold_reward_before'),
  Metric('Win rate or accuracy after RL', '', '', paper=_WINS),
  Metric('KL to the anchor, nats a response', 'rl', 'kl', show='{:.2f}'.format),
  Metric('Exact match, test', 'evaluate', 'exact_match', 'exact_match_before'),
  Metric('Valid API calls, test', 'evaluate', 'valid_api_call', 'valid_api_call_before'),
  Metric('Length, tokens', 'evaluate', 'response_tokens', 'response_tokens_before',
         show='{:.1f}'.format),
  Metric('RM trainable parameters', 'reward', 'parameters_trainable', show='{:,.0f}'.format),
  Metric('RM trainable, % of the model', 'reward', 'trainable_percent', paper=paper.PARAMETERS,
         show='{:.2f}'.format),
  Metric('RM peak memory, MiB', 'reward', 'peak_memory_bytes', show=_mebibytes, ratio=_percent_of,
         paper=paper.RATIOS['reward_memory']),
  Metric('RM step, ms', 'reward', 'step_seconds', show=_milliseconds, ratio=_times,
         paper=paper.RATIOS['reward_speed']),
  Metric('RL peak memory, MiB', 'rl', 'peak_memory_bytes', show=_mebibytes, ratio=_percent_of,
         paper=paper.RATIOS['rl_memory']),
  Metric('RL step, ms', 'rl', 'step_seconds', show=_milliseconds, ratio=_times,
         paper=paper.RATIOS['rl_speed']),
)


def method_order(peft: str) -> tuple[bool, str]:
  """Sorts full tuning first."""
  return peft != FULL, peft


def values(rows: Sequence[Row], peft: str, stage: str, name: str) -> dict[int, float]:
  """{seed: a figure of the method's stage}, where it is known."""
  found = {row['seed']: _figure(row.get(stage, {}), name) for row in rows if row['peft'] == peft}
  return {seed: v for seed, v in found.items() if v is not None}


def _figure(summary: dict[str, Any], name: str) -> float | None:
  if name == 'trainable_percent':
    trainable, total = summary.get('parameters_trainable'), summary.get('parameters_total')
    return 100 * trainable / total if trainable is not None and total else None
  value = summary.get(name)
  return value if isinstance(value, (int, float)) else None


def table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
  """(head, body): a column a method, one of ratios for each but full, and the paper's."""
  methods = methods_of(rows)
  others = [m for m in methods if m != FULL] if FULL in methods else []
  seeds = {m: len({row['seed'] for row in rows if row['peft'] == m}) for m in methods}
  head = ['', *(f'{m} (n={seeds[m]})' for m in methods), *(f'{m} against full' for m in others),
          'paper (other tasks and models)']
  body = []
  for metric in METRICS:
    cells = [cell(rows, m, metric) for m in methods]
    if any(c != NONE for c in cells) or not metric.stage:
      body.append([metric.title, *cells, *(against(rows, m, metric) for m in others), metric.paper])
  return head, body


def methods_of(rows: Sequence[Row]) -> list[str]:
  """The methods in the table's order."""
  return sorted({row['peft'] for row in rows}, key=method_order)


def cell(rows: Sequence[Row], peft: str, metric: Metric) -> str:
  """'0.712 ± 0.031', or '0.4 → 0.6 ± 0.1' (before and after RL); half the t-interval's width."""
  end = values(rows, peft, metric.stage, metric.name)
  if not end:
    return NONE
  text = shown(estimate(list(end.values())), metric.show)
  start = values(rows, peft, metric.stage, metric.start) if metric.start else {}
  before = estimate(list(start.values()))
  text = f'{metric.show(before.mean)} → {text}' if before else text
  expected = len({row['seed'] for row in rows if row['peft'] == peft})
  return text if len(end) == expected else f'{text} (n={len(end)})'


def shown(found: Estimate, show: Callable[[float], str]) -> str:
  """'mean ± half', without the half for a single seed or where there is no spread."""
  half = found.high - found.mean
  spread = found.n > 1 and half > 1e-9 * abs(found.mean)  # more than rounding
  return show(found.mean) + (f' ± {show(half)}' if spread else '')


def against(rows: Sequence[Row], peft: str, metric: Metric) -> str:
  """The ratio of the means over the seeds that both methods have."""
  if metric.ratio is None:
    return NONE
  mine, full = (values(rows, m, metric.stage, metric.name) for m in (peft, FULL))
  seeds = sorted(mine.keys() & full.keys())
  if not seeds or not all(mine[s] and full[s] for s in seeds):
    return NONE
  return metric.ratio(sum(mine[s] for s in seeds), sum(full[s] for s in seeds))


QUALITY = (('reward', 'auc', 'RM AUC on test'),
           ('reward', 'pair_accuracy', 'RM pair accuracy on test'),
           ('evaluate', 'reward', 'RL reward on test'),
           ('evaluate', 'gold_reward', 'gold reward on test'))
BASELINES = (('auc', 'baseline_auc', 'a bag of words'),
             ('auc', 'probe_auc', 'its own start, the probe'))
CHANGES = (('evaluate', 'reward', 'reward_before', 'reward on test'),
           ('evaluate', 'gold_reward', 'gold_reward_before', 'gold reward on test'),
           ('evaluate', 'exact_match', 'exact_match_before', 'exact match'),
           ('evaluate', 'valid_api_call', 'valid_api_call_before', 'the valid-API-call rate'))


def claims(rows: Sequence[Row]) -> list[str]:
  """What the table says of each claim, in sentences; claims without figures are left out."""
  out = []
  for peft in methods_of(rows):
    out += _within_full(rows, peft) if peft != FULL else []
    out += _beats_baseline(rows, peft)
    out += _changes(rows, peft)
  return out


def _within_full(rows: Sequence[Row], peft: str) -> list[str]:
  out = []
  for stage, name, title in QUALITY:
    mine, full = (estimate(list(values(rows, m, stage, name).values())) for m in (peft, FULL))
    if mine and full:
      interval = (f'[{full.low:.3f}, {full.high:.3f}], n={full.n}' if full.n > 1
                  else f'{full.mean:.3f}, a single seed, which has no interval')
      out.append(f'{peft} within the interval of full, {title}: {within(mine.mean, full)} '
                 f'({peft} {mine.mean:.3f}, n={mine.n}; full {interval}).')
  return out


def _beats_baseline(rows: Sequence[Row], peft: str) -> list[str]:
  out = []
  for name, baseline, title in BASELINES:
    mine, theirs = (values(rows, peft, 'reward', n) for n in (name, baseline))
    seeds = sorted(mine.keys() & theirs.keys())
    if seeds:
      gain = estimate([mine[s] - theirs[s] for s in seeds])
      verdict = 'no' if gain.mean <= 0 else 'yes' if gain.low > 0 else 'yes in the mean, not surely'
      out.append(f'RM of {peft} beats {title}, on test: {verdict} '
                 f'(AUC {_signed(gain)} over {len(seeds)} seeds).')
  return out


def _changes(rows: Sequence[Row], peft: str) -> list[str]:
  """Paired by seed: the anchor of a seed is the same before and after."""
  out = []
  for stage, name, start, title in CHANGES:
    after, before = values(rows, peft, stage, name), values(rows, peft, stage, start)
    seeds = sorted(after.keys() & before.keys())
    if seeds:
      change = estimate([after[s] - before[s] for s in seeds])
      out.append(f'RL with {peft}, {title}: {sign(change)} ({_signed(change)}, n={change.n}).')
  return out


def _signed(change: Estimate) -> str:
  if change.n < 2:
    return f'{change.mean:+.3f}'
  return f'{change.mean:+.3f} [{change.low:+.3f}, {change.high:+.3f}]'


def notes(rows: Sequence[Row]) -> list[str]:
  """How to read the table."""
  seeds = sorted({row['seed'] for row in rows})
  return [
    f'Mean over seeds {", ".join(map(str, seeds))} ± half the 95 % t-interval (n - 1 degrees of '
    'freedom); "→" is from before RL to after it.',
    f'The last column is published by {paper.SOURCE}: other tasks, other models, not ours.',
  ]
