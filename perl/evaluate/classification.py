"""How well scores tell thumbs up from down, and better from worse: pure functions of arrays.

Scores are the reward model's outputs (logits): sigmoid(score) is the probability of label 1, and a
score above 0 says 1. Labels are 1 or 0. N rows throughout.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import expit
from scipy.stats import rankdata

from perl.evaluate.bootstrap import finite, with_intervals


def accuracy(scores: Sequence[float], labels: Sequence[float]) -> float:
  """Mean of [score > 0] = label."""
  scores, labels = _checked(scores, labels)
  return float(((scores > 0) == labels).mean())


def balanced_accuracy(scores: Sequence[float], labels: Sequence[float]) -> float:
  """(recall of 1 + recall of 0) / 2; 1/2 for a constant answer. NaN with a single class."""
  scores, labels = _checked(scores, labels)
  if labels.all() or not labels.any():
    return float('nan')
  return float(((scores[labels] > 0).mean() + (scores[~labels] <= 0).mean()) / 2)


def auc(scores: Sequence[float], labels: Sequence[float]) -> float:
  """P(score of a 1 > score of a 0) + P(they are equal) / 2, over all pairs; NaN with one class.

  By ranks, ties at their mean rank (Mann-Whitney): (R_1 - n_1 (n_1 + 1) / 2) / (n_1 n_0), with R_1
  the sum of the ranks of the n_1 rows with label 1.
  """
  scores, labels = _checked(scores, labels)
  ones = int(labels.sum())
  zeros = len(labels) - ones
  if not ones or not zeros:
    return float('nan')
  above = rankdata(scores)[labels].sum() - ones * (ones + 1) / 2
  return float(above / (ones * zeros))


def aucs_within(
  scores: Sequence[float], labels: Sequence[float], groups: Sequence
) -> dict[Any, float]:
  """{group: AUC of its own rows} of the groups that hold both labels: what best-of-n goes by."""
  scores, labels = _checked(scores, labels)
  rows: dict[Any, list[int]] = {}
  for i, group in enumerate(groups):
    rows.setdefault(group, []).append(i)
  return {group: auc(scores[these], labels[these]) for group, these in rows.items()
          if labels[these].any() and not labels[these].all()}


def _within(
  scores: Sequence[float], labels: Sequence[float], groups: Sequence, bootstrap: int, seed: int
) -> dict[str, float | int]:
  """The mean of `aucs_within` with its interval, and of how many; {} of none."""
  aucs = aucs_within(scores, labels, groups)
  if not aucs:
    return {}
  values = list(aucs.values())
  report = with_intervals({'auc_within': lambda x: float(np.mean(x))}, list(aucs),
                          (np.array(values),), bootstrap, seed)
  report.pop('degenerate_replicates', None)
  return {**report, 'groups_within': len(values)}


def majority_rate(labels: Sequence[float]) -> float:
  """The accuracy of always giving the commoner label."""
  rate = float(_as_labels(labels).mean())
  return max(rate, 1 - rate)


def log_loss(scores: Sequence[float], labels: Sequence[float]) -> float:
  """Mean of -y log sigma(s) - (1 - y) log(1 - sigma(s)), in nats."""
  scores, labels = _checked(scores, labels)
  return float(np.logaddexp(0.0, np.where(labels, -scores, scores)).mean())


def reliability(scores: Sequence[float], labels: Sequence[float], bins: int = 10) -> list[dict]:
  """Predicted probability against frequency, in `bins` equal parts of [0, 1]; empty ones left out.

  Returns:
    [{'low', 'high': edges, 'count', 'predicted': mean probability, 'observed': share of label 1}]
  """
  scores, labels = _checked(scores, labels)
  probability = expit(scores)
  which = np.minimum((probability * bins).astype(int), bins - 1)  # probability 1 is in the last
  return [
    {'low': b / bins, 'high': (b + 1) / bins, 'count': int((which == b).sum()),
     'predicted': float(probability[which == b].mean()),
     'observed': float(labels[which == b].mean())}
    for b in np.unique(which).tolist()]


def calibration_error(
  scores: Sequence[float], labels: Sequence[float], bins: int = 10
) -> float:
  """sum_b (n_b / N) |observed_b - predicted_b| (Naeini et al. 2015; ECE), see `reliability`."""
  parts = reliability(scores, labels, bins)
  total = sum(p['count'] for p in parts)
  return sum(p['count'] * abs(p['observed'] - p['predicted']) for p in parts) / total


def pair_accuracy(chosen: Sequence[float], rejected: Sequence[float]) -> float:
  """Share of pairs whose chosen response scores higher; a tie counts half."""
  chosen, rejected = finite('chosen', chosen), finite('rejected', rejected)
  return float(((chosen > rejected) + 0.5 * (chosen == rejected)).mean())


def labelled_report(
  scores: Sequence[float], labels: Sequence[float], groups: Sequence, bootstrap: int = 1000,
  seed: int = 0,
) -> dict[str, float | int]:
  """All that there is to say of scores against thumbs.

  Args:
    scores: [N], logits.
    labels: [N], 1 or 0.
    groups: [N], what is drawn together in the bootstrap.
    bootstrap: replicates; 0 leaves the intervals out.
    seed: of the bootstrap.

  Returns:
    accuracy, balanced_accuracy, auc (each with _low and _high, 95 %), loss, calibration_error,
    majority_rate; the counts (ints) examples, groups, and degenerate_replicates (draws of a single
    class, which were drawn again). Where some of the groups hold both labels, auc_within: the mean
    over these, groups_within in number, of the AUC of a group's own rows.

  Raises:
    ValueError: a score that is not finite, a label other than 1 and 0, no rows, unequal lengths.
  """
  statistics = {'accuracy': accuracy, 'balanced_accuracy': balanced_accuracy, 'auc': auc}
  report = {
    **with_intervals(statistics, groups, (scores, labels), bootstrap, seed),
    'loss': log_loss(scores, labels),
    'calibration_error': calibration_error(scores, labels),
    'majority_rate': majority_rate(labels),
    **_within(scores, labels, groups, bootstrap, seed),
    'examples': len(labels),
    'groups': len(set(groups)),
  }
  return report


def preference_report(
  chosen: Sequence[float], rejected: Sequence[float], groups: Sequence, bootstrap: int = 1000,
  seed: int = 0,
) -> dict[str, float | int]:
  """All that there is to say of scores of preference pairs.

  Args:
    chosen, rejected: [N], scores of either response.
    groups, bootstrap, seed: see `labelled_report`.

  Returns:
    pair_accuracy, also as accuracy, and auc (chosen against rejected over all prompts; what a
    threshold on the score would see), each with _low and _high; loss (-log sigmoid of the margin),
    margin (mean of chosen - rejected), calibration_error of the more probable side; counts.
  """
  chosen, rejected = finite('chosen', chosen), finite('rejected', rejected)
  statistics = {'pair_accuracy': pair_accuracy, 'auc': _pooled_auc}
  report = with_intervals(statistics, groups, (chosen, rejected), bootstrap, seed)
  same = {k.replace('pair_', ''): v for k, v in report.items() if k.startswith('pair_')}
  margin = chosen - rejected
  return {
    **report,
    **same,
    'loss': float(np.logaddexp(0.0, -margin).mean()),
    'margin': float(margin.mean()),
    'calibration_error': calibration_error(np.abs(margin), margin > 0),
    'examples': len(margin),
    'groups': len(set(groups)),
  }


def ranking_report(
  scores: np.ndarray, groups: Sequence, bootstrap: int = 1000, seed: int = 0
) -> dict[str, float | int]:
  """All that there is to say of scores of rankings: of all their pairs.

  Args:
    scores: [N, K], of the responses from the best to the worst; NaN where a prompt has fewer.
    groups, bootstrap, seed: see `labelled_report`.

  Returns:
    as `preference_report` of the pairs i < j of each ranking, without auc (a response in the
    middle is both chosen and rejected); the loss is the mean over rankings of their pairs' mean
    (losses.ranking); examples counts rankings, pairs their pairs.

  Raises:
    ValueError: no ranking has two scores.
  """
  scores = np.asarray(scores, np.float64)
  better, worse = np.triu_indices(scores.shape[1], 1)
  chosen, rejected = scores[:, better], scores[:, worse]
  there = np.isfinite(chosen) & np.isfinite(rejected)
  of = np.broadcast_to(np.arange(len(scores))[:, None], there.shape)[there]
  chosen, rejected = chosen[there], rejected[there]
  report = preference_report(chosen, rejected, np.asarray(groups)[of], bootstrap, seed)
  pairs = np.bincount(of)
  each = np.bincount(of, np.logaddexp(0.0, rejected - chosen))[pairs > 0] / pairs[pairs > 0]
  return {k: v for k, v in report.items() if not k.startswith('auc')} | {
    'loss': float(each.mean()), 'examples': int((pairs > 0).sum()), 'pairs': len(of)}


def _pooled_auc(chosen: np.ndarray, rejected: np.ndarray) -> float:
  return auc(np.concatenate([chosen, rejected]), np.repeat([1, 0], [len(chosen), len(rejected)]))


def _checked(scores: Sequence[float], labels: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
  scores, labels = finite('scores', scores), _as_labels(labels)
  if len(scores) != len(labels):
    raise ValueError(f'expected as many scores as labels, found {len(scores)} and {len(labels)}')
  return scores, labels


def _as_labels(labels: Sequence[float]) -> np.ndarray:
  labels = np.asarray(labels)
  if labels.ndim != 1 or not len(labels) or not np.isin(labels, (0, 1)).all():
    raise ValueError('expected labels 1 (up) or 0 (down), at least one, found '
                     f'{np.unique(labels)[:5].tolist()}; binarise ratings first')
  return labels.astype(bool)
