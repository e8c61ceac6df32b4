"""Full tuning of the last layers alone; below them nothing has a gradient.

What the frozen layers compute is not kept, and their backward pass is not run.
"""

from collections.abc import Mapping, Sequence

import jax

from perl.peft.methods.full import Full, init, parameters

__all__ = ['Full', 'init', 'parameters', 'places', 'top']


def places(leaves: Mapping[str, jax.Array], targets: Sequence[str]) -> dict[str, str]:
  """Every parameter of a layer, and the last norm's."""
  del targets
  return {name: name for name in leaves if name.startswith(('layers/', 'final_norm/'))}


def top(layers: int) -> int:
  """How many layers where none are asked for: a quarter."""
  return max(1, layers // 4)
