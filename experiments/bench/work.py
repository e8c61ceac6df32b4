"""The work that everybody is given: shapes, batches, LoRA; and how it is timed and reported.

Random weights (experiments/bench/weights.py writes them) and random tokens: the point is the
time of a step. All sequences are full length, so that nothing is padded and no rollout ends early.
This module imports neither jax nor torch.
"""

import argparse
import dataclasses
import importlib.metadata
import json
import pathlib
import re
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np

RANK, ALPHA = 8, 16
TARGETS = ('q_proj', 'k_proj', 'v_proj', 'o_proj')
LEARNING_RATE, BETA, CLIP = 1e-4, 0.05, 1.0
ROPE_THETA = 1e6
"""Everybody's: Tunix 0.1.7's Llama3 rotates with this base, whatever its config says."""
NORM_EPS = 1e-6
PAD, BOS, EOS = 0, 1, 2  # no batch holds them; a sampled response may, and goes on
GREEDY = 16
"""Tokens that the check of decoding takes (untimed)."""

SUITES = {
  'rm': 'reward model: one LoRA step on pairs',
  'sft': 'next tokens: one LoRA step on the same rows, labels on all positions',
  'decode': 'sampling with the LoRA policy',
  'rl': 'one online step: sample, reward, reference log-probs, update',
}
CHECKS = {'rm': 'first_loss', 'sft': 'first_loss', 'decode': 'greedy_logprob'}
"""What contestants must agree in: the first step's loss; the mean log-prob of greedy tokens."""


@dataclasses.dataclass(frozen=True)
class Size:
  """A Llama with tied embeddings, and the batches of its suites."""

  layers: int
  width: int
  heads: int
  kv_heads: int
  head_dim: int
  mlp_width: int
  vocab: int
  pairs: int  # of a reward-model step; next tokens are learnt on both rows of each
  length: int = 256  # tokens of each row in training
  prompts: int = 4  # of an RL step; decoding has prompts * samples distinct ones
  samples: int = 4  # of each prompt
  prompt: int = 64  # tokens
  new: int = 64  # tokens sampled
  dtype: str = 'float32'  # of weights and computation

  @property
  def rows(self) -> int:
    """Responses sampled at once."""
    return self.prompts * self.samples

  @property
  def attention_width(self) -> int:
    """Columns of all queries together."""
    return self.heads * self.head_dim


SIZES = {
  'check': Size(2, 64, 2, 1, 32, 96, 256, pairs=2, length=16, prompts=2, samples=2, prompt=8,
                new=8),  # for tests
  'tiny': Size(4, 128, 4, 4, 32, 384, 1024, pairs=16),  # 1 M
  'medium': Size(8, 512, 8, 8, 64, 1152, 2048, pairs=8),  # 24 M
  'smollm2': Size(30, 576, 9, 3, 64, 1536, 49_152, pairs=4),  # the shape of SmolLM2-135M
  '1b': Size(16, 2048, 32, 8, 64, 8192, 128_256, pairs=8, length=512, prompts=16, prompt=128,
             new=128, dtype='bfloat16'),  # the shape of Llama 3.2 1B
}


def pairs(size: str) -> tuple[np.ndarray, np.ndarray]:
  """Chosen and rejected tokens, i64[pairs, length] each."""
  s = SIZES[size]
  chosen, rejected = np.random.default_rng(0).integers(3, s.vocab, (2, s.pairs, s.length))
  return chosen, rejected


def rows(size: str) -> np.ndarray:
  """Both sides of the pairs, chosen ones first, i64[2 pairs, length]."""
  return np.concatenate(pairs(size))


def prompts(size: str) -> np.ndarray:
  """The prompts of decoding, all distinct, i64[prompts * samples, prompt]."""
  s = SIZES[size]
  return np.random.default_rng(1).integers(3, s.vocab, (s.rows, s.prompt))


def rl_prompts(size: str) -> np.ndarray:
  """The prompts of an RL step, once each, i64[prompts, prompt]."""
  return prompts(size)[:SIZES[size].prompts]


def text(ids: Sequence[int]) -> str:
  """Tokens as words, for peers that take text alone; `ids` is the inverse."""
  return ' '.join(f'w{i}' for i in ids)


def ids(words: str) -> list[int]:
  """The tokens of a `text`."""
  return [int(word[1:]) for word in words.split()]


def tokens_per_step(suite: str, size: str) -> int:
  """Tokens that a step is about: read in training, sampled in decoding and RL."""
  s = SIZES[size]
  return 2 * s.pairs * s.length if suite in ('rm', 'sft') else s.rows * s.new


def measure(step: Callable[[], object], *, steps: int, warmup: int) -> dict:
  """Seconds of `steps` calls after `warmup` calls; each call has to end with its work done.

  What the first call returns, if anything, is the row's `first_loss`.
  """
  start = time.perf_counter()
  value = step()
  first = time.perf_counter() - start
  for _ in range(warmup):
    step()
  seconds = []
  for _ in range(steps):
    start = time.perf_counter()
    step()
    seconds.append(time.perf_counter() - start)
  return summary(first, seconds) | ({} if value is None else {'first_loss': float(value)})


def summary(first: float, seconds: Sequence[float]) -> dict:
  """A row's times: of the first step, which may compile, and of the timed ones."""
  return {'median_seconds': statistics.median(seconds), 'min_seconds': min(seconds),
          'max_seconds': max(seconds), 'first_seconds': first, 'steps': len(seconds)}


def between(starts: Sequence[float], args: argparse.Namespace) -> dict:
  """A row's times from when each step starts, the end of the last one with them."""
  seconds = [b - a for a, b in zip(starts, starts[1:])]
  expected = 1 + args.warmup + args.steps
  if len(seconds) != expected:
    raise RuntimeError(f'expected {expected} steps, found {len(seconds)}; remedy: install the '
                       'versions of the extra `peers`, or google-tunix 0.1.7')
  return summary(seconds[0], seconds[1 + args.warmup:])


def peak_memory_bytes() -> int:
  """The peak of this process's resident memory (VmHWM; ru_maxrss would begin with the parent's)."""
  status = pathlib.Path('/proc/self/status').read_text()
  return int(re.search(r'^VmHWM:\s+(\d+) kB', status, re.MULTILINE).group(1)) * 1024


def parser(description: str) -> argparse.ArgumentParser:
  """One whose help shows the description as it is written."""
  return argparse.ArgumentParser(
    description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def arguments(description: str, variants: Sequence[str] = ('',)) -> argparse.Namespace:
  """The case that a contestant's command line names."""
  flags = parser(description)
  flags.add_argument('--suite', choices=tuple(SUITES), required=True)
  flags.add_argument('--size', choices=tuple(SIZES), required=True)
  flags.add_argument('--weights', type=pathlib.Path, required=True,
                     help='the folder that experiments.bench.weights wrote')
  flags.add_argument('--dtype', default='', help="float32 or bfloat16; '' is the size's own")
  flags.add_argument('--variant', choices=tuple(variants), default=variants[0])
  flags.add_argument('--steps', type=int, default=8)
  flags.add_argument('--warmup', type=int, default=2)
  flags.add_argument('--profile', default='', help='trace two steps into this folder (ours alone)')
  args = flags.parse_args()
  args.weights = args.weights.resolve()
  args.dtype = args.dtype or SIZES[args.size].dtype
  return args


def report(row: dict, *packages: str) -> None:
  """Prints the row as the last line, which the parent process reads, with packages' versions."""
  versions = {}
  for name in packages:
    try:
      versions[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      continue
  print(json.dumps({**row, 'versions': versions}), flush=True)
