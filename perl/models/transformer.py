"""The decoder-only transformer: base parameters in 'params', what is learnt in 'adapter'.

``model.apply({'params': base, 'adapter': adapter}, tokens, mask)``; with ``adapter = {}`` it is the
base model. perl/models/lm.py has the functions that callers want.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from perl import masked
from perl.models.attention import attention, decode_attention
from perl.models.config import Config
from perl.models.layers import MLP, Norm, Projection, adapted
from perl.models.rope import frequencies, rotate

KV = tuple[jax.Array, jax.Array]
"""Keys and values of one layer, each [B, S, G, K]."""


class Layer(NamedTuple):
  """What tells one layer from another beside its parameters."""

  window: int | jax.Array | None  # in tokens; None sees all. i32[] inside a scan over layers
  frequency: jax.Array | None  # f32[R / 2] of rotary positions; None for learnt ones


def layers_of(config: Config) -> list[Layer]:
  """The L layers, with windows as Python numbers."""
  if config.position == 'learnt':
    return [Layer(window, None) for window in config.windows]
  options = dict(width=config.head_dim, fraction=config.rope_fraction)
  whole = frequencies(theta=config.rope_theta, scaling=config.rope_scaling, **options)
  local = whole if config.rope_local_theta is None else frequencies(
    theta=config.rope_local_theta, **options)
  return [Layer(window, whole if window is None else local) for window in config.windows]


def _stacked(config: Config) -> Layer | None:
  """The layers for a scan, arrays [L, ...]; None where all are alike."""
  if len(set(config.windows)) == 1:
    return None
  layers, everything = layers_of(config), 2**30
  windows = jnp.asarray([everything if w is None else w for w, _ in layers], jnp.int32)
  rope = config.position == 'rope'
  return Layer(windows, jnp.stack([layer.frequency for layer in layers]) if rope else None)


class Attention(nn.Module):
  """Causal self-attention with grouped queries, over the sequence or against a cache."""

  config: Config

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    positions: jax.Array,
    mask: jax.Array,
    layer: Layer | None,
    cache: KV | None = None,
    index: jax.Array | None = None,
  ) -> tuple[jax.Array, KV]:
    """Returns the output [B, T, D] and keys and values: the sequence's, or the updated cache.

    Args:
      x: f[B, T, D]; T is 1 with a cache.
      positions: i32[B, T].
      mask: bool[B, S], the keys that are real tokens (with a cache: this one's included).
      layer: its window and frequencies; None where all layers are alike.
      cache: keys and values of the S slots; this token's are written at `index`.
      index: i32[], the same slot for every row (prompts are left-padded).
    """
    config = self.config
    layer = layers_of(config)[0] if layer is None else layer
    split = lambda y, heads: y.reshape(*y.shape[:-1], heads, config.head_dim)
    project = lambda name, heads: split(
      Projection(heads * config.head_dim, config, config.qkv_bias, name=name)(x), heads
    )
    q = project('q', config.heads)
    k, v = project('k', config.kv_heads), project('v', config.kv_heads)
    if config.qk_norm:
      q, k = Norm(config, 'rms', name='q_norm')(q), Norm(config, 'rms', name='k_norm')(k)
    if layer.frequency is not None:
      factor = 1.0 if config.rope_scaling is None else config.rope_scaling.attention_factor
      q, k = (rotate(x, positions, layer.frequency, factor) for x in (q, k))
    scale = config.head_dim**-0.5 if config.query_scale is None else config.query_scale
    options = dict(scale=scale, softcap=config.attention_softcap)
    if cache is None:
      kv, out = (k, v), attention(q, k, v, mask, causal=True, window=layer.window, **options)
    else:
      kv = tuple(
        jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), index, 1)
        for old, new in zip(cache, (k, v))
      )
      if layer.window is not None:
        mask = mask & (jnp.arange(mask.shape[-1]) > index - layer.window)
      out = decode_attention(q, *kv, mask, **options)
    out = out.reshape(*x.shape[:-1], -1)
    return Projection(config.width, config, config.out_bias, writes=True, name='o')(out), kv


class Block(nn.Module):
  """One layer: x + attention(norm(x)), then x + mlp(norm(x)); or both of one x (parallel)."""

  config: Config

  @nn.compact
  def __call__(self, x, positions, mask, layer, cache=None, index=None) -> tuple[jax.Array, KV]:
    config = self.config
    norm = lambda name: Norm(config, name=name)
    after = lambda name, y: norm(name)(y) if config.post_norm else y
    attended, kv = Attention(config, name='attn')(
      norm('attn_norm')(x), positions, mask, layer, cache, index
    )
    attended = after('attn_post_norm', attended)
    if config.parallel:
      return x + attended + after('mlp_post_norm', MLP(config, name='mlp')(norm('mlp_norm')(x))), kv
    x = x + attended
    return x + after('mlp_post_norm', MLP(config, name='mlp')(norm('mlp_norm')(x))), kv


class _ScannedBlock(nn.Module):
  """Block as a scan body; keys and values are dropped, its output is kept if `keep`."""

  config: Config

  @nn.compact
  def __call__(self, x, positions, mask, keep: bool, layer: Layer | None):
    block = nn.remat(Block, prevent_cse=False) if self.config.remat else Block
    x = block(self.config, name='block')(x, positions, mask, layer)[0]
    return x, x if keep else None


class Embedding(nn.Module):
  """Token embeddings [V, D], learnt positions where the family has them, and the unembedding."""

  config: Config

  def setup(self):
    config, init = self.config, nn.initializers.normal(self.config.width**-0.5)
    store = jnp.dtype(config.param_dtype)
    shape = (config.vocab_size, config.width)
    self.table = adapted(self, 'embedding', init, shape, store)
    if config.position == 'learnt':
      self.position_table = adapted(
        self, 'positions', init, (config.max_positions, config.width), store
      )
    if not config.tied:
      self.head = Projection(config.vocab_size, config, name='lm_head')

  def embed(self, tokens: jax.Array, positions: jax.Array) -> jax.Array:
    """i32[B, T] -> f[B, T, D].

    Raises:
      ValueError: the sequence is longer than the learnt positions are many.
    """
    config, dtype = self.config, jnp.dtype(self.config.dtype)
    if config.position == 'learnt' and tokens.shape[1] > config.max_positions:
      raise ValueError(
        f'expected at most {config.max_positions} tokens, for which this model has learnt '
        f'positions, found {tokens.shape[1]}; lower data.max_prompt_tokens, '
        'data.max_response_tokens and rl.max_new_tokens'
      )
    x = jnp.take(self.table, tokens, axis=0).astype(dtype)
    if config.embed_scale:
      x = x * jnp.asarray(config.width**0.5, dtype)
    if config.position == 'learnt':
      x = x + jnp.take(self.position_table, positions, axis=0).astype(dtype)
    return x

  def unembed(self, h: jax.Array) -> jax.Array:
    """f[..., D] -> f32[..., V]."""
    config = self.config
    logits = h @ self.table.T.astype(h.dtype) if config.tied else self.head(h)
    logits = logits.astype(jnp.float32)
    if config.final_softcap is not None:
      logits = config.final_softcap * jnp.tanh(logits / config.final_softcap)
    return logits


class Transformer(nn.Module):
  """Embedding, L layers under one scan, a last norm. Shapes of 'layers/block' begin with L."""

  config: Config

  def setup(self):
    config = self.config
    self.embed = Embedding(config)
    self.layers = nn.scan(
      _ScannedBlock,
      variable_axes={'params': 0, 'adapter': 0},
      split_rngs={'params': True, 'dropout': True},
      in_axes=(nn.broadcast, nn.broadcast, nn.broadcast, 0),
      length=config.layers,
      unroll=min(config.scan_unroll, config.layers),
    )(config)
    self.final_norm = Norm(config)

  def __call__(self, tokens: jax.Array, mask: jax.Array) -> jax.Array:
    """Hidden states f[B, T, D] after the last norm, of tokens i32[B, T] and mask bool[B, T]."""
    return self.states(tokens, mask, early=False)[0]

  def states(
    self, tokens: jax.Array, mask: jax.Array, early: bool
  ) -> tuple[jax.Array, jax.Array | None]:
    """What `model(tokens, mask)` returns; if `early`, also the first layer's input and output,
    f[B, T, 2 D].
    """
    positions = masked.positions(mask)
    first = self.embed.embed(tokens, positions)
    x, outputs = self.layers(first, positions, mask, early, _stacked(self.config))
    return self.final_norm(x), jnp.concatenate([first, outputs[0]], -1) if early else None

  def unembed(self, h: jax.Array) -> jax.Array:
    """Logits f32[..., V] of hidden states f[..., D]."""
    return self.embed.unembed(h)

  def embed_tokens(self, tokens: jax.Array, positions: jax.Array) -> jax.Array:
    """f[B, T, D]: the input of the first layer."""
    return self.embed.embed(tokens, positions)

  def normalise(self, x: jax.Array) -> jax.Array:
    """The last norm, for callers that run the layers one by one (decoding)."""
    return self.final_norm(x)

  def logits(self, tokens: jax.Array, mask: jax.Array) -> jax.Array:
    """f32[B, T, V]; used to initialise every parameter."""
    return self.unembed(self(tokens, mask))
