"""Into how many parts a batch is cut, one after another: what the backward pass keeps of all of it
need not be there at once.

On CPU the parts of a large model cost no time as long as they have some hundred tokens: its
products are as fast. A small model's batch stays whole, and so does every batch on an accelerator,
which wants it large.
"""

from collections.abc import Callable

import jax

from perl import trees
from perl.types import Batch, Tree

SMALL_BYTES = 2**27
"""A base of at most so many bytes learns from whole batches: what they keep is little."""

PART_BYTES = 2**30
"""What the backward pass of a part may keep; half the base's bytes, if that is more."""


def count(
  gradient: Callable[[Batch], object], base: Tree, batch: Batch, least: int = 1, together: int = 1
) -> int:
  """The fewest parts that keep no more than PART_BYTES each, a multiple of `least`.

  Parts have equally many groups of rows, hence it divides the batch; the most there are where even
  these keep more.

  Args:
    gradient: of the loss of a part; its result's leaves are what the backward pass keeps.
    base: the frozen parameters.
    batch: leaves of [B, ...], arrays or shapes.
    least: as many parts as the caller wants anyhow.
    together: rows in turn that stay in one part, over all devices.
  """
  size = trees.size_bytes(base)
  if size <= SMALL_BYTES:
    return least
  groups = len(jax.tree.leaves(batch)[0]) // together
  one, two = (_kept(gradient, batch, rows * together) for rows in (1, 2))
  return fewest(groups, least, two - one, max(PART_BYTES, size // 2))


def fewest(groups: int, least: int, group_bytes: int, most_bytes: int) -> int:
  """The smallest divisor of `groups`, a multiple of `least`, with parts of at most most_bytes."""
  divisors = [n for n in range(least, groups + 1, least) if groups % n == 0] or [least]
  return next((n for n in divisors if groups // n * group_bytes <= most_bytes), divisors[-1])


def _kept(gradient: Callable[[Batch], object], batch: Batch, rows: int) -> int:
  """Bytes of what the backward pass keeps of so many rows, and of what it keeps anyhow."""
  few = jax.tree.map(lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype), batch)
  return trees.size_bytes(jax.eval_shape(gradient, few))
