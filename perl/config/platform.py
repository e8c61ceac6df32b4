"""The environment of a process that computes, set before jax starts.

XLA on CPU allocates every temporary afresh, and the page faults cost more than the arithmetic of
small operations. Telling malloc to keep its memory cures that, but malloc reads its settings when
the process starts: hence one re-execution.

On GPU, XLA is told to hide the latency of collectives behind arithmetic (they then start early and
end late, in streams of their own) and to overlap the transfers of one iteration of a loop with the
arithmetic of the next; attention is cuDNN's wherever a shape allows it (perl/models/attention.py).

XLA of jaxlib 0.10 hands products, reductions and what is fused with them to YNNPACK. Its reductions
are slow on two cores (the backward pass of RMSNorm, and the step with it); its products alone are
what a large vocabulary needs: Eigen packs the whole unembedding anew for each chunk of positions.
"""

import argparse
import importlib.metadata
import os
import pathlib
import sys
from collections.abc import Mapping, Sequence

GUARD = 'PERL_TUNED'
"""Set in the re-executed process (and its children), so that it happens once."""

MALLOC = {
  'MALLOC_MMAP_THRESHOLD_': str(8 << 30),
  'MALLOC_TRIM_THRESHOLD_': str(16 << 30),
  'MALLOC_TOP_PAD_': str(256 << 20),
}

FLAGS_OF_JAXLIB = {'0.10': {
  'cpu': ('--xla_cpu_experimental_ynn_fusion_type=individual_dot',),
  'accelerator': (
    '--xla_gpu_enable_latency_hiding_scheduler=true',
    '--xla_gpu_enable_while_loop_double_buffering=true',
    '--xla_gpu_enable_pipelined_all_gather=true',
    '--xla_gpu_enable_pipelined_reduce_scatter=true',
  ),
}}
"""Flags by version, for those that were tried: XLA ends a process that names a flag it lacks."""

_FLAGS = FLAGS_OF_JAXLIB.get(importlib.metadata.version('jaxlib').rpartition('.')[0], {})
XLA_FLAGS: tuple[str, ...] = _FLAGS.get('cpu', ())
"""Defaults of XLA on CPU, '--xla_name=value' each; a flag that the user sets is left as it is."""
ACCELERATOR_FLAGS: tuple[str, ...] = _FLAGS.get('accelerator', ())
"""The same on a machine with an accelerator."""


VIRTUAL = '--xla_force_host_platform_device_count'


def tune(argv: Sequence[str] = ()) -> None:
  """Re-executes this program once with our defaults in its environment; the user's own stay.

  Does nothing where jax is loaded already, or where a person types (a notebook); an accelerator
  needs no new beginning. PERL_TUNED=1 from outside turns all but the compilation cache off.

  Args:
    argv: the program's flags; `--devices=n` makes as many virtual CPU devices.
  """
  _add_devices(argv)
  os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(cache_folder()))
  if GUARD in os.environ or 'jax' in sys.modules or hasattr(sys, 'ps1'):
    return
  if not on_cpu(os.environ):
    if flags := merged_flags(os.environ, ACCELERATOR_FLAGS):
      os.environ['XLA_FLAGS'] = flags
    return
  wanted = environment(os.environ)
  if any(os.environ.get(name) != value for name, value in wanted.items()):
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]],
              {**os.environ, **wanted, GUARD: '1'})


def _add_devices(argv: Sequence[str]) -> None:
  """As many virtual CPU devices as --devices says; jax reads that when it is first imported."""
  reader = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
  reader.add_argument('--devices', type=int, default=0)
  count = reader.parse_known_args(argv)[0].devices
  flags = os.environ.get('XLA_FLAGS', '')
  if count > 0 and VIRTUAL not in flags:
    os.environ.update(XLA_FLAGS=f'{flags} {VIRTUAL}={count}'.strip(), JAX_PLATFORMS='cpu')


def cache_folder() -> pathlib.Path:
  """Where compiled programs are kept from run to run."""
  return pathlib.Path('~/.cache/perl/xla').expanduser()


def on_cpu(environ: Mapping[str, str]) -> bool:
  """Whether jax will compute on the CPU, told without loading it."""
  platforms = environ.get('JAX_PLATFORMS', '')
  if platforms:
    return platforms.split(',')[0] == 'cpu'
  devices = ('/dev/nvidia0', '/dev/kfd', '/dev/accel0', '/dev/vfio/0')
  return not any(os.path.exists(device) for device in devices)


def malloc(environ: Mapping[str, str]) -> dict[str, str]:
  """Our settings of malloc with the user's values where there are some."""
  return {name: environ.get(name, value) for name, value in MALLOC.items()}


def environment(environ: Mapping[str, str]) -> dict[str, str]:
  """Our variables with the user's values where there are some, XLA's flags merged one by one."""
  chosen = malloc(environ)
  if flags := merged_flags(environ, XLA_FLAGS):
    chosen['XLA_FLAGS'] = flags
  return chosen


def merged_flags(environ: Mapping[str, str], ours: tuple[str, ...]) -> str:
  """XLA_FLAGS: the user's, and those of ours whose names are not among them."""
  users = environ.get('XLA_FLAGS', '').split()
  names = {flag.split('=', 1)[0] for flag in users}
  return ' '.join([flag for flag in ours if flag.split('=', 1)[0] not in names] + users)
