"""One case: a suite at a size, its contestants in turn, and what their rows say together.

Ratios are theirs over ours within a round, so that they hold where the machine's speed drifts.
"""

import dataclasses
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from experiments.bench import cost, processes, rivals, work

TOLERANCE = {'float32': 1e-3, 'bfloat16': 3e-2}
"""Relative difference from ours in work.CHECKS up to which contestants agree."""


class Budget:
  """Seconds from now on; 0 is without end."""

  def __init__(self, seconds: float = 0.0) -> None:
    self.seconds, self.start = seconds, time.monotonic()

  def left(self) -> float:
    """Seconds until it is spent."""
    return self.seconds - (time.monotonic() - self.start) if self.seconds else float('inf')


@dataclasses.dataclass
class Case:
  """A suite at a size and what was found so far."""

  suite: str
  size: str
  names: Sequence[str]
  dtype: str = ''
  steps: int = 8
  warmup: int = 2
  tunix: str = ''  # the Python of its environment
  runs: dict[str, list[dict]] = dataclasses.field(default_factory=dict)
  peaks: list[float] = dataclasses.field(default_factory=list)

  def __post_init__(self) -> None:
    self.dtype = self.dtype or work.SIZES[self.size].dtype
    self.runs = self.runs or {name: [] for name in self.names}

  def play(self, number: int, weights: str, *, cache: str = '', budget: Budget | None = None,
           limit: float = 0.0, after: Callable[[], None] = lambda: None) -> None:
    """Runs every contestant once; one that fails leaves a row with `error`, and is out.

    Args:
      number: of the round.
      weights: the folder of this size.
      cache: see processes.environment.
      budget: no contestant starts after it, and one that runs over it by half a minute is ended.
      limit: the most seconds of one contestant; 0 for no limit.
      after: called when a contestant has a new row.
    """
    budget = budget or Budget()
    self.peaks.append(processes.gemm_gflops(self.dtype))
    options = [f'--suite={self.suite}', f'--size={self.size}', f'--weights={weights}',
               f'--dtype={self.dtype}', f'--steps={self.steps}', f'--warmup={self.warmup}']
    for name in self.names:
      rows = self.runs[name]
      if budget.left() <= 0 or any('error' in row for row in rows):
        continue
      print(f'round {number}: {self.suite} {self.size} {name}', file=sys.stderr, flush=True)
      seconds = min(budget.left() + 30, limit or float('inf'))
      try:
        row = processes.run(rivals.command(name, self.tunix, options), cache=cache,
                            seconds=None if seconds == float('inf') else seconds)
        row['tokens_per_second'] = (
          work.tokens_per_step(self.suite, self.size) / row['median_seconds'])
      except RuntimeError as error:
        row = {'name': name, 'error': str(error)}
        print(error, file=sys.stderr, flush=True)
      rows.append({'round': number, 'gemm_gflops': self.peaks[-1], **row})
      after()

  def good(self, name: str) -> dict[int, dict]:
    """A contestant's rows by round, errors left out."""
    return {row['round']: row for row in self.runs[name] if 'error' not in row}

  def ratios(self, field: str) -> dict[str, list[float]]:
    """{name: their field over ours, round by round}."""
    ours = self.good(rivals.OURS) if rivals.OURS in self.runs else {}
    ratios = {}
    for name in self.names:
      rows = self.good(name)
      both = [rows[n][field] / ours[n][field] for n in rows if n in ours and field in rows[n]]
      if both and name != rivals.OURS:
        ratios[name] = both
    return ratios

  def result(self) -> dict:
    """Everything about the case, as JSON has it."""
    speed, memory = self.ratios('median_seconds'), self.ratios('peak_memory_bytes')
    median = lambda by_name: {name: statistics.median(values) for name, values in by_name.items()}
    place = self.suite, self.size
    return {
      'suite': self.suite, 'size': self.size, 'dtype': self.dtype,
      'tokens_per_step': work.tokens_per_step(*place), 'gflop_per_step': cost.gflop(*place),
      'gemm_gflops': self.peaks, **self.agreement(), **self.shares(),
      'speed_against': median(speed), 'ratios': speed, 'memory_against': median(memory),
      'aims': rivals.AIMS.get(place, {}), 'memory_aims': rivals.MEMORY_AIMS.get(place, {}),
      'runs': self.runs}

  def agreement(self) -> dict:
    """The check's value of each contestant, and whether they agree."""
    field = work.CHECKS.get(self.suite)
    if field is None:
      return {'agrees': None, 'checks': {}, 'disagree': []}
    values = {name: row[field] for name in self.names for row in list(self.good(name).values())[:1]
              if field in row}
    out = disagreeing(values, TOLERANCE[self.dtype])
    return {'agrees': not out, 'check': field, 'checks': values, 'disagree': out}

  def shares(self) -> dict:
    """Shares of what the machine can do, by contestant; full tuning does more work and has none."""
    gflop, shares = cost.gflop(self.suite, self.size), {}
    for name in self.names:
      if rows := self.good(name) if name != 'perl_full' else {}:
        seconds = statistics.median(row['median_seconds'] for row in rows.values())
        shares.setdefault('share_of_gemm_rate', {})[name] = statistics.median(
          gflop / row['median_seconds'] / row['gemm_gflops'] for row in rows.values())
        if (stated := cost.stated(next(iter(rows.values())).get('device', ''))) is None:
          continue
        if self.dtype == 'bfloat16':
          shares.setdefault('share_of_stated_peak', {})[name] = gflop / seconds / stated[0]
        if self.suite == 'decode':
          shares.setdefault('share_of_bandwidth', {})[name] = (
            cost.decode_bytes(self.size, self.dtype) / stated[1] / seconds)
    return shares


def disagreeing(values: Mapping[str, float], tolerance: float) -> list[str]:
  """Who differs from ours (without ours, from the first) by more than that, relatively."""
  if not values:
    return []
  own = values.get(rivals.OURS, next(iter(values.values())))
  # Written so that NaN disagrees.
  return [n for n, v in values.items() if not abs(v - own) <= tolerance * abs(own)]


def table(cases: Sequence[dict]) -> str:
  """The cases in Markdown: a row a contestant."""
  lines = ['| suite | size | contestant | seconds | first | tokens/s | of the GEMM rate '
           '| peak, MiB | their seconds / ours | aim | |', f'|:--|:--|:--|{"--:|" * 7}:--|']
  for case in cases:
    for name, rows in case['runs'].items():
      good = [row for row in rows if 'error' not in row]
      where = f'| {case["suite"]} | {case["size"]} | {name} '
      if not good:
        lines.append(where + '| | | | | | | | ' + ('failed |' if rows else 'not run |'))
        continue
      seconds = statistics.median(row['median_seconds'] for row in good)
      share = case.get('share_of_gemm_rate', {}).get(name)
      ratio, aim = case['speed_against'].get(name), case['aims'].get(name)
      spread, memory = case['ratios'].get(name, []), case['memory_against'].get(name)
      lines.append(
        where + f'| {seconds:.4g} | {max(row["first_seconds"] for row in good):.3g} | '
        f'{case["tokens_per_step"] / seconds:,.0f} | {"" if share is None else f"{share:.0%}"} | '
        f'{max(row["peak_memory_bytes"] for row in good) / 2**20:,.0f}'
        + ('' if memory is None else f', {memory:.2f} times') + ' | '
        + ('' if ratio is None else f'{ratio:.2f} ({min(spread):.2f} to {max(spread):.2f})')
        + f' | {aim or ""} | {"DISAGREES" if name in case["disagree"] else ""} |')
  return '\n'.join(lines)
