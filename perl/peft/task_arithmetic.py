"""Arithmetic on adapters: weighted sums, and task vectors (Ilharco et al., arXiv 2212.04089)."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from perl import trees
from perl.peft import adapters
from perl.peft.methods import lora
from perl.products import dense
from perl.types import Tree


def weighted_sum(base: Tree, terms: Sequence[Tree], weights: Sequence[float]) -> Tree:
  """The adapter with W' - W = sum_i c_i (W_i' - W), exactly; heads are summed too.

  Low-rank methods give one LoRA of the summed rank (merging A with A and B with B, as is done
  elsewhere, gives cross terms). Negative weights take away what was learnt.

  Args:
    base: what all of them lie over.
    terms: adapters.
    weights: c_i, as many.

  Raises:
    ValueError: none or not as many weights, or a method whose change of W is in no such sum.
  """
  if not terms or len(terms) != len(weights):
    raise ValueError(f'expected a weight for each adapter, found {len(terms)} adapters and '
                     f'{len(weights)} weights')
  leaves = trees.flat(base)
  parts: dict[str, list] = {}
  for term, weight in zip(terms, weights):
    for path, node in adapters.nodes(term).items():
      parts.setdefault(path, []).append((node, weight))
  out = trees.nest({path: _sum(path, pairs, leaves.get(path)) for path, pairs in parts.items()})
  heads = [(term['head'], c) for term, c in zip(terms, weights) if 'head' in term]
  if heads:
    scaled = [jax.tree.map(lambda x, c=c: c * x, head) for head, c in heads]
    out['head'] = jax.tree.map(lambda *x: sum(x), *scaled)
  return out


def _sum(path: str, pairs: list[tuple[Any, float]], w: Any) -> Any:
  """The sum at one place."""
  first = pairs[0][0]
  if all(hasattr(node, 'to_lora') for node, _ in pairs):
    plain = [node.to_lora(w) for node, _ in pairs]
    total = None
    for node, (_, c) in zip(plain, pairs):
      scaled = node.replace(scale=c * node.scale)
      total = scaled if total is None else lora.concatenate(total, scaled)
    return total
  linear = getattr(first, 'LINEAR', None)
  if linear is None or any(type(node) is not type(first) for node, _ in pairs):
    kinds = ', '.join(sorted({type(node).__name__ for node, _ in pairs}))
    raise ValueError(
      f'expected adapters of which one can form a sum, low-rank ones or such as change W linearly, '
      f'found {kinds} at {path}; use task_vector, if they can be folded into the base')
  fields = {}
  for name, origin in linear.items():
    zero = dense(w.astype(jnp.float32)) if origin is None else origin
    if origin is None and zero.shape != getattr(first, name).shape:  # of the last layers alone
      zero = zero[-len(getattr(first, name)):]
    fields[name] = zero + sum(c * (getattr(node, name) - zero) for node, c in pairs)
  return first.replace(**fields)


def task_vector(base: Tree, adapter: Tree) -> Tree:
  """W' - W of every parameter that an adapter changes, f32, for methods that can be folded in."""
  whole = trees.cast(base, jnp.float32)  # in a narrower one a small change is rounded away
  own, merged = trees.flat(whole), trees.flat(adapters.merge(whole, adapter))
  changed = {name for path in adapters.nodes(trees.spread(base, adapter))
             for name in (path, f'{path.removesuffix("/kernel")}/bias') if name in own}
  return trees.nest({n: dense(merged[n]) - dense(own[n]) for n in own if n in changed})


def add(base: Tree, vectors: Sequence[Tree], weights: Sequence[float]) -> Tree:
  """W + sum_i c_i (W_i' - W), in the base's dtypes."""
  leaves = trees.flat(base)
  for vector, c in zip(vectors, weights, strict=True):
    for name, delta in trees.flat(vector).items():
      moved = dense(leaves[name].astype(jnp.float32)) + c * delta
      leaves[name] = moved.astype(leaves[name].dtype)
  return trees.nest(leaves)
