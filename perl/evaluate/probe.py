"""A reward head from a linear probe, before the adapter is trained.

Linear probing, then fine-tuning (Kumar et al. 2022, arXiv 2202.10054): a random head on a good
model first sends noise through it; a head that already reads what the frozen model knows does not.
"""

from collections.abc import Iterable

import numpy as np
from sklearn.linear_model import LogisticRegression

from perl.models import lm
from perl.types import Tree


def fit_head(features: np.ndarray, labels: np.ndarray, like: Tree, *, c: float) -> Tree:
  """The head whose scores are the logits of a logistic regression on the features.

  Features are standardised for the regression; the standardisation is folded into the head. Rows
  are weighted so that both labels count alike, which ranks rare labels better, and the log-odds of
  the labels are put back into the bias.

  Args:
    features: f32[N, F] of `lm.head_features` over the base.
    labels: [N], 1 or 0.
    like: a head of that kind; its shapes are kept.
    c: inverse strength of the L2 penalty on standardised weights.

  Raises:
    ValueError: the labels are all the same.
  """
  share = float(np.mean(labels))
  if not 0 < share < 1:
    raise ValueError(f'expected examples of both labels to fit a head to, found only {labels[:1]} '
                     f'in {len(labels)} examples; use a larger train split, or reward.probe=False')
  features = features[:, _fitted(like)]
  mean, deviation = features.mean(0), features.std(0) + 1e-6
  model = LogisticRegression(C=c, class_weight='balanced', max_iter=1000)
  model.fit((features - mean) / deviation, labels)
  weights = model.coef_[0] / deviation
  prior = np.log(share / (1 - share))
  return _head(weights, model.intercept_[0] - weights @ mean + prior, like)


def fit_pair_head(chosen: np.ndarray, rejected: np.ndarray, like: Tree, *, c: float) -> Tree:
  """The same from pairs: a logistic regression without intercept on differences of features.

  Args:
    chosen, rejected: f32[N, F].
    like, c: see `fit_head`.
  """
  chosen, rejected = chosen[:, _fitted(like)], rejected[:, _fitted(like)]
  deviation = np.concatenate([chosen, rejected]).std(0) + 1e-6
  difference = (chosen - rejected) / deviation
  both = np.concatenate([difference, -difference])
  labels = np.repeat([1, 0], len(difference))
  model = LogisticRegression(C=c, max_iter=1000, fit_intercept=False).fit(both, labels)
  return _head(model.coef_[0] / deviation, 0.0, like)


def _fitted(like: Tree) -> np.ndarray:
  """bool[F]: the features that the regression reads.

  Where the head reads the mean hidden states, the last one adds weights to a regression and no
  skill: it is left to training.
  """
  count = sum(like[name].shape[0] for name in ('kernel', *lm.head_reads(like)))
  return np.arange(count) >= (like['kernel'].shape[0] if 'mean' in like else 0)


def _head(fitted: np.ndarray, bias: float, like: Tree) -> Tree:
  """The head with these weights of the features that were fitted, and 0 for the others."""
  width = like['kernel'].shape[0]
  weights = np.zeros(len(_fitted(like)))
  weights[_fitted(like)] = fitted
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
