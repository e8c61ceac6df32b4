"""What a device holds and how fast it may be, by its maker's figures: for verdicts and bounds."""

import dataclasses

from perl import machine
from perl.config.fields import ConfigError, nearest

GIB = 2**30
TERA = 10**12


@dataclasses.dataclass(frozen=True)
class Device:
  """One accelerator.

  Attributes:
    name: as the user calls it.
    memory_bytes: all that there is.
    peak_flops: {dtype of the computation: operations a second of dense products}; empty where no
      maker's figure is known.
    bandwidth: bytes a second between memory and processor; 0 where unknown.
  """

  name: str
  memory_bytes: int
  peak_flops: dict[str, float] = dataclasses.field(default_factory=dict)
  bandwidth: float = 0.0


def _gpu(name: str, mib: int, half: float, single: float, bandwidth: float) -> Device:
  """Memory in MiB as nvidia-smi counts it; peaks in TFLOP/s; bandwidth in GB/s."""
  peaks = {'bfloat16': half * TERA, 'float16': half * TERA, 'float32': single * TERA}
  return Device(name, mib * 2**20, peaks, bandwidth * 1e9)


def _tpu(name: str, gib: int, half: float, bandwidth: float) -> Device:
  """A float32 product is one pass in bfloat16 at jax's default precision: one peak for both."""
  peaks = dict.fromkeys(('bfloat16', 'float32'), half * TERA)
  return Device(name, gib * GIB, peaks, bandwidth * 1e9)


DEVICES: dict[str, Device] = {device.name: device for device in (
  # Data sheets of NVIDIA, dense rates: H100 SXM5, A100 SXM4, Ada GPU architecture 1.1 (RTX 4090,
  # accumulating in float32). float32 is TF32, in which jax multiplies by default.
  _gpu('h100', 81559, 989.4, 494.7, 3352),
  _gpu('a100-40', 40960, 312.0, 156.0, 1555),
  _gpu('a100-80', 81920, 312.0, 156.0, 2039),
  _gpu('rtx4090', 24564, 165.2, 82.6, 1008),
  # Per chip, from the system architecture pages of cloud.google.com/tpu/docs.
  _tpu('tpu-v4', 32, 275.0, 1228),
  _tpu('tpu-v5e', 16, 197.0, 819),
  _tpu('tpu-v5p', 95, 459.0, 2765),
)}
"""Name -> device. 'cpu' is beside them: the memory of this machine."""


def find(name: str = '', gib: float = 0.0) -> Device | None:
  """The device of that name, one of `gib` GiB, or None where neither is given.

  Raises:
    ConfigError: both are given, the size is not positive, or nobody knows the name.
  """
  if name and gib:
    raise ConfigError(f'expected --device or --device_gib, found both ({name}, {gib}); drop one')
  if gib < 0:
    raise ConfigError(f'expected a positive --device_gib, found {gib}; give GiB of one device')
  if gib:
    return Device(f'a device of {gib:g} GiB', int(gib * GIB))
  if name == 'cpu':
    return Device('cpu', machine.memory_bytes())
  if name and name not in DEVICES:
    names = [*DEVICES, 'cpu']
    raise ConfigError(f'expected --device among {", ".join(names)}, found {name!r}'
                      f'{nearest(name, names) or "; --device_gib=<GiB> takes any size"}')
  return DEVICES.get(name)
