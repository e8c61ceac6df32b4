"""A forecast as text: a Markdown table for each stage, LoRA beside full tuning, and verdicts."""

from collections.abc import Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from perl.forecast.devices import GIB, TERA, Device
from perl.jobs import TRAINED

MIB = 2**20


def markdown(forecast: Mapping[str, Any], stage: str) -> str:
  """The table of one stage: what is held, what each program adds, what it computes."""
  columns = ours, full = forecast['configured'], forecast['full']
  mib = lambda name, of, pair=columns: _row(f'{name}, MiB', *map(of, pair), MIB, ',.1f')
  rows = [_row('trainable parameters', *(sum(x['trainable'].values()) for x in columns), 1, ',.0f')]
  rows += [mib(f'{role}, held', lambda x, role=role: x['held'].get(role, 0))
           for role in ours['held']]
  rows += [mib('held and gradients', lambda x: x['held_bytes'] + x['gradients_bytes'])]
  for name in ours['programs']:
    pair = ours['programs'][name], full['programs'][name]
    rows += [mib(f'{name}: temporaries', lambda x: x['temporaries_bytes'], pair)]
    if name == 'update':
      rows += [mib('of which gradients', lambda x: x['gradients_bytes'])]
    if name == 'rollout':
      rows += [mib('of which keys and values', lambda x: x['cache_bytes'])]
    rows += [mib(f'{name}: batch and results',
                 lambda x: x['transient_bytes'] - x['temporaries_bytes'], pair),
             mib(f'{name}: peak', lambda x: x['peak_bytes'], pair)]
  rows += [mib(f'{stage}: peak', lambda x: x['peak_bytes'])]
  rows += [_row(f'{name}: TFLOP', *(x['programs'][name]['flops'] for x in columns), TERA, ',.3f')
           for name in ours['programs']]
  labels = f'{_label("configured", forecast)} | {_label("full", forecast)}'
  return '\n'.join([f'| per device | {labels} | ratio |', '|:--|--:|--:|--:|', *rows])


def _label(column: str, forecast: Mapping[str, Any]) -> str:
  return 'full tuning, whole models' if column == 'full' else f'{forecast["method"]}, one base'


def _row(name: str, ours: float, full: float, unit: float, form: str) -> str:
  ratio = f'{ours / full:.1%}' if full else ''
  return f'| {name} | {ours / unit:{form}} | {full / unit:{form}} | {ratio} |'


def verdict(peak: int, device: Device) -> str:
  """'fits: 3.1 GiB of 79.6 GiB', or by how much it does not."""
  sizes = f'{peak / GIB:,.1f} GiB of {device.memory_bytes / GIB:,.1f} GiB'
  return f'fits: {sizes}' if peak <= device.memory_bytes else f'does not fit: needs {sizes}'


def describe(config: ConfigDict, stage: str, forecast: Mapping[str, Any],
             device: Device | None) -> str:
  """The table of a stage, with the verdicts on both of its columns below it."""
  mesh = ' '.join(f'{name}={size}' for name, size in forecast['mesh'].items())
  lines = [f'\n{stage} of {config.model.checkpoint or config.model.size}, '
           f'{forecast["parameters"]:,} parameters, batch {config[stage].batch_size}, '
           f'mesh {mesh}\n', markdown(forecast, stage)]
  if device is not None:
    lines += ['', *(f'* {device.name}, {_label(column, forecast)}: '
                    f'{_says(forecast[column], device)}' for column in ('configured', 'full'))]
  return '\n'.join(lines)


def _says(figures: Mapping[str, Any], device: Device) -> str:
  words = [verdict(figures['peak_bytes'], device)]
  if figures.get('largest_batch') == 0:
    words += ['no batch fits']
  elif 'largest_batch' in figures:
    words += [f'the largest batch that fits is {figures["largest_batch"]:,}']
  if figures['least_seconds'] is not None:
    words += [f'a step takes at least {figures["least_seconds"]:.3g} s (its operations at the peak '
             'rate, nothing else)']
  return '; '.join(words)


def notes(config: ConfigDict, device: Device | None) -> list[str]:
  """What qualifies the figures of every stage."""
  c, lines = config.model, []
  if jax.default_backend() == 'cpu':
    if device is not None and device.name == 'cpu':
      lines += ['Compiled for this machine\'s CPU, as the jobs would be.']
    else:
      lines += ['Compiled by XLA for CPU: an accelerator\'s compiler orders and fuses differently, '
                'and its fused attention, if any, needs about as little as the blocked one here; '
                'without one, the scores of a layer (rows x heads x tokens^2) come on top.']
      if 'bfloat16' in (c.dtype, c.param_dtype):
        lines += ['bfloat16 is compiled as float16, of the same size, without the float32 copies '
                  'of operands that CPUs make (--device=cpu counts them).']
    lines += ['While it updates what is trained, XLA for CPU holds up to two more copies of it: '
              'full tuning\'s peak is an upper bound, "held and gradients" the least that any '
              'trainer needs.']
  lines += ['Held: what the job keeps on the device throughout. Full tuning, whole models: what '
            'learns in float32, frozen roles in model.param_dtype, and no base. (This library\'s '
            'own full tuning keeps the base too, and frozen copies in float32: see '
            '--config.peft.name=full.)',
            'Peak: held, and the largest that one program needs beside it. Not in it: the moment '
            'of loading, and what a device\'s runtime keeps for itself (jax takes 75 % of a GPU '
            'unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise).',
            'Operations are those of matrix products, recomputation included; responses are '
            'counted at rl.max_new_tokens.']
  larger = [s for s in TRAINED if config.evaluate.batch_size > config[s].batch_size]
  if larger:
    lines += [f'evaluate.batch_size={config.evaluate.batch_size} is larger than the batch of '
              f'{", ".join(larger)}: evaluation may need more than is said here.']
  return lines
