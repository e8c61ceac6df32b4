"""Best-of-n: of n responses to a prompt, the one that a proxy of the true reward prefers.

The simplest way to optimise against a reward model; how far it goes from the policy is known
(Stiennon et al. 2020, arXiv 2009.01325, app. G.3), and what a larger n gives is told by one set of
samples (Nakano et al. 2021, arXiv 2112.09332, app. I).
"""

import math

import numpy as np


def kl(n: int) -> float:
  """KL(best of n || policy) = log n - (n - 1) / n, in nats (Gao et al. 2022, arXiv 2210.10760).

  Exact where the proxy puts no two responses level; where responses repeat, it is an upper bound
  (Beirami et al. 2024, arXiv 2401.01879).

  Raises:
    ValueError: n is below 1.
  """
  if n < 1:
    raise ValueError(f'expected n of at least 1, found {n}')
  return math.log(n) - (n - 1) / n


def expected(proxy: np.ndarray, value: np.ndarray, n: int) -> np.ndarray:
  """The mean value of the response that the proxy prefers among n, by prompt.

  Over all sets of n of the m samples: sum_r C(r - 1, n - 1) / C(m, n) value_(r), where value_(r) is
  that of the r-th by proxy, the least first (Nakano et al. 2021, arXiv 2112.09332, app. I); an
  unbiased estimate of what n fresh samples give. Level samples share their weights.

  Args:
    proxy: f[N, m], scores of m samples to each of N prompts.
    value: f[N, m], what is asked of the preferred one: the proxy itself, or the gold reward.
    n: from 1, where it is the mean, to m, where it is the best.

  Returns:
    f64[N].

  Raises:
    ValueError: arrays of other shapes, scores that are not finite, or n that is not in [1, m].
  """
  proxy, value = np.asarray(proxy, np.float64), np.asarray(value, np.float64)
  _check(proxy, value, n)
  m = proxy.shape[1]
  # The best of n lies among the least r with chance C(r, n) / C(m, n).
  among = np.zeros(m + 1)
  among[n:] = np.cumprod(np.append(1.0, 1 - n / np.arange(m, n, -1)))[::-1]
  means = np.empty(len(proxy))
  for i, (scores, values) in enumerate(zip(proxy, value)):
    ranked = np.sort(scores)
    below, upto = (np.searchsorted(ranked, scores, side) for side in ('left', 'right'))
    means[i] = ((among[upto] - among[below]) / (upto - below)) @ values
  return means


def _check(proxy: np.ndarray, value: np.ndarray, n: int) -> None:
  if proxy.ndim != 2 or proxy.shape != value.shape:
    raise ValueError(f'expected proxy and value of one shape [prompts, samples], found '
                     f'{proxy.shape} and {value.shape}')
  if not np.isfinite(proxy).all():
    raise ValueError(f'expected finite scores, found {int((~np.isfinite(proxy)).sum())} that are '
                     'not; leave their prompts out')
  if not 1 <= n <= proxy.shape[1]:
    raise ValueError(f'expected n from 1 to the {proxy.shape[1]} samples of a prompt, found {n}; '
                     'draw more samples, or ask for a smaller n')
