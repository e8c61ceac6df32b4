"""One layer of the transformer, and what tells one layer from another."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from perl.models.config import Config
from perl.models.context import Read
from perl.models.layers import MLP, Norm, Projection, site, together
from perl.models.rope import frequencies, rotate


class Layer(NamedTuple):
  """What tells one layer from another beside its parameters."""

  window: int | jax.Array | None  # in tokens; None sees all. i32[] inside a scan over layers
  frequency: np.ndarray | jax.Array | None  # f32[R / 2] of rotary positions; None: learnt ones


def layers_of(config: Config) -> list[Layer]:
  """The L layers, with windows as Python numbers and frequencies that the compiler knows."""
  if config.position == 'learnt':
    return [Layer(window, None) for window in config.windows]
  options = dict(width=config.head_dim, fraction=config.rope_fraction)
  whole = frequencies(theta=config.rope_theta, scaling=config.rope_scaling, **options)
  local = whole if config.rope_local_theta is None else frequencies(
    theta=config.rope_local_theta, **options)
  return [Layer(window, whole if window is None else local) for window in config.windows]


def stacked(config: Config) -> Layer | None:
  """The same for a scan, arrays [L, ...]; None where all are alike."""
  if len(set(config.windows)) == 1:
    return None
  layers, everything = layers_of(config), 2**30
  windows = jnp.asarray([everything if w is None else w for w, _ in layers], jnp.int32)
  rope = config.position == 'rope'
  return Layer(windows, jnp.stack([layer.frequency for layer in layers]) if rope else None)


class Attention(nn.Module):
  """Causal self-attention with grouped queries; the context says who sees whom."""

  config: Config

  @nn.compact
  def __call__(
    self, x: jax.Array, positions: jax.Array, context: Any, layer: Layer | None, read: Read = None
  ) -> tuple[jax.Array, Any]:
    """Returns the output [B, t, D] at the tokens that are read, and what the context keeps.

    Args:
      x: f[B, T, D].
      positions: i32[B, T].
      context: of perl/models/context.py, or a cache of perl/models/decode.py.
      layer: its window and frequencies; None where all layers are alike.
      read: the tokens whose output is asked for; see perl/models/context.py.
    """
    config = self.config
    layer = layers_of(config)[0] if layer is None else layer
    heads = {'q': config.heads, 'k': config.kv_heads, 'v': config.kv_heads}
    widths = {name: count * config.head_dim for name, count in heads.items()}
    project = lambda name: Projection(widths[name], config, config.qkv_bias, name=name)(
      context.take(x, read) if name == 'q' else x)
    flat = read is None and together(self, x, widths) or map(project, heads)
    q, k, v = (
      y.reshape(*y.shape[:-1], count, config.head_dim) for y, count in zip(flat, heads.values()))
    if config.qk_norm:
      q, k = Norm(config, 'rms', name='q_norm')(q), Norm(config, 'rms', name='k_norm')(k)
    prefix = None  # of virtual tokens
    if self.has_variable('adapter', 'prefix'):
      prefix = self.get_variable('adapter', 'prefix').keys_values(config.kv_heads)
    if layer.frequency is not None:
      factor = 1.0 if config.rope_scaling is None else config.rope_scaling.attention_factor
      reach = context.reach + (0 if prefix is None else len(prefix[0]))
      turn = lambda y, at: rotate(y, at, layer.frequency, factor, reach)
      q, k = turn(q, context.take(positions, read)), turn(k, positions)
    scale = config.head_dim**-0.5 if config.query_scale is None else config.query_scale
    out, kept = context.attend(
      q, k, v, read, layer.window, prefix, scale=scale, softcap=config.attention_softcap)
    out = out.reshape(*out.shape[:2], -1)
    return Projection(config.width, config, config.out_bias, writes=True, name='o')(out), kept


class Block(nn.Module):
  """One layer: x + attention(norm(x)), then x + mlp(norm(x)); or both of one x (parallel).

  Adapters may lie at two sites, 'attn_adapter' and 'mlp_adapter': what is added to x.
  """

  config: Config

  @nn.compact
  def __call__(self, x, positions, context, layer, read: Read = None) -> tuple[jax.Array, Any]:
    config = self.config
    norm = lambda name: Norm(config, name=name)
    after = lambda name, y: site(
      self, f'{name}_adapter', norm(f'{name}_post_norm')(y) if config.post_norm else y)
    attended, kept = Attention(config, name='attn')(
      norm('attn_norm')(x), positions, context, layer, read)
    attended = after('attn', attended)
    x = context.take(x, read)
    source = x if config.parallel else x + attended
    mlp = after('mlp', MLP(config, name='mlp')(norm('mlp_norm')(source)))
    return (x + attended + mlp if config.parallel else source + mlp), kept
