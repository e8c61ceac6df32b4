"""LoRA-FA: LoRA with a frozen A (Zhang et al., arXiv 2308.03303). Trained is B alone.

The gradient of B needs x A, of width r, and not x: activations are kept r / I as wide.
"""

import functools
import math
from typing import ClassVar

from perl.peft.methods import lora
from perl.peft.methods.lora import LoRA


class LoRAFA(LoRA):
  """y = x W + s (x A) B, with A as it was drawn."""

  FIXED: ClassVar[tuple[str, ...]] = ('a', 'scale')


init = functools.partial(lora.init, kind=LoRAFA)


def parameters(shape: tuple[int, ...], *, rank: int = 8) -> int:
  """r O a matrix."""
  *lead, _, columns = shape
  return math.prod(lead) * rank * columns
