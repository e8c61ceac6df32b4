"""rsLoRA: LoRA with s = alpha / sqrt(r) (Kalajdzievski, arXiv 2312.03732).

With alpha / r the adapter's output shrinks as r grows; with the root it does not.
"""

import jax

from perl.peft.methods import lora
from perl.peft.methods.lora import LoRA, parameters

__all__ = ['LoRA', 'init', 'parameters']


def init(
  key: jax.Array, weight: jax.Array, *, rank: int = 8, alpha: float = 16.0, dropout: float = 0.0
) -> LoRA:
  """As `lora.init`."""
  return lora.init(key, weight, rank=rank, alpha=alpha, rslora=True, dropout=dropout)
