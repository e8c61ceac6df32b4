"""One stage of a config, forecast twice: as configured, and under full tuning of whole models."""

import functools
import math
import sys
from typing import Any

from ml_collections import ConfigDict

from perl import trees
from perl.forecast import largest, measure
from perl.forecast.devices import Device
from perl.jobs import _run as runs

COLUMNS = ('configured', 'full')
"""What is compared: the config as it is; peft.name=full with a whole model for every role."""


def forecast(config: ConfigDict, stage: str, device: Device | None, *,
             search: bool = True) -> dict[str, Any]:
  """What is known of one stage, bytes and operations per device.

  Args:
    config: valid.
    stage: one of perl.jobs.TRAINED.
    device: on which it would run; None for any accelerator.
    search: look for the largest batch that fits the device, in both columns.

  Returns:
    {'method', 'mesh', 'parameters' (the base's), and for each of COLUMNS measure.stage's figures;
    with a device also 'fits', 'least_seconds' and 'largest_batch'}.

  Raises:
    ConfigError: what the jobs refuse of mesh, batch, model or adapter.
  """
  accelerator = device is None or device.name != 'cpu'
  stages = {column: build(config, stage, column, accelerator=accelerator) for column in COLUMNS}
  result = {
    'method': 'full' if stage == 'pretrain' else config.peft.name,
    'mesh': dict(stages['configured'].state.step.sharding.mesh.shape),
    'parameters': trees.count(stages['configured'].base),
  }
  for column in COLUMNS:
    figures = result[column] = measure.stage(stages[column], stage, accelerator=accelerator)
    if device is None:
      continue
    figures['fits'] = figures['peak_bytes'] <= device.memory_bytes
    figures['least_seconds'] = least_seconds(figures['flops'], device, config.model.dtype)
    if search:
      figures['largest_batch'] = largest_batch(
        config, stage, column, device.memory_bytes, figures, accelerator=accelerator)
  return result


def build(config: ConfigDict, stage: str, column: str, *, accelerator: bool) -> Any:
  """The stage by shapes, as one of COLUMNS has it."""
  if column == 'configured':
    return measure.build(config, stage, accelerator=accelerator)
  whole = measure.build(measure.full(config), stage, accelerator=accelerator)
  return measure.conventional(whole)


def least_seconds(flops: float, device: Device, dtype: str) -> float | None:
  """Operations over the device's peak rate: no step is faster. None where no rate is known."""
  rate = device.peak_flops.get(dtype)
  return flops / rate if rate else None


def largest_batch(config: ConfigDict, stage: str, column: str, limit: int, known: dict[str, Any],
                  *, accelerator: bool) -> int:
  """The largest batch_size of which every program fits into `limit` bytes; 0 for none.

  Args:
    config, stage, column: what is built; other fields stay as they are.
    limit: bytes of the device.
    known: measure.stage's figures for the config as it is.
    accelerator: see measure.build.
  """
  if known['held_bytes'] >= limit:
    return 0

  @functools.cache
  def built(rows: int):
    more = measure.copy(config, **{f'{stage}__batch_size': rows})
    return build(more, stage, column, accelerator=accelerator)

  @functools.cache
  def peak(program: str, rows: int) -> int:
    if rows == known['batch_size']:
      return known['programs'][program]['peak_bytes']
    print(f'{stage}, {column}: {program} of {rows} rows', file=sys.stderr, flush=True)
    figures = measure.program(built(rows), program, accelerator=accelerator)
    return known['held_bytes'] + figures['transient_bytes']

  section = runs.decided(config)[stage]
  parts = [section.get(name, 1) for name in ('microbatches', 'minibatches', 'samples')]
  return largest.largest(
    {program: functools.partial(peak, program) for program in known['programs']}, limit,
    unit=math.prod(parts) * known['ways'],
    start=known['batch_size'])
