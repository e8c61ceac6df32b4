"""LoRA (or any method) against full tuning: the table's cells, and the claims that they test.

The published figures stand beside ours and never among them: Parameter Efficient Reinforcement
Learning from Human Feedback (PERL), Sidahmed et al., arXiv 2403.10704 v2, Table 1: best LoRA
against full tuning of PaLM 2 S, least to greatest over its tasks, which are others than ours. VQA
is left out: its figures are of another model and, in part, relative.
"""

import dataclasses
from collections.abc import Callable

from experiments.studies._estimates import (
  Estimate,
  Rows,
  by_seed,
  difference,
  estimate,
  over_seeds,
  sign,
  within,
)

FULL = 'full'
NONE = '–'
SOURCE = 'PERL (arXiv 2403.10704 v2, Table 1), PaLM 2 S'
ACCURACY = 'full 76.6 to 93.1 %; lora 78.7 to 91.8 %'
"""Of reward models: HH harmless, SHP, Reddit TL;DR, UI automation."""
WINS = 'full 63.0 to 96.6 %; lora 61.3 to 98.2 %'
"""Win rate or accuracy of policies: those and BOLT SMS."""


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


METRICS = (
  Metric('RM AUC, test', 'reward', 'auc'),
  Metric('RM AUC of a bag of words, test', 'reward', 'baseline_auc'),
  Metric('RM AUC within groups of both labels, test', 'reward', 'auc_within'),
  Metric('The same of a bag of words, test', 'reward', 'baseline_auc_within'),
  Metric('RM AUC before training (probe), test', 'reward', 'probe_auc'),
  Metric('RM pair accuracy, test', 'reward', 'pair_accuracy', paper=ACCURACY),
  Metric('RM accuracy, test', 'reward', 'accuracy', paper=ACCURACY),
  Metric('RM balanced accuracy, test', 'reward', 'balanced_accuracy'),
  Metric('RL reward, test', 'evaluate', 'reward', 'reward_before'),
  Metric('Gold reward, test', 'evaluate', 'gold_reward', 'gold_reward_before'),
  Metric('Win rate or accuracy after RL', '', '', paper=WINS),
  Metric('KL to the anchor, nats a response', 'rl', 'kl', show='{:.2f}'.format),
  Metric('Exact match, test', 'evaluate', 'exact_match', 'exact_match_before'),
  Metric('Valid API calls, test', 'evaluate', 'valid_api_call', 'valid_api_call_before'),
  Metric('Length, tokens', 'evaluate', 'response_tokens', 'response_tokens_before',
         show='{:.1f}'.format),
  Metric('RM trainable parameters', 'reward', 'parameters_trainable', show='{:,.0f}'.format),
  Metric('RM trainable, % of the model', 'reward', 'trainable_percent', paper='under 0.1 %',
         show='{:.2f}'.format),
  Metric('RM peak memory, MiB', 'reward', 'peak_memory_bytes', show=_mebibytes, ratio=_percent_of,
         paper='43 to 56 % of full'),
  Metric('RM step, ms', 'reward', 'step_seconds', show=_milliseconds, ratio=_times,
         paper='1.5 to 1.9 times full'),
  Metric('RL peak memory, MiB', 'rl', 'peak_memory_bytes', show=_mebibytes, ratio=_percent_of,
         paper='74 to 80 % of full'),
  Metric('RL step, ms', 'rl', 'step_seconds', show=_milliseconds, ratio=_times,
         paper='1.05 to 1.3 times full'),
)


def order(peft: str) -> tuple[bool, str]:
  """Sorts full tuning first."""
  return peft != FULL, peft


def values(rows: Rows, peft: str, stage: str, name: str) -> dict[int, float]:
  """{seed: a figure of the method's stage}, where it is known."""
  if name != 'trainable_percent':
    return by_seed(rows, stage, name, peft=peft)
  trained, total = (by_seed(rows, stage, f'parameters_{x}', peft=peft) for x in (
    'trainable', 'total'))
  return {seed: 100 * n / total[seed] for seed, n in trained.items() if total.get(seed)}


def lines(rows: Rows) -> tuple[list[str], list[list[str]]]:
  """(head, lines): a column a method, one of ratios for each but full, and the paper's."""
  methods = methods_of(rows)
  others = [m for m in methods if m != FULL] if FULL in methods else []
  head = ['', *(f'{m} (n={len(_seeds(rows, m))})' for m in methods),
          *(f'{m} against full' for m in others), 'paper (other tasks and models)']
  body = []
  for metric in METRICS:
    cells = [cell(rows, m, metric) for m in methods]
    if any(c != NONE for c in cells) or not metric.stage:
      body.append([metric.title, *cells, *(against(rows, m, metric) for m in others), metric.paper])
  return head, body


def methods_of(rows: Rows) -> list[str]:
  """The methods in the table's order."""
  return sorted({row['peft'] for row in rows}, key=order)


def _seeds(rows: Rows, peft: str) -> set[int]:
  return {row['seed'] for row in rows if row['peft'] == peft}


def cell(rows: Rows, peft: str, metric: Metric) -> str:
  """'0.712 ± 0.031', or '0.4 → 0.6 ± 0.1' (before and after RL); half the t-interval's width."""
  end = values(rows, peft, metric.stage, metric.name)
  if not end:
    return NONE
  mean = estimate(list(end.values()))
  half = mean.high - mean.mean
  spread = mean.n > 1 and half > 1e-9 * abs(mean.mean)  # more than rounding
  text = metric.show(mean.mean) + (f' ± {metric.show(half)}' if spread else '')
  before = over_seeds(rows, metric.stage, metric.start, peft=peft)
  text = f'{metric.show(before.mean)} → {text}' if before else text
  return text if len(end) == len(_seeds(rows, peft)) else f'{text} (n={len(end)})'


def against(rows: Rows, peft: str, metric: Metric) -> str:
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
BASELINES = (('baseline_auc', 'a bag of words'), ('probe_auc', 'its own start, the probe'))
CHANGES = (('reward', 'reward on test'), ('gold_reward', 'gold reward on test'),
           ('exact_match', 'exact match'), ('valid_api_call', 'the valid-API-call rate'))


def claims(rows: Rows) -> list[str]:
  """What the table says of each claim, in sentences; claims without figures are left out."""
  sentences = []
  for peft in methods_of(rows):
    sentences += _within_full(rows, peft) if peft != FULL else []
    sentences += _beats_baseline(rows, peft)
    sentences += _changes(rows, peft)
  return sentences


def _within_full(rows: Rows, peft: str) -> list[str]:
  sentences = []
  for stage, name, title in QUALITY:
    mine, full = (over_seeds(rows, stage, name, peft=m) for m in (peft, FULL))
    if mine and full:
      interval = (f'[{full.low:.3f}, {full.high:.3f}], n={full.n}' if full.n > 1
                  else f'{full.mean:.3f}, a single seed, which has no interval')
      sentences.append(
        f'{peft} within the interval of full, {title}: {within(mine.mean, full)} '
        f'({peft} {mine.mean:.3f}, n={mine.n}; full {interval}).')
  return sentences


def _beats_baseline(rows: Rows, peft: str) -> list[str]:
  sentences, mine = [], by_seed(rows, 'reward', 'auc', peft=peft)
  for name, title in BASELINES:
    if gain := difference(mine, by_seed(rows, 'reward', name, peft=peft)):
      verdict = 'no' if gain.mean <= 0 else 'yes' if gain.low > 0 else 'yes in the mean, not surely'
      sentences.append(f'RM of {peft} beats {title}, on test: {verdict} '
                       f'(AUC {_signed(gain)} over {gain.n} seeds).')
  return sentences


def _changes(rows: Rows, peft: str) -> list[str]:
  """Paired by seed: the anchor of a seed is the same before and after."""
  sentences = []
  for name, title in CHANGES:
    after, before = (by_seed(rows, 'evaluate', n, peft=peft) for n in (name, f'{name}_before'))
    if change := difference(after, before):
      sentences.append(
        f'RL with {peft}, {title}: {sign(change)} ({_signed(change)}, n={change.n}).')
  return sentences


def _signed(change: Estimate) -> str:
  if change.n < 2:
    return f'{change.mean:+.3f}'
  return f'{change.mean:+.3f} [{change.low:+.3f}, {change.high:+.3f}]'
