"""LoRA+: LoRA whose B has a larger learning rate than A (Hayou et al., arXiv 2402.12354).

lr_B = ratio lr_A,      ratio >> 1 (section 4; 16 in their experiments)
"""

from typing import Any

import jax
import optax

from perl.peft.methods.lora import LoRA, init, parameters
from perl.types import Tree

__all__ = ['LoRA', 'init', 'optimizer', 'parameters']


def optimizer(
  tx: optax.GradientTransformation, *, rate_ratio: float = 16.0
) -> optax.GradientTransformation:
  """`tx`, whose updates of B (its weight decay too) are `rate_ratio` times as large.

  Args:
    tx: an optax chain that ends with the learning rate, A's.
    rate_ratio: lr_B / lr_A.
  """
  is_lora = lambda node: isinstance(node, LoRA)

  def scale(node: Any) -> Any:
    if not is_lora(node):
      return node
    return node.replace(b=jax.tree.map(lambda update: rate_ratio * update, node.b))

  def update(updates: Tree, state: Tree, params: Tree | None = None) -> tuple[Tree, Tree]:
    del params
    return jax.tree.map(scale, updates, is_leaf=is_lora), state

  return optax.chain(tx, optax.GradientTransformation(lambda _: optax.EmptyState(), update))
