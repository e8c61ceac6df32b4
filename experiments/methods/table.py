"""The table of costs as Markdown, and what qualifies its figures."""

from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from perl.forecast.devices import TERA
from perl.report import formats

HEAD = ('method', 'targets', 'rank or size', 'trainable', '% of the base', 'adapter', 'optimizer')
FORECAST = ('peak memory', 'TFLOP a step')
UNITS = ('B', 'KiB', 'MiB', 'GiB', 'TiB')


def size(count: float) -> str:
  """Bytes in the largest unit of which there is at least one: '3.42 MiB'."""
  power = 0
  while count >= 1024 and power < len(UNITS) - 1:
    count, power = count / 1024, power + 1
  return f'{count:,.{min(2, 2 * power)}f} {UNITS[power]}'


def markdown(rows: Sequence[Mapping[str, Any]], notes: Sequence[str] = (), *,
             forecast: bool = True) -> str:
  """A line for each of `costs.rows`; what was refused has its reason below."""
  head = (*HEAD, *(FORECAST if forecast else ()))
  refusals = list(dict.fromkeys(
    f'{row["method"]} is refused: {row["refused"]}' for row in rows if 'refused' in row))
  return formats.markdown(head, [_cells(row, len(head)) for row in rows], [*refusals, *notes])


def _cells(row: Mapping[str, Any], width: int) -> list[str]:
  size_of = [str(row['rank'])] if row['rank'] else []
  size_of += [f'{name} {value}' for name, value in row['sizes'].items()]
  asked = [row['method'], ', '.join(row['targets'] or ()) or 'its own', ', '.join(size_of) or '–']
  if 'refused' in row:
    return [*asked, 'refused', *[''] * (width - 4)]
  cells = [*asked, f'{row["trainable"]:,}', f'{row["share"]:.4%}'.rstrip('%'),
           size(row['adapter_bytes']), size(row['optimizer_bytes'])]
  if 'flops' in row:
    cells += [size(row['peak_bytes']), f'{row["flops"] / TERA:,.4g}']
  return cells


def title(config: ConfigDict, stage: str, parameters: int) -> str:
  """What the table is of."""
  c = config.model
  return (f'{stage} of {c.checkpoint or c.size}, {parameters:,} parameters in '
          f'{c.quantize or c.param_dtype}, '
          f'batch {config[stage].batch_size}, remat {c.remat}')


def notes(config: ConfigDict, stage: str, *, forecast: bool) -> list[str]:
  """How to read the figures."""
  found = ['By shapes alone: nothing was allocated or run. Adapter: bytes of its checkpoint, fixed '
           'data included. Targets and rank are left out where a method ignores them.']
  if stage == 'reward':
    found += ['The reward head is counted with its adapter.']
  if stage == 'rl':
    found += ['Policy and, with a value baseline, critic and its head are summed.']
  if forecast:
    found += ['Peak memory: what the stage holds throughout (the base included) and the most that '
              'one of its programs adds, as XLA for CPU compiles it at the longest batch; while it '
              'updates what is trained, it holds up to two more copies of that. TFLOP: matrix '
              'products of all programs of a step, recomputation included.']
  if forecast and 'bfloat16' in (config.model.dtype, config.model.param_dtype):
    found += ['bfloat16 is compiled as float16, of the same size, without the float32 copies that '
              'CPUs make.']
  return found
