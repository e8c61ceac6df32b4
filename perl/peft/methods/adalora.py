"""AdaLoRA: a budget of rank spread over all matrices (Zhang et al., arXiv 2303.10512).

  W' = W + s P diag(e) Q

e begins at 0 with b(0) = initial rank x matrices entries; as training goes on, those of the least
importance are set to 0 until the budget's final b(T) are left (equations 5 to 10).
"""

import math
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct

from perl.peft.methods import lora
from perl.peft.methods.lora import LoRA
from perl.peft.protocol import Additive
from perl.products import low_rank
from perl.types import Tree


class AdaLoRA(Additive, struct.PyTreeNode):
  """y = x W + s ((x P) e) Q."""

  FIXED: ClassVar[tuple[str, ...]] = ('scale',)

  p: jax.Array  # f32[..., I, r]
  e: jax.Array  # f32[..., r], zero at init
  q: jax.Array  # f32[..., r, O]
  scale: jax.Array  # f32[...]
  dropout: float = struct.field(pytree_node=False, default=0.0)

  def project(self, x: jax.Array, w: jax.Array, key: jax.Array | None = None) -> jax.Array:
    """f[..., O] of x f[..., I] and w f[I, O]; `key` turns dropout of P's input on."""
    z = lora.dropped(x, self.dropout, key)
    return x @ w + low_rank(z, self.p, self.e[..., None] * self.q, self.scale)

  def change(self, w: jax.Array) -> jax.Array:
    """s P diag(e) Q."""
    return self.to_lora(w).change(w)

  def to_lora(self, w: jax.Array) -> LoRA:
    """The same function as plain LoRA."""
    del w
    return LoRA(a=self.p, b=self.e[..., None] * self.q, scale=self.scale, dropout=self.dropout)


def init(
  key: jax.Array,
  weight: jax.Array,
  *,
  rank: int = 8,
  alpha: float = 16.0,
  dropout: float = 0.0,
  initial_rank: int = 0,
) -> AdaLoRA:
  """P, Q ~ N(0, 0.02^2), e = 0: the base's function, exactly.

  Args:
    key, weight, alpha, dropout: as `lora.init`.
    rank: the mean rank of a matrix at the end.
    initial_rank: that at the start; 0: half as much again (section 4), at most min(I, O).
  """
  *lead, rows, columns = weight.shape
  start = _initial(rank, initial_rank, rows, columns)
  lora.check(weight.shape, start, dropout)
  keys = jax.random.split(key)
  draw = lambda key, shape: 0.02 * jax.random.normal(key, (*lead, *shape), jnp.float32)
  return AdaLoRA(
    p=draw(keys[0], (rows, start)), e=jnp.zeros((*lead, start), jnp.float32),
    q=draw(keys[1], (start, columns)), scale=jnp.full(lead, alpha / start, jnp.float32),
    dropout=dropout)


def _initial(rank: int, initial_rank: int, rows: int, columns: int) -> int:
  if initial_rank and initial_rank < rank:
    raise ValueError(f'expected peft.initial_rank of at least peft.rank, found {initial_rank} and '
                     f'{rank}; change either')
  return initial_rank or min(rank + (rank + 1) // 2, max(rank, min(rows, columns)))


def parameters(shape: tuple[int, ...], *, rank: int = 8, initial_rank: int = 0) -> int:
  """r (I + O + 1) a matrix, r the initial rank."""
  *lead, rows, columns = shape
  return math.prod(lead) * _initial(rank, initial_rank, rows, columns) * (rows + columns + 1)


class State(NamedTuple):
  """What the budget needs beside the optimizer's own state."""

  inner: Tree
  step: jax.Array  # i32[]
  mean: Tree  # of each weight's sensitivity |w dL/dw|, equation 8
  spread: Tree  # of its distance from that mean, equation 9


def optimizer(
  tx: optax.GradientTransformation,
  *,
  steps: int,
  rank: int = 8,
  orthogonality: float = 0.1,
  budget_start: float = 0.1,
  budget_end: float = 0.5,
  budget_every_steps: int = 10,
  decay: float = 0.85,
) -> optax.GradientTransformation:
  """`tx` on the loss plus gamma (|P^T P - I|^2 + |Q Q^T - I|^2), then the budget.

  b(t) is b(0) for the first `budget_start` of the steps, then falls by the cube to b(T), from which
  it stays for the last `budget_end` of them (equation 10).

  Args:
    tx: an optax chain.
    steps: T.
    rank: the mean rank of a matrix at the end.
    orthogonality: gamma, equation 4.
    budget_start, budget_end: t_i / T and t_f / T.
    budget_every_steps: Delta_T; between, what was set to 0 may come back.
    decay: beta_1 and beta_2.
  """
  first, last = int(budget_start * steps), steps - int(budget_end * steps)

  def init(params: Tree) -> State:
    zeros = lambda: jax.tree.map(jnp.zeros_like, _nodes(params))  # arrays of their own: donated
    return State(tx.init(params), jnp.zeros((), jnp.int32), zeros(), zeros())

  def update(grads: Tree, state: State, params: Tree) -> tuple[Tree, State]:
    grads = _map(lambda node, grad: _add_orthogonality(node, grad, orthogonality), params, grads)
    updates, inner = tx.update(grads, state.inner, params)
    sense = jax.tree.map(lambda w, g: jnp.abs(w * g), _nodes(params), _nodes(grads))
    mix = lambda old, new: decay * old + (1 - decay) * new
    mean = jax.tree.map(mix, state.mean, sense)
    spread = jax.tree.map(lambda u, s, m: mix(u, jnp.abs(s - m)), state.spread, sense, mean)
    step = state.step + 1
    importance = [_importance(node) for node in jax.tree.map(
      jnp.multiply, mean, spread)]
    if importance:
      total = sum(x.size for x in importance)
      final = total * min(1.0, rank / importance[0].shape[-1])
      left = jnp.clip((last - step) / max(last - first, 1), 0.0, 1.0)
      budget = jnp.round(final + (total - final) * left**3).astype(jnp.int32)
      ordered = jnp.sort(jnp.concatenate([x.ravel() for x in importance]))[::-1]
      least = ordered[jnp.clip(budget, 1, total) - 1]
      acts = (step >= first) & ((step % budget_every_steps == 0) | (step >= last))
      masks = iter([~acts | (x >= least) for x in importance])
      prune = lambda node, change: change.replace(
        e=jnp.where(next(masks), change.e, -node.e))
      updates = _map(prune, params, updates)
    return updates, State(inner, step, mean, spread)

  return optax.GradientTransformation(init, update)


def _is_node(node: Any) -> bool:
  return isinstance(node, AdaLoRA) and hasattr(node.e, 'shape')


def _nodes(tree: Tree) -> list[AdaLoRA]:
  """In the tree's order; those that a partition of the optimizer leaves to others are none."""
  return [node for node in jax.tree.leaves(tree, is_leaf=_is_node) if _is_node(node)]


def _map(function: Any, params: Tree, other: Tree) -> Tree:
  """The other tree with function(node, its node) in place of each of its nodes."""
  nodes = iter(_nodes(params))
  return jax.tree.map(
    lambda node: function(next(nodes), node) if _is_node(node) else node, other, is_leaf=_is_node)


def _add_orthogonality(node: AdaLoRA, grad: AdaLoRA, gamma: float) -> AdaLoRA:
  """d |P^T P - I|^2 / dP = 4 P (P^T P - I), and so for Q^T."""
  identity = jnp.eye(node.e.shape[-1], dtype=node.p.dtype)
  off_p, off_q = node.p.mT @ node.p - identity, node.q @ node.q.mT - identity
  return grad.replace(
    p=grad.p + 4 * gamma * node.p @ off_p, q=grad.q + 4 * gamma * off_q @ node.q)


def _importance(score: AdaLoRA) -> jax.Array:
  """f32[..., r]: of each triplet, its own entry's and the means of its vectors' (equation 7)."""
  return score.e + score.p.mean(-2) + score.q.mean(-1)
