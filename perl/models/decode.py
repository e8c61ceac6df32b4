"""Decoding with a cache: one prefill of the prompts, then a token at a time.

On CPU, where memory allows (`copies`), the weights are taken out of their stacks once, before the
loop, and projections that read the same input are laid side by side. Elsewhere the layers are a
loop over the stacks, and nothing is copied.
"""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from flax import struct

from perl import machine, trees
from perl.models import lm, stack, top_layers, virtual
from perl.models.block import Block, Layer, layers_of, stacked
from perl.models.cache import Cached, Store
from perl.models.context import Rows
from perl.models.layers import TOGETHER
from perl.models.transformer import Transformer
from perl.quantized import is_quantized, scheme_of
from perl.types import Tree


class Parts(struct.PyTreeNode):
  """Base and adapter, ready for decoding."""

  whole: Tree  # the collections, for embedding, last norm and unembedding
  layers: list[Tree] | Tree  # L times the collections of one Block, or stacks of them
  lead: int = struct.field(pytree_node=False, default=0)  # virtual tokens before every row


class Cache(struct.PyTreeNode):
  """Keys and values of every layer: a list of them, or stacks; see perl/models/cache.py."""

  prompt: list[tuple[Store, Store]] | tuple[Store, Store]
  own: list[tuple[Store, Store]] | tuple[Store, Store]
  prompt_mask: jax.Array  # bool[N, P]


COPIED_SHARE = 8
"""A base that is so small a part of the machine's memory is copied for sampling on CPU."""


def copies(base: Tree) -> bool:
  """Whether sampling reads a copy of the base: on CPU, a dense one that memory has ample room for.

  What is read anew for each token out of stacks is as much as the copy: it pays from a few tokens
  on, for large models too (docs/benchmarks.md: perl_stacks samples without). It is three bases at
  most: a merged one, its layers, and an unembedding laid out anew.
  """
  if not machine.on_cpu() or scheme_of(base) is not None:
    return stack.copies(base)
  return stack.copies(base) or trees.size_bytes(base) * COPIED_SHARE <= machine.memory_bytes()


def parts(model: Transformer, base: Tree, adapter: Tree, *, copy: bool | None = None) -> Parts:
  """Base and adapter as the loop reads them; call it outside of the loop.

  Args:
    model, base, adapter: see perl/models/lm.py.
    copy: take the layers out of their stacks; None: where `copies` says so.
  """
  whole = lm.variables(base, adapter)
  blocks = model.apply(whole, method='blocks')
  lead = virtual.length(blocks.get('adapter'))
  rest = top_layers.outside(whole)
  if not (copies(base) if copy is None else copy):
    return Parts(rest, blocks, lead)
  if model.config.tied and virtual.unembedding_is_frozen(adapter):
    # On CPU a product of few rows with a transposed matrix takes five times as long.
    rest['together'] = {'embed': {'unembed': base['embed']['embedding'].T}}
  count = model.config.layers
  layers = [_side_by_side(top_layers.layer(blocks, i, count)) for i in range(count)]
  return Parts(rest, layers, lead)


def _side_by_side(layer: dict[str, Tree]) -> dict[str, Tree]:
  """The collections of a Block, with products of the same input in one where none is adapted."""
  params, adapter, joined = layer['params'], layer.get('adapter', {}), {}
  for module, names in TOGETHER.items():
    own = params[module]
    if is_quantized(own.get(names[0], {}).get('kernel')):
      continue  # blocks of scales do not lie side by side
    if all(n in own for n in names) and not any(n in adapter.get(module, {}) for n in names):
      joined[module] = {'_'.join(names): jax.tree.map(
        lambda *columns: jnp.concatenate(columns, -1), *(own[n] for n in names))}
  return {**layer, 'together': joined} if joined else layer


def prefill(
  model: Transformer, parts: Parts, tokens: jax.Array, mask: jax.Array, slots: int, *,
  count: int = 1, kind: str = 'model',
) -> tuple[jax.Array, Cache]:
  """Logits f32[N, V] after the prompts, and a cache that holds them, with room for responses.

  Args:
    model, parts: see `parts`.
    tokens: i32[N, P], left-padded, so that every row's last token is in column P - 1.
    mask: bool[N, P].
    slots: S, of each response.
    count: n, responses to each prompt.
    kind: of cache.KINDS.

  Raises:
    ValueError: more slots than the model has learnt positions.
  """
  config = model.config
  needed = parts.lead + tokens.shape[1] + slots
  if config.position == 'learnt' and needed > config.max_positions:
    raise ValueError(
      f'expected at most {config.max_positions} tokens of prompt and response, for which '
      f'this model has learnt positions, found {needed}; lower '
      'rl.max_new_tokens or the prompts')
  context = Rows(mask)
  positions = context.positions() + parts.lead
  x = model.apply(parts.whole, tokens, positions, method='embed_tokens')
  block, last = Block(config), slice(tokens.shape[1] - 1, tokens.shape[1])
  stores = lambda kv: tuple(Store.of(y, kind, is_keys=i == 0) for i, y in enumerate(kv))
  own = lambda lead=(): tuple(
    Store.empty(len(tokens) * count, config.kv_heads, config.head_dim, slots,
                jnp.dtype(config.dtype), kind, is_keys=is_keys, lead=lead)
    for is_keys in (True, False))
  if isinstance(parts.layers, list):
    prompt = []
    for i, (weights, layer) in enumerate(zip(parts.layers, layers_of(config))):
      read = last if i == config.layers - 1 else None
      x, kv = block.apply(weights, x, positions, context, layer, read)
      prompt.append(stores(kv))
    cache = Cache(prompt, [own() for _ in prompt], mask)
  else:
    prompts = []
    for start, stop, at in _loops(parts, config.layers):
      def body(x, i, at=at):
        x, kv = block.apply(at(i), x, positions, context, _options(config, i))
        return x, stores(kv)

      x, some = jax.lax.scan(body, x, jnp.arange(start, stop))
      prompts.append(some)
    prompt = jax.tree.map(lambda *x: jnp.concatenate(x), *prompts)
    x, cache = x[:, last], Cache(prompt, own((config.layers,)), mask)
  return _logits(model, parts, x[:, 0]), cache


def step(
  model: Transformer, parts: Parts, cache: Cache, token: jax.Array, mask: jax.Array,
  slot: jax.Array,
) -> tuple[jax.Array, Cache]:
  """Logits f32[B, V] after one more token, and the cache with it.

  Args:
    model, parts, cache: see `parts` and `prefill`.
    token: i32[B], n rows of each prompt in turn.
    mask: bool[B, S], the real tokens of the responses up to and with this one.
    slot: i32[], or i32[B], this token's slot among those of the response.
  """
  config, rows = model.config, token.shape[0]
  before = jnp.repeat(cache.prompt_mask.sum(-1, dtype=jnp.int32), rows // len(cache.prompt_mask))
  positions = (parts.lead + before + mask.sum(-1, dtype=jnp.int32) - 1)[:, None]
  x = model.apply(parts.whole, token[:, None], positions, method='embed_tokens')
  block = Block(config)
  if isinstance(parts.layers, list):
    own = []
    for weights, layer, p, o in zip(parts.layers, layers_of(config), cache.prompt, cache.own):
      context = Cached(p, o, cache.prompt_mask, mask, slot)
      x, new = block.apply(weights, x, positions, context, layer)
      own.append(new)
  else:
    own = cache.own
    for start, stop, at in _loops(parts, config.layers):
      def body(i, carry, at=at):
        x, own = carry
        context = Cached(cache.prompt, own, cache.prompt_mask, mask, slot, i)
        return block.apply(at(i), x, positions, context, _options(config, i))

      # The cache is carried and not scanned over: written in place, a slot at a time.
      x, own = jax.lax.fori_loop(start, stop, body, (x, own))
  return _logits(model, parts, x[:, 0]), cache.replace(own=own)


def grow(cache: Cache, slots: int) -> Cache:
  """The cache with room for so many tokens of each response."""
  larger = jax.tree.map(lambda s: s.grow(slots), cache.own, is_leaf=lambda s: isinstance(s, Store))
  return cache.replace(own=larger)


def _loops(parts: Parts, layers: int) -> Iterator[tuple[int, int, Callable[[jax.Array], Tree]]]:
  """(start, stop, layer -> its collections) of each run of layers with the same adapters."""
  pick = lambda stacks, i: jax.tree.map(
    lambda w: jax.lax.dynamic_index_in_dim(w, i, keepdims=False), stacks)
  base, adapter = parts.layers['params'], parts.layers.get('adapter')
  for start, stop in top_layers.spans(adapter, 0, layers, layers):
    own = top_layers.take(adapter, slice(start, stop), layers)

    def at(i, own=own, start=start):
      layer = {'params': pick(base, i)}
      return {**layer, 'adapter': pick(own, i - start)} if own else layer

    yield start, stop, at


def _options(config, i: jax.Array) -> Layer | None:
  return jax.tree.map(lambda x: x[i], stacked(config))


def _logits(model: Transformer, parts: Parts, x: jax.Array) -> jax.Array:
  h = model.apply(parts.whole, x, method='normalise')
  return model.apply(parts.whole, h, method='unembed')
