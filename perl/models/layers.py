"""The parts of a decoder layer. Each asks for the adapter that lies beside its parameter.

A parameter named `kernel` is a matrix [I, O]; an adapter beside it (collection 'adapter', same
path) replaces the product by ``delta.project(x, w)``. Any other parameter is replaced by
``delta.merge(w)``. Where nothing lies, the layer is the plain base: an empty adapter is the base.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from perl.models.config import Config


def adapted(
  module: nn.Module, name: str, init: Callable, shape: tuple[int, ...], dtype: jnp.dtype
) -> jax.Array:
  """The parameter `name` of `module`, as the adapter beside it (if any) would have it."""
  weight = module.param(name, init, shape, dtype)
  if module.has_variable('adapter', name):
    weight = module.get_variable('adapter', name).merge(weight)
  return weight


class Projection(nn.Module):
  """y = x W (+ b), W [I, O], through the adapter that lies beside W."""

  features: int
  config: Config
  use_bias: bool = False
  writes: bool = False  # its output is added to the residual stream: small at init

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    dtype, store = jnp.dtype(self.config.dtype), jnp.dtype(self.config.param_dtype)
    shape = (x.shape[-1], self.features)
    init = nn.initializers.normal(0.02) if self.writes else nn.initializers.lecun_normal()
    kernel = self.param('kernel', init, shape, store).astype(dtype)
    x = x.astype(dtype)
    if self.has_variable('adapter', 'kernel'):
      key = self.make_rng('dropout') if self.has_rng('dropout') else None
      y = self.get_variable('adapter', 'kernel').project(x, kernel, key).astype(dtype)
    else:
      y = x @ kernel
    if self.use_bias:
      y = y + adapted(self, 'bias', nn.initializers.zeros, (self.features,), store).astype(dtype)
    return y


class Norm(nn.Module):
  """x / sqrt(mean(x^2) + eps) * scale ('rms'); of x - mean, and plus a bias ('layer'). In fp32."""

  config: Config
  kind: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    config, shape = self.config, (x.shape[-1],)
    store = jnp.dtype(config.param_dtype)
    init = nn.initializers.zeros if config.norm_offset else nn.initializers.ones
    scale = adapted(self, 'scale', init, shape, store).astype(jnp.float32)
    scale = scale + 1.0 if config.norm_offset else scale
    y = x.astype(jnp.float32)
    if (self.kind or config.norm) == 'layer':
      y = y - y.mean(-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), -1, keepdims=True) + config.norm_eps) * scale
    if (self.kind or config.norm) == 'layer':
      y = y + adapted(self, 'bias', nn.initializers.zeros, shape, store).astype(jnp.float32)
    return y.astype(x.dtype)


def activation(name: str) -> Callable[[jax.Array], jax.Array]:
  """The nonlinearity of that name."""
  return {
    'silu': jax.nn.silu,
    'gelu': lambda x: jax.nn.gelu(x, approximate=False),
    'gelu_tanh': lambda x: jax.nn.gelu(x, approximate=True),
    'relu': jax.nn.relu,
  }[name]


class MLP(nn.Module):
  """act(x W_gate) * (x W_up) W_down, or act(x W_up) W_down without a gate."""

  config: Config

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    config = self.config
    project = lambda name, features: Projection(
      features, config, config.mlp_bias, writes=name == 'down', name=name
    )
    act = activation(config.activation)
    up = project('up', config.mlp_width)(x)
    hidden = act(project('gate', config.mlp_width)(x)) * up if config.gated else act(up)
    return project('down', config.width)(hidden)
