"""Rotary positions (Su et al., arXiv 2104.09864) and the ways in which releases stretch them."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

KINDS = ('linear', 'llama3', 'yarn')
TABLE_BYTES = 2**20
"""A table of so many bytes, for cos and sin each, may be part of a program on CPU."""


@dataclasses.dataclass(frozen=True)
class Scaling:
  """How the frequencies of a longer context are made from those of the first training.

  Kinds: 'linear' divides all by `factor` (Chen et al., arXiv 2306.15595); 'llama3' divides those
  whose wavelength is long, and blends in between (Llama 3.1's release); 'yarn' blends by the number
  of turns within the first context, and sharpens attention (Peng et al., arXiv 2309.00071).
  """

  kind: str
  factor: float
  original_positions: int = 0  # context of the first training, tokens (llama3, yarn)
  low_freq_factor: float = 1.0  # llama3: wavelengths above original / low are divided
  high_freq_factor: float = 4.0  # llama3: those below original / high stay
  beta_fast: float = 32.0  # yarn: frequencies with more turns than this stay
  beta_slow: float = 1.0  # yarn: those with fewer are divided
  truncate: bool = True  # yarn: the bounds of the blend are whole numbers
  attention_factor: float = 1.0  # yarn: of cos and sin, so that its square scales the scores

  def __post_init__(self):
    if self.kind not in KINDS:
      raise ValueError(f'expected a scaling of rotary positions among {KINDS}, found {self.kind!r}')
    if self.kind != 'linear' and self.original_positions < 1:
      raise ValueError(
        f'expected original_positions of at least 1 for {self.kind!r}, found '
        f'{self.original_positions}; it is the context of the first training')


def frequencies(
  width: int, theta: float, *, fraction: float = 1.0, scaling: Scaling | None = None
) -> np.ndarray:
  """f32[R / 2] radians a token: theta^(-2i / R), over the first R = fraction * width entries.

  Args:
    width: of a head.
    theta: base of the wavelengths.
    fraction: of the head's width that rotates (NeoX: 0.25).
    scaling: see `Scaling`.
  """
  rotary = int(width * fraction)
  plain = np.float32(theta) ** (-np.arange(0, rotary, 2, dtype=np.float32) / rotary)
  if scaling is None:
    return plain
  if scaling.kind == 'linear':
    return plain / scaling.factor
  kept = _kept_llama3(plain, scaling) if scaling.kind == 'llama3' else (
    _kept_yarn(plain, rotary, theta, scaling))
  return kept * plain + (1.0 - kept) * plain / scaling.factor


def _kept_llama3(plain: np.ndarray, scaling: Scaling) -> np.ndarray:
  """The share of each frequency that stays as it is: 1 for short waves, 0 for long ones."""
  turns = scaling.original_positions * plain / (2 * math.pi)  # within the first context
  low, high = scaling.low_freq_factor, scaling.high_freq_factor
  return np.clip((turns - low) / (high - low), 0.0, 1.0)


def _kept_yarn(plain: np.ndarray, rotary: int, theta: float, scaling: Scaling) -> np.ndarray:
  """The same by entry: a ramp between the entries that turn beta_fast and beta_slow times."""

  def entry(turns: float) -> float:
    ratio = scaling.original_positions / (turns * 2 * math.pi)
    return rotary * math.log(ratio) / (2 * math.log(theta))

  low, high = entry(scaling.beta_fast), entry(scaling.beta_slow)
  if scaling.truncate:
    low, high = math.floor(low), math.ceil(high)
  low, high = max(low, 0), min(high, rotary - 1)
  high += 0.001 if low == high else 0.0
  return 1.0 - np.clip((np.arange(plain.shape[0], dtype=np.float32) - low) / (high - low), 0, 1)


def rotate(
  x: jax.Array,
  positions: jax.Array,
  frequency: np.ndarray | jax.Array,
  factor: float = 1.0,
  reach: int | None = None,
) -> jax.Array:
  """Rotary positions, halves convention: (x_i, x_{i + R/2}) turns by position * frequency_i.

  Entries beyond the first R of a head pass.

  Args:
    x: f[B, T, N, K].
    positions: i32[B, T].
    frequency: f32[R / 2], see `frequencies`.
    factor: of cos and sin (`Scaling.attention_factor`).
    reach: no position is as large as this; None where it is not known.
  """
  half = frequency.shape[-1]
  cos, sin = (y[..., None, :] for y in _turns(positions, frequency, reach))
  if factor != 1.0:
    cos, sin = cos * factor, sin * factor
  first, second, rest = jnp.split(x.astype(jnp.float32), [half, 2 * half], -1)
  out = [first * cos - second * sin, second * cos + first * sin, rest]
  return jnp.concatenate(out, -1).astype(x.dtype)


def _turns(
  positions: jax.Array, frequency: np.ndarray | jax.Array, reach: int | None
) -> tuple[jax.Array, jax.Array]:
  """cos and sin, f32[B, T, R / 2].

  XLA on CPU computes a cosine again wherever it is used, for every head and both halves: 12 ms for
  the queries of 4,096 tokens and 8 heads, against 0.4 ms out of a table. There they are looked up.
  """
  known = isinstance(frequency, np.ndarray) and reach is not None
  if known and jax.default_backend() == 'cpu' and 4 * reach * len(frequency) <= TABLE_BYTES:
    angles = np.arange(reach, dtype=np.float32)[:, None] * frequency
    return tuple(jnp.asarray(f(angles))[positions] for f in (np.cos, np.sin))
  angle = positions[..., None].astype(jnp.float32) * frequency
  return jnp.cos(angle), jnp.sin(angle)
