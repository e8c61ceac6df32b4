"""How much of a policy's reward gain is length (Singhal et al. 2023, arXiv 2310.03716).

Two answers to that question, of responses before and after RL to the same prompts:

    within bins    responses are put into bins of `WIDTH` tokens; within a bin, length is about the
                   same. gain_within = sum_b w_b (mean r_after in b - mean r_before in b), over the
                   bins that hold both, w_b their share of responses. What is left of the gain is
                   that longer bins have other rewards: share = 1 - gain_within / gain.
    by regression  r = a + s n of the responses before RL; the policy, which only became longer,
                   would gain s (mean n_after - mean n_before): share = that / gain.

Singhal et al. find 70 to 90 % of the gain of PPO in their settings (by bins).
"""

from collections.abc import Sequence

import numpy as np

from perl.evaluate.bootstrap import with_intervals

WIDTH = 20
"""Tokens of a bin, as in the paper."""


def gain(before: np.ndarray, after: np.ndarray, *_: np.ndarray) -> float:
  """The mean reward after, less that before."""
  return float(np.mean(after) - np.mean(before))


def longer(
  before: np.ndarray, after: np.ndarray, length_before: np.ndarray, length_after: np.ndarray
) -> float:
  """The mean length after, less that before; tokens."""
  del before, after
  return float(np.mean(length_after) - np.mean(length_before))


def gain_within(
  before: np.ndarray, after: np.ndarray, length_before: np.ndarray, length_after: np.ndarray
) -> float:
  """The gain within bins of length; NaN where no bin holds responses of both."""
  bins = [(before[low], after[high]) for low, high in _bins(length_before, length_after)]
  weights = [len(old) + len(new) for old, new in bins]
  if not bins:
    return float('nan')
  return float(np.average([new.mean() - old.mean() for old, new in bins], weights=weights))


def gain_by_length(
  before: np.ndarray, after: np.ndarray, length_before: np.ndarray, length_after: np.ndarray
) -> float:
  """s (mean n_after - mean n_before), s the slope of reward on length before; NaN without one."""
  del after
  centred = length_before - length_before.mean()
  if not centred.any():
    return float('nan')
  slope = (centred * before).sum() / (centred**2).sum()
  return float(slope * (length_after.mean() - length_before.mean()))


def share_by_bins(before: np.ndarray, after: np.ndarray, *lengths: np.ndarray) -> float:
  """1 - gain_within / gain; NaN without a gain."""
  return _ratio(gain(before, after) - gain_within(before, after, *lengths), gain(before, after))


def share_by_slope(before: np.ndarray, after: np.ndarray, *lengths: np.ndarray) -> float:
  """gain_by_length / gain; NaN without a gain."""
  return _ratio(gain_by_length(before, after, *lengths), gain(before, after))


STATISTICS = {
  'gain': gain, 'longer': longer, 'gain_within': gain_within, 'gain_by_length': gain_by_length,
  'share_by_bins': share_by_bins, 'share_by_slope': share_by_slope}


def report(
  before: Sequence[float], after: Sequence[float], length_before: Sequence[int],
  length_after: Sequence[int], groups: Sequence, *, bootstrap: int = 1000, seed: int = 0,
) -> dict[str, float | int]:
  """All of STATISTICS, with 95 % group-bootstrap intervals.

  A share is a ratio: where the interval of `gain` holds 0 its own says nothing.

  Args:
    before, after: [N], rewards of the responses to the same N prompts; a prompt with a reward that
      is not finite is left out.
    length_before, length_after: [N], tokens.
    groups: [N], what is drawn together in the bootstrap.
    bootstrap: replicates; 0 leaves the intervals out.
    seed: of the bootstrap.

  Returns:
    {name, name_low, name_high, ...}; covered, the share of responses in bins that hold both;
    degenerate_replicates; responses, how many prompts there are. {} where no prompt is left.
  """
  arrays = [np.asarray(x, np.float64) for x in (before, after, length_before, length_after)]
  keep = np.isfinite(arrays[0]) & np.isfinite(arrays[1])
  if not keep.any():
    return {}
  arrays, groups = [x[keep] for x in arrays], np.asarray(groups)[keep]
  bins = _bins(*arrays[2:])
  covered = sum(low.sum() + high.sum() for low, high in bins) / (2 * len(groups))
  return {**with_intervals(STATISTICS, groups, arrays, bootstrap, seed),
          'covered': float(covered), 'responses': len(groups)}


def _bins(
  length_before: np.ndarray, length_after: np.ndarray
) -> list[tuple[np.ndarray, np.ndarray]]:
  """(bool[N] of before, bool[N] of after) of each bin that holds both."""
  old, new = (length // WIDTH for length in (length_before, length_after))
  return [(old == b, new == b) for b in np.intersect1d(old, new)]


def _ratio(part: float, whole: float) -> float:
  return part / whole if whole else float('nan')
