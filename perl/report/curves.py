"""The report's curves: a section a stage, from its metrics.jsonl."""

import re

from etils import epath

from perl.config import runs
from perl.jobs import STAGES, Stage
from perl.report.figures import Series, finite, line_chart, smooth

NAMES = {
  'kl': 'KL to the anchor', 'auc': 'ROC AUC', 'response_tokens': 'Length', 'lr': 'Learning rate',
  'grad_norm': 'Gradient norm', 'finished': 'Ends in EOS', 'step_seconds': 'Time of a step',
  'distinct_2': 'Distinct pairs of tokens',
}
UNITS = {
  'kl': 'nats a response', 'response_tokens': 'tokens', 'step_seconds': 'seconds',
  'loss': 'nats', 'entropy': 'nats a token', 'repetition': 'share of 4-grams, within a response',
  'uncertainty': 'of the reward model, in its units', 'chosen_logprob': 'nats a response',
  'rejected_logprob': 'nats a response', 'chosen_log_ratio': 'nats a response',
}
HIDDEN = re.compile(
  '(_low|_high)$|^(step|time|finite|examples|responses|groups|degenerate_replicates)$')
COLOURS = {'train': 0, 'dev': 1, 'test': 2}


def sections(workdir: epath.Path, summaries: dict[str, dict]) -> list[tuple[str, str]]:
  """(title, HTML) for each stage of workdir that wrote metrics."""
  optimum, out = runs.optimum(summaries), []
  for name, stage in STAGES.items():
    metrics = collect(runs.read_metrics(workdir / name))
    if metrics:
      out.append((stage.title, _section(stage, metrics, optimum)))
  return out


def collect(rows: list[dict]) -> dict[str, dict[str, list[tuple[float, float]]]]:
  """{metric: {'train' or 'dev': points}} of rows {'step', 'train/loss': ..., 'dev/auc': ...}."""
  out: dict[str, dict[str, list]] = {}
  for row in rows:
    for key, value in row.items():
      kind, _, name = key.rpartition('/')
      if not HIDDEN.search(name):
        out.setdefault(name, {}).setdefault(kind or 'train', []).append((row['step'], value))
  kept = {name: {k: finite(p) for k, p in kinds.items()} for name, kinds in out.items()}
  return {name: kinds for name, kinds in kept.items() if any(kinds.values())}


def _section(stage: Stage, metrics: dict, optimum: float | None) -> str:
  chief = [name for name in stage.curves if name in metrics]
  rest = [name for name in metrics if name not in chief]
  draw = lambda name: chart(
    name, metrics[name], optimum if name == 'gold_reward' else None, over=stage.over)
  body = ''.join(map(draw, chief)) + against_kl(metrics)
  folded = ''.join(map(draw, rest))
  more = (f'<details><summary>{len(rest)} more curves</summary><div class="charts">{folded}</div>'
          '</details>')
  return (f'<div class="charts">{body}</div>' if body else '') + (more if folded else '')


def chart(
  name: str, kinds: dict[str, list], optimum: float | None = None, *, over: str = 'step'
) -> str:
  """One metric: training as a smoothed line over its noise, evaluations as dots."""
  series = []
  for kind, points in kinds.items():
    colour = COLOURS.get(kind, 3)
    noisy = kind == 'train' and len(points) >= 20
    if noisy:
      series.append(Series(kind, points, faint=True, colour=colour))
    # The mean's memory is about a twentieth part of the curve, whatever its length.
    drawn = smooth(points, 1 - 20 / max(len(points), 21)) if noisy else points
    series.append(Series(kind, drawn, dots=kind != 'train', colour=colour))
  return line_chart(series, title=title_of(name), x_label=over, y_label=UNITS.get(name, ''),
                    reference=('optimum', optimum) if optimum is not None else None)


def title_of(name: str) -> str:
  """'gold_reward' -> 'Gold reward'."""
  return NAMES.get(name) or name.replace('_', ' ').capitalize()


def against_kl(metrics: dict) -> str:
  """Reward and gold reward against sqrt(KL) (Gao et al. 2023): where they part, it is hacked."""
  kind = 'dev' if len(metrics.get('kl', {}).get('dev', ())) > 2 else 'train'
  distance = dict(metrics.get('kl', {}).get(kind, ()))
  series = []
  for colour, name in ((0, 'reward'), (1, 'gold_reward')):
    points = metrics.get(name, {}).get(kind, [])
    # The estimate of KL is a sample's, and may fall below 0 by chance.
    path = [(max(distance[step], 0.0) ** 0.5, y) for step, y in points if step in distance]
    series.append(Series(title_of(name).lower(), path, dots=len(path) <= 60, colour=colour))
  return line_chart(series, title='Reward against KL', x_label='√KL to the anchor, √nats')
