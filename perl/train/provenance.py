"""Where a result comes from: the code's commit, package versions, the machine, the memory used."""

import importlib.metadata
import os
import pathlib
import platform
import re
import subprocess

import jax

from perl import machine as host

PACKAGES = (
  'perl-rlhf', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'numpy', 'tokenizers',
  'tensorflow-datasets',
)


def commit(file: str | os.PathLike = __file__) -> str:
  """The git commit of the code, with '+dirty' if tracked files were changed; else 'unknown'.

  Args:
    file: a file of the code. It must be tracked: a package that is installed inside some other
      repository (in its .venv) has not that repository's commit.
  """
  path = pathlib.Path(file).resolve()

  def git(*arguments: str) -> str:
    return subprocess.run(
      ('git', '-C', str(path.parent), *arguments), capture_output=True, text=True, check=True,
      timeout=20,
    ).stdout.strip()

  try:
    git('ls-files', '--error-unmatch', path.name)
    changed = git('status', '--porcelain', '--untracked-files=no')
    return git('rev-parse', 'HEAD') + ('+dirty' if changed else '')
  except (OSError, subprocess.SubprocessError):
    return 'unknown'


def versions() -> dict[str, str]:
  """{package: version} of Python and the packages that decide a result and are installed."""
  known = {'python': platform.python_version()}
  for name in PACKAGES:
    try:
      known[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      continue
  return known


def hardware() -> dict[str, str | int]:
  """The machine: processor, cores that this process may use, memory, accelerators."""
  device = jax.devices()[0]
  return {
    'cpu': _cpu_model(),
    'cores': len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count(),
    'memory_bytes': host.memory_bytes(),
    'platform': device.platform,
    'device_kind': device.device_kind,
    'device_count': jax.device_count(),
    'host_count': jax.process_count(),
  }


def peak_memory_bytes() -> int:
  """The most memory used so far: on the fullest local device, or, on CPU, by this process."""
  stats = [device.memory_stats() or {} for device in jax.local_devices()]
  peaks = [s['peak_bytes_in_use'] for s in stats if 'peak_bytes_in_use' in s]
  return int(max(peaks)) if peaks else _peak_process_bytes()


def record() -> dict:
  """commit, versions and hardware: what stands beside every result."""
  return {'commit': commit(), 'versions': versions(), 'hardware': hardware()}


def _peak_process_bytes() -> int:
  """VmHWM, the peak of resident memory, of /proc; elsewhere getrusage."""
  try:
    status = pathlib.Path('/proc/self/status').read_text()
    return int(re.search(r'^VmHWM:\s+(\d+) kB', status, re.MULTILINE).group(1)) * 1024
  except (OSError, AttributeError):
    import resource  # Unix only

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == 'Darwin' else peak * 1024


def _cpu_model() -> str:
  try:
    info = pathlib.Path('/proc/cpuinfo').read_text()
    return re.search(r'^model name\s*:\s*(.+)$', info, re.MULTILINE).group(1).strip()
  except (OSError, AttributeError):
    return platform.processor() or platform.machine()
