"""Keys and values of what was decoded so far, and the attention of one new token over them.

Keys lie feature-major, values slot-major: the layouts in which one token's attention reads them in
order. A prompt's keys and values are kept once for all rows that continue it (Athiwaratkun et al.,
arXiv 2403.08845), apart from the rows' own, so that they are read once too.
Axes: N prompts, n rows a prompt, B = N n rows, G key heads, K head width, P slots of a prompt, S of
a response.
"""

from typing import Self

import jax
import jax.numpy as jnp
from flax import struct

from perl.models.blocked import HIDDEN, LOWEST
from perl.models.context import KV, Read

KINDS = ('model', 'float32', 'bfloat16', 'int8')
"""How a cache is stored: as the model computes, or narrower; int8 with a scale a head and slot."""


class Store(struct.PyTreeNode):
  """Keys f[..., B, G, K, S], or values f[..., B, G, S, K]; in int8 times a scale."""

  data: jax.Array
  scale: jax.Array | None = None  # f32[..., B, G, S]
  is_keys: bool = struct.field(pytree_node=False, default=True)

  @classmethod
  def of(cls, x: jax.Array, kind: str, *, is_keys: bool, slots: int = 0) -> 'Store':
    """What a layer computed, [B, T, G, K], with room for at least `slots` slots."""
    x = x.transpose((0, 2, 3, 1) if is_keys else (0, 2, 1, 3))
    store = _narrow(x, kind, is_keys)
    return store.grow(max(slots, x.shape[store._slot_axis]))

  @classmethod
  def empty(
    cls, rows: int, heads: int, width: int, slots: int, dtype: jnp.dtype, kind: str, *,
    is_keys: bool, lead: tuple[int, ...] = (),
  ) -> 'Store':
    """One that holds nothing yet; `lead` axes (layers) go before."""
    nothing = jnp.zeros((rows, 0, heads, width), dtype)
    store = cls.of(nothing, kind, is_keys=is_keys, slots=slots)
    return jax.tree.map(lambda x: jnp.zeros((*lead, *x.shape), x.dtype), store)

  @property
  def _slot_axis(self) -> int:
    return -1 if self.is_keys else -2

  def grow(self, slots: int) -> Self:
    """With room for so many slots."""
    def pad(x, axis):
      room = [(0, 0)] * x.ndim
      room[axis] = (0, slots - x.shape[axis])
      return jnp.pad(x, room)

    scale = None if self.scale is None else pad(self.scale, -1)
    return self.replace(data=pad(self.data, self._slot_axis), scale=scale)

  def put(self, x: jax.Array, slot: jax.Array, layer: jax.Array | None) -> Self:
    """With a token's x [B, 1, G, K] at `slot`, i32[] or i32[B], of a stack's layer or the one."""
    kind = 'int8' if self.scale is not None else str(self.data.dtype)
    new = Store.of(x, kind, is_keys=self.is_keys)
    scale = self.scale
    if scale is not None:
      scale = _write(scale, new.scale, slot, scale.ndim - 1, layer)
    axis = self.data.ndim + self._slot_axis
    return self.replace(data=_write(self.data, new.data, slot, axis, layer), scale=scale)

  def at(self, layer: jax.Array | None) -> Self:
    """One layer of a stack."""
    if layer is None:
      return self
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, layer, keepdims=False), self)

  def scores(self, q: jax.Array) -> jax.Array:
    """f32[B, G, m, S] of queries f[B, G, m, K]."""
    out = _product(q, self.data.astype(q.dtype))
    return out if self.scale is None else out * self.scale[:, :, None]

  def mix(self, weights: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """f32[B, G, m, K]: the values in the proportion of weights f32[B, G, m, S]."""
    if self.scale is not None:
      weights = weights * self.scale[:, :, None]
    return _product(weights.astype(dtype), self.data.astype(dtype))


def _narrow(x: jax.Array, kind: str, is_keys: bool) -> Store:
  if kind != 'int8':
    return Store(x if kind == 'model' else x.astype(kind), is_keys=is_keys)
  features = -2 if is_keys else -1
  largest = jnp.max(jnp.abs(x.astype(jnp.float32)), features, keepdims=True, initial=0.0)
  scale = jnp.where(largest > 0, largest, 1.0) / 127.0
  data = jnp.round(x.astype(jnp.float32) / scale).astype(jnp.int8)
  return Store(data, jnp.squeeze(scale, features), is_keys)


def _write(x, new, slot, axis, layer):
  """`new`, of one slot, into x at that slot: of every row, or each row's own, of a layer or all."""
  update = jax.lax.dynamic_update_slice
  zero = jnp.zeros((), jnp.int32)
  at = lambda slot, axis, ndim: [slot if i == axis else zero for i in range(ndim)]
  if layer is None:
    if slot.ndim == 0:
      return update(x, new, at(slot, axis, x.ndim))
    return jax.vmap(lambda x, new, slot: update(x, new, at(slot, axis - 1, x.ndim)))(x, new, slot)
  if slot.ndim == 0:
    return update(x, new[None], [layer, *at(slot, axis - 1, x.ndim - 1)])
  row = lambda x, new, slot: update(x, new[None], [layer, *at(slot, axis - 2, x.ndim - 1)])
  return jax.vmap(row, (1, 0, 0), 1)(x, new, slot)


def _product(x: jax.Array, y: jax.Array) -> jax.Array:
  """x [B, G, m, i] @ y [B, G, i, o] in f32."""
  return jnp.matmul(x, y, preferred_element_type=jnp.float32)


class Cached(struct.PyTreeNode):
  """The context of one new token a row: it sees its prompt, its row so far, and itself."""

  prompt: tuple[Store, Store] | None  # keys and values of the N prompts
  own: tuple[Store, Store]  # of the B rows
  prompt_mask: jax.Array  # bool[N, P]
  own_mask: jax.Array  # bool[B, S], the tokens so far, this one's included
  slot: jax.Array  # i32[] or i32[B], this one's own slot
  layer: jax.Array | None = None  # of stacks

  @property
  def reach(self) -> int:
    """P + S: no position is as large."""
    return self.prompt_mask.shape[1] + self.own_mask.shape[1]

  def take(self, x: jax.Array, read: Read) -> jax.Array:
    """There is one token: it is read."""
    del read
    return x

  def attend(
    self, q: jax.Array, k: jax.Array, v: jax.Array, read: Read, window: int | jax.Array | None,
    prefix: KV | None = None, *, scale: float, softcap: float | None,
  ) -> tuple[jax.Array, tuple[Store, Store]]:
    """(attention f[B, 1, H, K] of q f[B, 1, H, K], the rows' own stores with k and v in them)."""
    b, _, heads, width = q.shape
    groups = k.shape[2]
    own = tuple(s.put(x, self.slot, self.layer) for s, x in zip(self.own, (k, v)))
    grouped = q.reshape(b, groups, heads // groups, width)
    seen_prompt, seen_own = self._seen(window)
    parts = [_Part(grouped, *(s.at(self.layer) for s in own), seen_own, scale, softcap)]

    def shared(stores, seen):  # by the B / n rows of each of n prompts
      n = len(seen)
      together = grouped.reshape(n, b // n, *grouped.shape[1:]).swapaxes(1, 2)
      parts.append(_Part(together.reshape(n, groups, -1, width), *stores, seen, scale, softcap))

    if self.prompt is not None:
      shared((s.at(self.layer) for s in self.prompt), seen_prompt)
    if prefix is not None:
      stores = (Store.of(x[None].astype(q.dtype), 'model', is_keys=i == 0)
                for i, x in enumerate(prefix))
      shared(stores, jnp.ones((1, b, len(prefix[0])), bool))
    out = _together(parts, grouped.shape).reshape(q.shape)
    return out.astype(q.dtype), own

  def _seen(self, window) -> tuple[jax.Array, jax.Array]:
    """bool[N, n, P] and bool[B, 1, S]: the slots within the window."""
    n, p = self.prompt_mask.shape
    rows = self.own_mask.shape[0]
    slot = jnp.broadcast_to(self.slot, (rows,))
    prompt = jnp.broadcast_to(self.prompt_mask[:, None], (n, rows // n, p))
    own = self.own_mask[:, None]
    if window is not None:
      prompt = prompt & (p + slot.reshape(n, -1, 1) - jnp.arange(p) < window)
      own = own & (slot[:, None, None] - jnp.arange(own.shape[-1]) < window)
    return prompt, own


class _Part:
  """Scores over one store, before the softmax over all of them."""

  def __init__(self, q, keys: Store, values: Store, seen, scale, softcap):
    self.values, self.dtype = values, q.dtype
    scores = keys.scores(q * jnp.asarray(scale, q.dtype))
    if softcap is not None:
      scores = softcap * jnp.tanh(scores / softcap)
    m = scores.shape[2] // seen.shape[1]  # query heads of a key head, by row
    hidden = jnp.where(seen, 0.0, HIDDEN)[:, None, :, None]
    shape = (*scores.shape[:2], seen.shape[1], m, scores.shape[3])
    self.scores = (scores.reshape(shape) + hidden).reshape(scores.shape)

  def by_row(self, x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """[N, G, n m, ...] -> [B, G, m, ...]."""
    b, groups, m = shape[:3]
    x = x.reshape(x.shape[0], groups, b // x.shape[0], m, x.shape[-1])
    return x.swapaxes(1, 2).reshape(b, groups, m, x.shape[-1])

  def as_own(self, x: jax.Array) -> jax.Array:
    """The inverse of `by_row` for this part's queries."""
    n, groups, rows = self.scores.shape[:3]
    x = x.reshape(n, x.shape[0] // n, groups, -1, x.shape[-1])
    return x.swapaxes(1, 2).reshape(n, groups, rows, x.shape[-1])


def _together(parts: list[_Part], shape: tuple[int, ...]) -> jax.Array:
  """One softmax over the scores of all parts: f32[B, G, m, K] of queries of that shape."""
  tops = [p.by_row(p.scores.max(-1, keepdims=True), shape) for p in parts]
  top = jnp.maximum(jnp.max(jnp.stack(tops), 0), LOWEST)
  out, total = 0.0, 0.0
  for part in parts:
    weights = jnp.exp(part.scores - part.as_own(top))
    total += part.by_row(weights.sum(-1, keepdims=True), shape)
    out += part.by_row(part.values.mix(weights, part.dtype), shape)
  return out / jnp.where(total > 0, total, 1.0)
