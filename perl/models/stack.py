"""The L layers in turn, from parameters that are stacked [L, ...].

A loop reads each layer's weights out of the stack by its index; nothing is copied, and the backward
pass reads them again. The last layer stands apart where only some tokens are read: it then computes
those alone. Where the base is small, on CPU, its layers are sliced out of the stack instead: the
copy costs less there than what jax adds to whatever a checkpointed layer keeps.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from perl import trees
from perl.models import top_layers
from perl.models.block import Block, stacked
from perl.models.config import Config
from perl.models.context import Read
from perl.quantized import scheme_of
from perl.types import Tree

_KEPT = {'layer': (), 'attention': ('product', 'attended'), 'products': ('product', 'attended',
                                                                         'wide')}
"""Config.remat -> the named results that the backward pass finds; it computes the others again."""

COPIED_BYTES = 2**27
"""A base of at most so many bytes is copied on CPU, in training too: of a larger one that saves
next to nothing and takes its memory again (decoding: perl/models/decode.py)."""

UNROLLED_LAYERS = 8
"""So many layers of a small base, on CPU, are no loop, whose results would be written into stacks:
about 6 % of a step at 24 M parameters, for a third more time to compile."""

_READ_AGAIN = ('dynamic_slice', 'squeeze', 'convert_element_type')


def copies(base: Tree) -> bool:
  """Whether a program may copy the base: a small one, on CPU, where it is then faster.

  Never a quantized one, which is there to be small.
  """
  small = jax.default_backend() == 'cpu' and trees.size_bytes(base) <= COPIED_BYTES
  return small and scheme_of(base) is None


def run(
  config: Config,
  blocks: dict[str, Tree],
  x: jax.Array,
  positions: jax.Array,
  context: Any,
  read: Read = None,
  early: bool = False,
  key: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array | None]:
  """The last layer's output at the tokens that are read; if `early`, the first one's at all.

  Args:
    config: the model's.
    blocks: {'params': ..., 'adapter': ...} of one Block, each leaf stacked [L, ...]; adapters may
      be of the last layers alone (perl/models/top_layers.py).
    x: f[B, T, D], the first layer's input.
    positions, context, read: see perl/models/context.py.
    early: whether the first layer's output is asked for.
    key: of dropout; None turns it off.
  """
  layers = _Layers(config, blocks, positions, context, key)
  count, start, second = config.layers, 0, None
  few = count <= UNROLLED_LAYERS and layers.copied
  if (config.scan_unroll or (count if few else 1)) >= count:
    for i in range(count):
      x = layers.one(i, x, read if i == count - 1 else None)
      second = x if early and i == 0 else second
    return x, second
  if early:
    x = second = layers.one(0, x)
    start = 1
  # Slices of low-rank adapters are next to nothing, slices of full copies of the base are not.
  light = trees.size_bytes(blocks.get('adapter', {})) < trees.size_bytes(blocks['params']) / 2
  apart = read is not None and light and count - 1 > start
  for first, stop in top_layers.spans(
      layers.adapter, start, count - 1 if apart else count, count):
    x = layers.span(first, stop, x)
  if apart:
    return layers.one(count - 1, x, read), second
  return context.take(x, read), second


class _Layers:
  """Applies layers by number."""

  def __init__(self, config: Config, blocks, positions, context, key):
    self.config, self.block = config, Block(config, parent=None)
    self.base, self.adapter = blocks['params'], blocks.get('adapter')
    self.positions, self.context = positions, context
    # With remat XLA on CPU needs the loop: side by side, it computes all layers again at once.
    self.copied = config.remat == 'none' and copies(self.base)
    self.layers = stacked(config)
    self.keys = None if key is None else jax.random.split(key, config.layers)

  def own(self, i: int | slice) -> tuple:
    """Base (where it is copied), adapter, options and key of a layer or of several."""
    base = self.base if self.copied else None
    base, options, keys = jax.tree.map(lambda leaf: leaf[i], (base, self.layers, self.keys))
    return base, top_layers.take(self.adapter, i, self.config.layers), options, keys

  def apply(
    self, i: int | jax.Array, x: jax.Array, own: tuple, read: Read = None, looped: bool = False
  ) -> jax.Array:
    """Layer i of x; outside of a loop the compiler must be kept from sharing what is computed
    again with what was computed before.
    """

    def layer(x, own):
      base, adapter, options, key = own
      if base is None:
        of_layer = lambda stack: jax.lax.dynamic_index_in_dim(stack, i, keepdims=False)
        base = jax.tree.map(of_layer, self.base)
      weights = {'params': base}
      if adapter is not None:
        weights['adapter'] = adapter
      rngs = None if key is None else {'dropout': key}
      return self.block.apply(
        weights, x, self.positions, self.context, options, read, rngs=rngs)[0]

    if self.copied:
      return layer(x, own)
    policy = _policy(self.config.remat)
    return jax.checkpoint(layer, prevent_cse=not looped, policy=policy)(x, own)

  def one(self, i: int, x: jax.Array, read: Read = None) -> jax.Array:
    """Layer i, a number that the compiler knows."""
    return self.apply(i, x, self.own(i), read)

  def span(self, start: int, stop: int, x: jax.Array) -> jax.Array:
    """Layers start to stop - 1 in one loop."""
    own = self.own(slice(start, stop))

    def body(x, inputs):
      return self.apply(inputs[0], x, inputs[1], looped=True), None

    unroll = max(1, min(self.config.scan_unroll, stop - start))
    return jax.lax.scan(body, x, (jnp.arange(start, stop), own), unroll=unroll)[0]


def _policy(remat: str) -> Callable[..., bool]:
  """What of a layer is kept for its backward pass.

  Never its weights: what is read out of the stack, squeezed or converted is read again, else the
  loop over layers would keep a copy of the base.
  """
  if remat != 'none':
    return jax.checkpoint_policies.save_only_these_names(*_KEPT[remat])
  return lambda primitive, *_, **__: primitive.name not in _READ_AGAIN
