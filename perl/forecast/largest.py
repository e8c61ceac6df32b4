"""The largest batch that fits: along a line through what was compiled, confirmed by compiling."""

from collections.abc import Callable, Mapping

MOST = 2**16
"""Rows beyond which nobody looks."""


def largest(
  peaks: Mapping[str, Callable[[int], int]], limit: int, *, unit: int, start: int
) -> int:
  """The largest batch whose programs all fit: the next larger one was compiled too, and does not.

  Args:
    peaks: {program: rows -> peak bytes}; a call compiles, unless it was asked before.
    limit: bytes that there are.
    unit: what a batch is a multiple of.
    start: a batch whose peaks are known already, a multiple of `unit`.

  Returns:
    rows; 0 if not even `unit` rows fit, and MOST (rounded down) if that still fits.
  """
  best, first = MOST // unit, start // unit
  # The dearest first: for the others it is mostly enough to see that its answer fits.
  for peak in sorted(peaks.values(), key=lambda peak: -peak(start)):
    best = search(lambda n, peak=peak: peak(n * unit), limit, start=min(first, best), most=best)
    if not best:
      break
    first = best
  return best * unit


def search(peak: Callable[[int], int], limit: int, *, start: int, most: int) -> int:
  """The largest n from 0 to `most` with peak(n) <= limit, for a peak that rises.

  Memory is nearly affine in the batch: two points give a line, and the line the next point to
  compile. It also rises in steps: where the line goes on missing, bisection takes over.
  """
  known: dict[int, int] = {}
  low, high = 0, most + 1  # low is known to fit (nothing at all does); high is not to be had
  while high - low > 1:
    guess = _along(known, low, high, limit) if known else start
    if len(known) > 6 and high <= most:
      guess = (low + high) // 2
    guess = min(max(guess, low + 1), high - 1)
    known[guess] = peak(guess)
    low, high = (guess, high) if known[guess] <= limit else (low, guess)
  return low


def _along(known: Mapping[int, int], low: int, high: int, limit: int) -> int:
  """Where the line through the points on either side of the limit, or the last two, meets it."""
  points = sorted(known)
  if len(points) == 1:
    return 2 * low if low else high // 2
  a, b = (low, high) if low in known and high in known else (
    points[-2:] if low in known else points[:2])
  slope = (known[b] - known[a]) / (b - a)
  return a + int((limit - known[a]) // slope) if slope > 0 else 2 * b
