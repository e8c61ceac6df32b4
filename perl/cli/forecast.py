"""Memory and arithmetic of every stage of a config, before anything is bought, loaded or run.

    perl-rlhf forecast --config=coffee:size=tiny --device=h100 --stages=rl \
        --config.model.size=llama-3.2-1b --config.model.remat=layer
    perl-rlhf forecast --config=coffee:size=tiny --device=tpu-v5e --stages=sft,rl \
        --devices=8 --config.mesh.fsdp=8 --config.model.size=llama-2-7b

The programs that the jobs would run are compiled on shapes, at the longest batch; no array, data or
tokenizer is needed. `--devices` makes as many virtual ones, over which config.mesh splits. All
figures are per device. What is not in them: evaluation (its batches are evaluate.batch_size), the
moment of loading, and what the runtime of a device keeps for itself.
"""

import dataclasses
import os
from collections.abc import Sequence

import jax
from ml_collections import ConfigDict

from perl.cli import launch
from perl.config import command_line, platform
from perl.config.fields import ConfigError, nearest, plain
from perl.forecast import devices, study, table
from perl.jobs import TRAINED
from perl.train import metrics, provenance


@command_line.guarded
def main(argv: Sequence[str] | None = None) -> None:
  """The program; returns the exit code: 2 for a wrong config or flag, else 0."""
  reader = command_line.parser('perl-rlhf forecast', __doc__.split('\n', 1)[0])
  reader.set_defaults(workdir=os.devnull)  # a forecast reads and writes none
  reader.add_argument('--stages', default='', help='some of the config\'s, with commas')
  reader.add_argument('--device', default='', help=f'{", ".join(devices.DEVICES)} or cpu')
  reader.add_argument('--device_gib', type=float, default=0.0, help='a device of that many GiB')
  reader.add_argument('--devices', type=int, default=0, help='virtual devices, for config.mesh')
  reader.add_argument('--no_search', action='store_true', help='do not look for the largest batch')
  reader.add_argument('--json', default='', help='also write the forecast to this file')
  options, overrides = command_line.parse(reader, argv)
  config = command_line.read(options.config, overrides)
  launch.check(config)
  _check_devices(options.devices)
  device, names = devices.find(options.device, options.device_gib), _stages(config, options.stages)
  _report(config, names, device, search=not options.no_search, path=options.json)


def _stages(config: ConfigDict, text: str) -> list[str]:
  names = text.split(',') if text else [s for s in config.stages if s in TRAINED]
  for name in names:
    if name not in TRAINED:
      raise ConfigError(f'expected --stages among {", ".join(TRAINED)}, found {name!r}'
                        f'{nearest(name, TRAINED) or "; name some of them"}')
  return names


def _check_devices(count: int) -> None:
  if count < 0 or count not in (0, jax.device_count()):
    raise ConfigError(
      f'expected {count} devices, found {jax.device_count()}; start the program anew with '
      f'--devices as its own flag, and take {platform.VIRTUAL} out of XLA_FLAGS')


def _report(config: ConfigDict, names: Sequence[str], device: devices.Device | None, *,
            search: bool, path: str) -> None:
  """Prints a table a stage, then what qualifies all of them, and writes the JSON."""
  results = {}
  for stage in names:
    results[stage] = study.forecast(config, stage, device, search=search)
    print(table.describe(config, stage, results[stage], device), flush=True)
  notes = table.notes(config, device)
  print('\n' + '\n'.join(f'* {note}' for note in notes))
  if path:
    metrics.write_json(path, {
      'command': 'perl-rlhf forecast', 'config': plain(config), 'notes': notes,
      'device': device and dataclasses.asdict(device), 'stages': results, **provenance.record(),
    })
