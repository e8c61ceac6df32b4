"""What each token of a forward pass sees: whole rows, texts packed into a row, or shared prompts.

A context knows the tokens' positions and does the attention of a layer. All else in a layer works
token by token. `read` names the tokens whose hidden states are asked for: the last layer computes
those alone, for every other token gives it no more than keys and values. It is None (all tokens), a
slice of each row's columns, or i32[B], one column of each row. `prefix` is keys and values of
virtual tokens, [P, G, K] each, which every token of every row sees (perl/models/virtual.py).
"""

import jax
import jax.numpy as jnp
from flax import struct

from perl import masked
from perl.models.attention import attention

Read = slice | jax.Array | None
KV = tuple[jax.Array, jax.Array]
"""Keys and values of one layer, each [B, S, G, K]."""


class Rows(struct.PyTreeNode):
  """Rows of tokens, each of which sees itself and what came before it in its row."""

  mask: jax.Array  # bool[B, T], True for real tokens
  segments: jax.Array | None = None  # i32[B, T]: of packed texts, each of which sees itself alone
  right_padded: bool = struct.field(pytree_node=False, default=False)  # causality hides the padding

  @property
  def reach(self) -> int:
    """T: no position is as large."""
    return self.mask.shape[1]

  def positions(self) -> jax.Array:
    """i32[B, T]: of each real token in its text."""
    if self.segments is None:
      return masked.positions(self.mask)
    column = jnp.broadcast_to(jnp.arange(self.segments.shape[1]), self.segments.shape)
    before = jnp.pad(self.segments[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    starts = jnp.where(self.segments != before, column, 0)
    return column - jax.lax.cummax(starts, axis=1)

  def take(self, x: jax.Array, read: Read) -> jax.Array:
    """x [B, T, ...] at the tokens that are read, [B, t, ...]."""
    if read is None:
      return x
    return x[:, read] if isinstance(read, slice) else _columns(x, read)

  def attend(
    self, q: jax.Array, k: jax.Array, v: jax.Array, read: Read, window: int | jax.Array | None,
    prefix: KV | None = None, **options,
  ) -> tuple[jax.Array, KV]:
    """(attention of the queries that are read over all keys, the keys and values)."""
    lead = 0 if prefix is None else len(prefix[0])
    keys, values = _led(prefix, k, v)
    seen_first = lambda x, value: jnp.pad(x, ((0, 0), (lead, 0)), constant_values=value)
    if read is None or isinstance(read, slice):
      rows = read or slice(0, k.shape[1])
      segments = None if self.segments is None else (
        self.segments[:, rows], seen_first(self.segments, 0))
      mask = None if self.right_padded else seen_first(self.mask, True)
      out = attention(
        q, keys, values, mask, window=window, offset=lead + rows.start, segments=segments,
        lead=lead, **options)
    else:
      seen = _before(self.mask, read, window)
      if self.segments is not None:
        seen &= self.segments == _columns(self.segments, read)
      out = attention(
        q, keys, values, seen_first(seen, True), causal=False, impl='reference', **options)
    return out, (k, v)


class Branches(struct.PyTreeNode):
  """Rows [prompt | continuation | continuation ...]: continuations see the prompt and themselves.

  It stands for `count` rows a prompt, [prompt | continuation]; `read` and `take` speak of those.
  """

  mask: jax.Array  # bool[N, P + n R]
  prompt: int = struct.field(pytree_node=False)  # P
  count: int = struct.field(pytree_node=False)  # n

  @classmethod
  def of(
    cls, tokens: jax.Array, mask: jax.Array, prompt: int, count: int
  ) -> tuple[jax.Array, 'Branches']:
    """(i32[N, P + n R], context) of rows i32[N n, P + R], where n in turn have one prompt."""
    fold = lambda x: jnp.concatenate(
      [x[::count, :prompt], x[:, prompt:].reshape(x.shape[0] // count, -1)], 1)
    return fold(tokens), cls(fold(mask), prompt, count)

  def _parts(self, x):
    """[N, P + n R, ...] -> the prompts' [N, P, ...], the continuations' [N n, R, ...]."""
    rest = x[:, self.prompt:]
    return x[:, : self.prompt], rest.reshape(
      x.shape[0] * self.count, rest.shape[1] // self.count, *x.shape[2:])

  def rows(self, x: jax.Array) -> jax.Array:
    """[N, P + n R, ...] -> [N n, P + R, ...]: the rows that it stands for."""
    prompt, rest = self._parts(x)
    return jnp.concatenate([jnp.repeat(prompt, self.count, 0), rest], 1)

  @property
  def reach(self) -> int:
    """P + R: no position is as large."""
    return self.prompt + (self.mask.shape[1] - self.prompt) // self.count

  def positions(self) -> jax.Array:
    """i32[N, P + n R]: of each real token in the row that it belongs to."""
    prompt, rest = self._parts(self.mask)
    before = jnp.repeat(prompt.sum(-1, dtype=jnp.int32), self.count)[:, None]
    after = before + masked.positions(rest)
    return jnp.concatenate([masked.positions(prompt), after.reshape(len(prompt), -1)], 1)

  def take(self, x: jax.Array, read: Read) -> jax.Array:
    """x at the tokens that are read, which lie in the continuations: [N n, t, ...]."""
    if read is None:
      return x
    rest = self._parts(x)[1]
    if not isinstance(read, slice):
      return _columns(rest, read - self.prompt)
    if read.start < self.prompt:
      raise ValueError(
        f'expected to read from column {self.prompt} on, where the shared prompt ends, found '
        f'{read}; share fewer columns')
    return rest[:, read.start - self.prompt : read.stop - self.prompt]

  def attend(
    self, q: jax.Array, k: jax.Array, v: jax.Array, read: Read, window: int | jax.Array | None,
    prefix: KV | None = None, **options,
  ) -> tuple[jax.Array, KV]:
    """As `Rows.attend`."""
    keys, values, mask = self.rows(k), self.rows(v), self.rows(self.mask)
    ask = lambda mask, *arguments: Rows(mask).attend(*arguments, window, prefix, **options)[0]
    if read is not None:
      return ask(mask, q, keys, values, read), (k, v)
    first, rest = self._parts(q)
    alone = lambda x: x[:, : self.prompt]
    out = ask(alone(self.mask), first, alone(k), alone(v), None)
    more = ask(mask, rest, keys, values, slice(self.prompt, mask.shape[1]))
    return jnp.concatenate([out, more.reshape(*q.shape[:1], -1, *q.shape[2:])], 1), (k, v)


def _led(prefix: KV | None, k: jax.Array, v: jax.Array) -> KV:
  """Keys and values [B, P + S, G, K]: those of the prefix before each row's own."""
  if prefix is None:
    return k, v
  rows = lambda x, like: jnp.broadcast_to(x.astype(like.dtype), (len(like), *x.shape))
  return tuple(jnp.concatenate([rows(x, y), y], 1) for x, y in zip(prefix, (k, v)))


def _columns(x: jax.Array, column: jax.Array) -> jax.Array:
  """x [B, T, ...] at column i32[B], [B, 1, ...]."""
  return jnp.take_along_axis(x, column.reshape(-1, *(1,) * (x.ndim - 1)), 1)


def _before(mask: jax.Array, column: jax.Array, window: int | jax.Array | None) -> jax.Array:
  """bool[B, T]: the real tokens up to column i32[B], within the window."""
  back = column[:, None] - jnp.arange(mask.shape[1])
  seen = mask & (back >= 0)
  return seen if window is None else seen & (back < window)
