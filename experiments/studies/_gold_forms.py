"""Gao et al.'s forms of the gold reward, fitted by least squares (arXiv 2210.10760, eq. 1 and 2).

With d = sqrt(KL(policy || anchor)) and R the gold reward's gain over the anchor's:

    best of n   R(d) = d (alpha - beta d)
    RL          R(d) = d (alpha - beta log d)

alpha says how a reward model pays at first, beta how soon it is hacked. Both are linear in them.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Fit(NamedTuple):
  """Coefficients, and how far the form is from the points."""

  alpha: float  # gold reward a root of a nat
  beta: float
  residual: float  # root mean square of what is left, in units of the gold reward
  explained: float  # 1 - its square over that of the gains' spread around their mean
  points: int


FORMS = {'best_of_n': lambda d: d, 'rl': np.log}
"""What beta is multiplied by, by kind: R = d (alpha - beta form(d))."""


def fit(kind: str, d: Sequence[float], gain: Sequence[float]) -> Fit | None:
  """The least-squares coefficients of a form; None of fewer than three points, or all at one d.

  Args:
    kind: of FORMS.
    d: square roots of KL, root nats; points at 0 say nothing, for every form is 0 there.
    gain: gold reward less the anchor's, at each.
  """
  d, gain = np.asarray(d, np.float64), np.asarray(gain, np.float64)
  d, gain = d[d > 0], gain[d > 0]
  if len(d) < 3 or len(np.unique(d)) < 2:
    return None
  columns = np.stack([d, -d * FORMS[kind](d)], -1)
  (alpha, beta), *_ = np.linalg.lstsq(columns, gain, rcond=None)
  left = gain - columns @ (alpha, beta)
  spread = float(((gain - gain.mean()) ** 2).sum())
  explained = 1 - float((left ** 2).sum()) / spread if spread else math.nan
  return Fit(float(alpha), float(beta), float((left ** 2).mean() ** 0.5), explained, len(d))


def predicted(kind: str, form: Fit, d: Sequence[float]) -> np.ndarray:
  """f64[n]: R(d) of the fitted form; 0 at 0."""
  d = np.asarray(d, np.float64)
  safe = np.where(d > 0, d, 1.0)
  return np.where(d > 0, safe * (form.alpha - form.beta * FORMS[kind](safe)), 0.0)


def peak(kind: str, form: Fit) -> float:
  """The d of the form's highest gold reward: alpha / 2 beta, or exp(alpha / beta - 1).

  Infinite where beta <= 0: the form rises for ever.
  """
  if form.beta <= 0:
    return math.inf
  ratio = form.alpha / form.beta
  if kind == 'best_of_n':
    return max(ratio / 2, 0.0)
  return math.exp(ratio - 1) if ratio < 700 else math.inf
