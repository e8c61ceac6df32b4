"""A reward head from a linear probe, before the adapter is trained.

Linear probing, then fine-tuning (Kumar et al. 2022, arXiv 2202.10054): a random head on a good
model first sends noise through it; a head that already reads what the frozen model knows does not.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from sklearn.linear_model import LogisticRegression

from perl.evaluate import baseline, classification
from perl.models import lm
from perl.types import Tree

STRENGTHS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
"""Inverse strengths of the L2 penalty on standardised weights, from which the data choose; of equal
ones the strongest penalty."""

INNER_FOLDS = 5


def fit_head(features: np.ndarray, labels: np.ndarray, groups: Sequence, like: Tree) -> Tree:
  """The head whose scores are the logits of a logistic regression on the features.

  Features are standardised for the regression; the standardisation is folded into the head. Rows
  are weighted so that both labels count alike, which ranks rare labels better, and the log-odds of
  the labels are put back into the bias. The penalty is the one of STRENGTHS with the highest mean
  AUC over grouped folds of these rows.

  Args:
    features: f32[N, F] of `lm.head_features` over the base.
    labels: [N], 1 or 0.
    groups: [N], rows of one group are never on both sides of an inner fold.
    like: a head of that kind; its shapes are kept.

  Raises:
    ValueError: the labels are all the same.
  """
  share = float(np.mean(labels))
  if not 0 < share < 1:
    raise ValueError(f'expected examples of both labels to fit a head to, found only {labels[:1]} '
                     f'in {len(labels)} examples; use a larger train split, or reward.probe=False')
  mean, deviation = features.mean(0), features.std(0) + 1e-6
  scaled = (features - mean) / deviation
  model = _regression(strength(scaled, labels, groups)).fit(scaled, labels)
  weights = model.coef_[0] / deviation
  prior = np.log(share / (1 - share))
  return _head(weights, model.intercept_[0] - weights @ mean + prior, like)


def strength(features: np.ndarray, labels: np.ndarray, groups: Sequence) -> float:
  """The inverse penalty that ranks rows of unseen groups best; the middle one with a single group.

  Args:
    features: f32[N, F], standardised.
    labels, groups: see `fit_head`.
  """
  count = min(INNER_FOLDS, len(set(groups)))
  if count < 2:
    return STRENGTHS[len(STRENGTHS) // 2]
  folds = baseline.folds(labels, groups, count)

  def mean_auc(c: float) -> float:
    found = [
      classification.auc(
        _regression(c).fit(features[inside], labels[inside]).decision_function(features[outside]),
        labels[outside])
      for inside, outside in folds if 0 < np.mean(labels[inside]) < 1
    ]
    return float(np.mean([auc for auc in found if np.isfinite(auc)] or [0.5]))

  return max(STRENGTHS, key=mean_auc)


def _regression(c: float) -> LogisticRegression:
  return LogisticRegression(C=c, class_weight='balanced', max_iter=1000)


def fit_pair_head(
  chosen: np.ndarray, rejected: np.ndarray, like: Tree, *, c: float = 0.01
) -> Tree:
  """The same from pairs: a logistic regression without intercept on differences of features.

  Args:
    chosen, rejected: f32[N, F].
    like: see `fit_head`.
    c: inverse strength of the L2 penalty on standardised weights.
  """
  deviation = np.concatenate([chosen, rejected]).std(0) + 1e-6
  difference = (chosen - rejected) / deviation
  both = np.concatenate([difference, -difference])
  labels = np.repeat([1, 0], len(difference))
  model = LogisticRegression(C=c, max_iter=1000, fit_intercept=False).fit(both, labels)
  return _head(model.coef_[0] / deviation, 0.0, like)


def _head(weights: np.ndarray, bias: float, like: Tree) -> Tree:
  width = like['kernel'].shape[0]
  head = {'kernel': weights[:width, None], 'bias': np.array([bias])}
  start = width
  for name in lm.head_reads(like):
    head[name] = weights[start : start + len(like[name])]
    start += len(like[name])
  return {name: np.asarray(value, np.float32) for name, value in head.items()}


def gather(parts: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]], count: int) -> np.ndarray:
  """f32[count, ...] of (rows, index, weight) of batches: rows by index, NaN where none came."""
  out: np.ndarray | None = None
  for rows, index, weight in parts:
    if out is None:
      out = np.full((count, *rows.shape[1:]), np.nan, np.float32)
    out[index[weight > 0]] = rows[weight > 0]
  return out
