"""The work that everybody is given: model shapes, batches, LoRA, and the floating-point operations.

Random weights and random tokens: the point is the time of a step. All sequences are full length, so
that nothing is padded and no rollout ends early. This module imports neither jax nor torch.
"""

import argparse
import importlib.metadata
import json
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np

SIZES = {
  'tiny': dict(layers=4, width=128, heads=4, mlp_width=384, vocab=1024, pairs=16),  # 1 M
  'medium': dict(layers=8, width=512, heads=8, mlp_width=1152, vocab=2048, pairs=16),  # 24 M
}
SEQUENCE = 256  # tokens of each response with its prompt, in reward-model training
ROLLOUT = dict(rows=16, prompt=64, new=64, group=4)
RANK, ALPHA = 8, 16
LEARNING_RATE, BETA = 1e-4, 0.05


def pairs(size: str) -> tuple[np.ndarray, np.ndarray]:
  """Chosen and rejected tokens, i64[pairs, 256] each."""
  rng = np.random.default_rng(0)
  shape = (2, SIZES[size]['pairs'], SEQUENCE)
  chosen, rejected = rng.integers(3, SIZES[size]['vocab'], shape)
  return chosen, rejected


def prompts(size: str) -> np.ndarray:
  """i64[16, 64]: four prompts, four times each."""
  rng = np.random.default_rng(1)
  shape = (ROLLOUT['rows'] // ROLLOUT['group'], ROLLOUT['prompt'])
  return np.repeat(rng.integers(3, SIZES[size]['vocab'], shape), ROLLOUT['group'], axis=0)


def gflop(suite: str, size: str) -> float:
  """Billions of operations that the mathematics of one step needs (a multiply-add is two).

  4 per weight and token for a LoRA step (no gradient of the frozen base), 2 for a forward pass;
  attention as the full square; the rank-8 products are left out.
  """
  s = SIZES[size]
  weights = s['layers'] * (4 * s['width'] ** 2 + 3 * s['width'] * s['mlp_width'])

  def forward(rows: int, length: int, read: int) -> float:
    attention = 4 * s['layers'] * s['width'] * length
    unembed = 2 * s['vocab'] * s['width'] * read * rows
    return (2 * weights + attention) * rows * length + unembed

  if suite == 'rm':
    rows = 2 * s['pairs']
    attention = 4 * s['layers'] * s['width'] * SEQUENCE
    return (4 * weights + 3 * attention) * rows * SEQUENCE / 1e9
  rows, length, new = ROLLOUT['rows'], ROLLOUT['prompt'] + ROLLOUT['new'], ROLLOUT['new']
  once = forward(rows, length, new)
  # Rollout, reference, reward model (no unembedding), update (two more for the gradient).
  return (once + once + forward(rows, length, 0) + 2.5 * once) / 1e9


def measure(step: Callable[[], None], *, steps: int, warmup: int) -> dict:
  """Seconds of `steps` calls after `warmup` calls; each call has to end with its work done."""
  start = time.perf_counter()
  step()
  first = time.perf_counter() - start
  for _ in range(warmup):
    step()
  seconds = []
  for _ in range(steps):
    start = time.perf_counter()
    step()
    seconds.append(time.perf_counter() - start)
  return summary(first, seconds)


def summary(first: float, seconds: Sequence[float]) -> dict:
  """A row's times: of the first step, which may compile, and of the timed ones."""
  return {'median_seconds': statistics.median(seconds), 'min_seconds': min(seconds),
          'max_seconds': max(seconds), 'first_seconds': first, 'steps': len(seconds)}


def arguments(description: str) -> argparse.Namespace:
  """The case that a contestant's command line names: suite, size, steps, warmup."""
  parser = argparse.ArgumentParser(description=description)
  parser.add_argument('--suite', choices=('rm', 'rl'), required=True)
  parser.add_argument('--size', choices=tuple(SIZES), required=True)
  parser.add_argument('--steps', type=int, default=8)
  parser.add_argument('--warmup', type=int, default=2)
  return parser.parse_args()


def report(row: dict, *packages: str) -> None:
  """Prints the row as the last line, which the parent process reads, with packages' versions."""
  versions = {name: importlib.metadata.version(name) for name in packages}
  print(json.dumps({**row, 'versions': versions}), flush=True)
