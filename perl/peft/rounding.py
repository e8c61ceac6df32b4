"""What merging an adapter into narrow kernels rounds away.

  error = || (merged - W) - change || / || change ||,   change = merge(W) - W in float32

over all parameters that the adapter changes. bfloat16 has 8 bits: of a weight of 0.05 the next
number is 0.0002 away, and a small change is lost whole. A float32 copy holds it, but not where the
computation casts it to bfloat16 again: the dtype that counts is the narrower one of both.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from perl import trees
from perl.peft import adapters
from perl.products import dense
from perl.types import Tree

LIMIT = 0.05
"""The largest error at which a merged copy still stands for base and adapter."""


def error(base: Tree, adapter: Tree, dtype: Any = None) -> float:
  """The error of merging, of what is merged; 0 where nothing changes.

  Args:
    base: dense or quantized, in its dtypes.
    adapter: one that can be folded into it.
    dtype: of the computation; None is the base's own.
  """
  leaves, sums = trees.flat(base), jnp.zeros(2)
  for name, node in adapters.nodes(trees.spread(base, adapter)).items():
    bias = f'{name.removesuffix("/kernel")}/bias'
    own = {path: leaves[path] for path in (name, bias) if path in leaves}
    sums += _squares(own, {name: node}, dtype and jnp.dtype(dtype).name)
  lost, change = (float(x) for x in sums)
  return (lost / change) ** 0.5 if change else 0.0


def holds(base: Tree, adapter: Tree, dtype: Any = None) -> bool:
  """Whether a merged copy stands for both: nothing is rounded, or no more than LIMIT of the change.

  Args:
    base, adapter, dtype: as for `error`.
  """
  kinds = {jnp.dtype(x.dtype).name for x in trees.flat(base).values()}
  return {*kinds, dtype or 'float32'} == {'float32'} or error(base, adapter, dtype) <= LIMIT


def rounded(x: jax.Array, dtype: Any) -> jax.Array:
  """x in float32 with the values that it has in a narrower type.

  A cast to it and back would not do: XLA leaves such a pair out.
  """
  kind = jnp.finfo(dtype)
  return jax.lax.reduce_precision(x.astype(jnp.float32), kind.nexp, kind.nmant)


@functools.partial(jax.jit, static_argnames='dtype')
def _squares(leaves: dict[str, Any], node: dict[str, Any], dtype: str | None) -> jax.Array:
  """(the sum of squares of what is lost, that of the change): f32[2]."""
  before = {name: dense(x.astype(jnp.float32)) for name, x in leaves.items()}
  exact = trees.flat(adapters.merge(trees.nest(before), trees.nest(node)))

  def narrow(name: str, x: jax.Array) -> jax.Array:
    stored = leaves[name].dtype
    return rounded(rounded(x, stored), dtype or stored)

  change = {name: exact[name] - before[name] for name in before}
  lost = {name: narrow(name, exact[name]) - narrow(name, before[name]) - change[name]
          for name in before}
  return jnp.stack([sum(jnp.sum(x * x) for x in parts.values()) for parts in (lost, change)])
