"""Contestants as processes: their environment, their rows, and the machine that they run on.

    python -m experiments.bench.processes

prints the machine: commit, versions, hardware.
"""

import json
import os
import shlex
import subprocess
import sys
import time

import numpy as np

from perl.config import platform


def environment(cache: str = '') -> dict[str, str]:
  """What every contestant starts with: the same malloc, and empty caches of compiled programs.

  Args:
    cache: a folder for these; '' leaves them where they are.
  """
  variables = {**os.environ, **platform.malloc(os.environ), 'HF_HUB_OFFLINE': '1',
               'TOKENIZERS_PARALLELISM': 'false', 'TRL_EXPERIMENTAL_SILENCE': '1'}
  if platform.on_cpu(os.environ):
    variables['JAX_PLATFORMS'] = 'cpu'
  if cache:
    variables['JAX_COMPILATION_CACHE_DIR'] = f'{cache}/xla'
    variables['TORCHINDUCTOR_CACHE_DIR'] = f'{cache}/torch'
  return variables


def run(command: list[str], *, cache: str = '', seconds: float | None = None, **variables) -> dict:
  """The last JSON line that the command prints.

  Args:
    command: program and arguments.
    cache: see `environment`.
    seconds: the most that it may take.
    **variables: of the environment, beyond ours.

  Raises:
    RuntimeError: it failed, took too long, or printed none.
  """
  try:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds,
                          env=environment(cache) | variables)
  except subprocess.TimeoutExpired as error:
    raise RuntimeError(
      f'expected {shlex.join(command)} to end, found it running after {seconds:.0f} s\n'
      'remedy: give it more time (--limit_seconds, --budget_seconds)') from error
  rows = [line for line in done.stdout.splitlines() if line.startswith('{')]
  if done.returncode or not rows:
    raise RuntimeError(
      f'expected a JSON line from {shlex.join(command)}, found exit code {done.returncode} and:\n'
      f'{done.stderr[-2000:]}\nremedy: install the extra `peers`, or run the command by itself')
  return json.loads(rows[-1])


def numpy_gflops(seconds: float = 2.0) -> float:
  """The CPU's rate in a float32 product of 2048 x 2048 matrices, through numpy."""
  a = np.random.default_rng(0).standard_normal((2048, 2048), np.float32)
  a @ a
  count, start = 0, time.perf_counter()
  while time.perf_counter() - start < seconds:
    a @ a
    count += 1
  return 2 * 2048**3 * count / (time.perf_counter() - start) / 1e9


def cuda_gflops(dtype: str, repeats: int = 50, size: int = 8192) -> float:
  """The GPU's rate in a product of 8192 x 8192 matrices of that dtype, through PyTorch."""
  import torch

  a, b = (torch.randn(size, size, device='cuda', dtype=getattr(torch, dtype)) for _ in range(2))
  for _ in range(5):
    a @ b
  torch.cuda.synchronize()
  start = time.perf_counter()
  for _ in range(repeats):
    a @ b
  torch.cuda.synchronize()
  return 2 * size**3 * repeats / (time.perf_counter() - start) / 1e9


def gemm_gflops(dtype: str) -> float:
  """The rate of this machine's matrix products now; on a GPU by a process of its own."""
  if platform.on_cpu(os.environ):
    return numpy_gflops()
  script = ('from experiments.bench import processes; import json; '
            f'print(json.dumps({{"gflops": processes.cuda_gflops({dtype!r})}}))')
  return run([sys.executable, '-c', script])['gflops']


def machine() -> dict:
  """Commit, versions and hardware, by a process of its own: jax would take the GPU in this one."""
  return run([sys.executable, '-m', 'experiments.bench.processes'])


def main() -> None:
  """Prints the machine's row."""
  from perl.train import provenance

  print(json.dumps(provenance.record()), flush=True)


if __name__ == '__main__':
  main()
