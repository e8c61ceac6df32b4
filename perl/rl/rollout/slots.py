"""Continuous batching: a fixed number of rows decode, and one that ends makes room for the next.

A batch of prompts costs as many steps as its longest response; with S slots, N prompts cost about
as many as all their tokens over S. It pays where there are more prompts than slots and lengths vary
(`pays`). An inner loop decodes until a quarter of the slots is free, then their next prompts pass
through the model together. Samples are those of a batch, row by row: each draws by its own key.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from perl.models import decode
from perl.models.transformer import Transformer
from perl.rl.rollout.sampling import Draw, Sampled, ends

WORTH = 1.9
"""Longest response over the mean one, from which slots pay; by
experiments/results/choices_cpu.json."""


def pays(lengths: np.ndarray, rows: int, slots: int) -> bool:
  """Whether slots are the faster way for so many rows, given lengths of like responses, tokens."""
  return rows > slots and float(np.max(lengths)) > WORTH * float(np.mean(lengths))


def fewer(slots: int | None, rows: int) -> int | None:
  """How many rows decode at a time, if that is not all of them."""
  return slots if slots is not None and slots < rows else None


def entering(slots: int) -> int:
  """Prompts that pass through the model together when slots are free."""
  return max(1, slots // 4)


class _State(struct.PyTreeNode):
  """Slots and results. Row N of the results takes what idle slots write."""

  following: jax.Array  # i32[], the next prompt
  row: jax.Array  # i32[S], the prompt of each slot; N where it is idle
  count: jax.Array  # i32[S], tokens of the response so far
  token: jax.Array  # i32[S], the last one
  cache: decode.Cache
  tokens: jax.Array  # i32[N + 1, R]
  logprobs: jax.Array  # f32[N + 1, R]
  counts: jax.Array  # i32[N + 1]
  finished: jax.Array  # bool[N + 1]


def respond(
  model: Transformer, parts: decode.Parts, tokens: jax.Array, mask: jax.Array, keys: jax.Array,
  draw: Draw, *, slots: int, length: int, eos_id: int | tuple[int, ...], pad_id: int, cache: str,
) -> Sampled:
  """As `perl.rl.rollout.batch.respond`, with `slots` rows at a time and a prompt for each row."""
  n = len(tokens)
  columns = jnp.arange(length)

  def write(state: _State, logits, where, row) -> _State:
    """The next token of the slots `where`, whose prompts are `row`, drawn from logits."""
    count = state.count[where]
    own = keys[jnp.minimum(row, n - 1)]  # what an idle slot draws is thrown away
    token, logprob = draw(logits, jax.vmap(jax.random.fold_in)(own, count))
    stopped = ends(token, eos_id)
    ended = stopped | (count + 1 == length)
    return state.replace(
      tokens=state.tokens.at[row, count].set(token),
      logprobs=state.logprobs.at[row, count].set(logprob),
      counts=state.counts.at[row].set(count + 1),
      finished=state.finished.at[row].set(stopped),
      token=state.token.at[where].set(token),
      count=state.count.at[where].set(jnp.where(ended | (row == n), 0, count + 1)),
      row=state.row.at[where].set(jnp.where(ended, n, row)),
    )

  def enter(state: _State) -> _State:
    """The next prompts into free slots."""
    where = jnp.argsort(state.row < n, stable=True)[:entering(slots)]  # free ones first
    free = state.row[where] == n
    row = jnp.where(free, state.following + jnp.cumsum(free) - 1, n)
    row = jnp.where(row < n, row, n)
    known = jnp.minimum(row, n - 1)
    logits, new = decode.prefill(
      model, parts, tokens[known], mask[known], length, kind=cache)
    # A slot that is not free keeps what it has: it is written to no row of the cache.
    into = jnp.where(row < n, where, slots)
    rows = 0 if isinstance(parts.layers, list) else 1  # stacks have layers before rows
    put = lambda old, x: (old.at[into] if rows == 0 else old.at[:, into]).set(x, mode='drop')
    kv = state.cache.replace(
      prompt=jax.tree.map(put, state.cache.prompt, new.prompt),
      prompt_mask=state.cache.prompt_mask.at[into].set(new.prompt_mask, mode='drop'))
    entered = state.replace(cache=kv, following=state.following + (row < n).sum())
    drawn = write(entered, logits, where, row)
    keep = lambda new, old: new.at[where].set(jnp.where(row < n, new[where], old[where]))
    return drawn.replace(**{
      name: keep(getattr(drawn, name), getattr(entered, name)) for name in ('row', 'count', 'token')
    })

  def advance(state: _State) -> _State:
    """One more token of every slot."""
    seen = columns < state.count[:, None]
    slot = jnp.maximum(state.count - 1, 0)
    logits, kv = decode.step(model, parts, state.cache, state.token, seen, slot)
    return write(state.replace(cache=kv), logits, jnp.arange(slots), state.row)

  busy = lambda state: jnp.any(state.row < n)
  wanting = lambda state: (state.following < n) & ((state.row == n).sum() >= entering(slots))

  def turn(state: _State) -> _State:
    state = jax.lax.while_loop(wanting, enter, state)
    return jax.lax.while_loop(lambda s: busy(s) & ~wanting(s), advance, state)

  empty = jax.eval_shape(
    lambda: decode.prefill(model, parts, tokens[:1], mask[:1], length, kind=cache)[1])
  start = _State(
    following=jnp.zeros((), jnp.int32), row=jnp.full(slots, n), count=jnp.zeros(slots, jnp.int32),
    token=jnp.zeros(slots, jnp.int32), cache=_room(empty, slots, isinstance(parts.layers, list)),
    tokens=jnp.full((n + 1, length), pad_id, jnp.int32),
    logprobs=jnp.zeros((n + 1, length)), counts=jnp.zeros(n + 1, jnp.int32),
    finished=jnp.zeros(n + 1, bool))
  end = jax.lax.while_loop(lambda s: busy(s) | (s.following < n), turn, start)
  counted = jnp.arange(length) < end.counts[:n, None]
  return Sampled(end.tokens[:n], counted, end.logprobs[:n], end.finished[:n])


def _room(like: decode.Cache, slots: int, listed: bool) -> decode.Cache:
  """An empty cache of so many rows, of the kind of one with a single row."""
  axis = 0 if listed else 1
  wider = lambda x: jnp.zeros((*x.shape[:axis], slots, *x.shape[axis + 1 :]), x.dtype)
  return decode.Cache(
    jax.tree.map(wider, like.prompt), jax.tree.map(wider, like.own),
    jnp.ones((slots, like.prompt_mask.shape[1]), bool))
