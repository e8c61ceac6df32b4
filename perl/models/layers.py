"""The parts of a decoder layer. Each asks for the adapter that lies beside its parameter.

A parameter named `kernel` is a matrix [I, O]; an adapter beside it (collection 'adapter', same
path) replaces the product by ``delta.project(x, w)``. Any other parameter is replaced by
``delta.merge(w)``. At a `site`, where a block has no parameter, an adapter acts on what is there.
Where nothing lies, the layer is the plain base: an empty adapter is the base.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from perl.models.config import Config
from perl.quantized import Quantized


def adapted(
  module: nn.Module, name: str, init: Callable, shape: tuple[int, ...], dtype: jnp.dtype
) -> jax.Array:
  """The parameter `name` of `module`, as the adapter beside it (if any) would have it."""
  weight = module.param(name, init, shape, dtype)
  if module.has_variable('adapter', name):
    weight = module.get_variable('adapter', name).merge(weight)
  return weight


def site(module: nn.Module, name: str, y: jax.Array) -> jax.Array:
  """y f[..., D], through the adapter that lies at this site of `module`, if any."""
  if not module.has_variable('adapter', name):
    return y
  return module.get_variable('adapter', name).act(y).astype(y.dtype)


def kernel_of(
  module: nn.Module, init: Callable, shape: tuple[int, ...], dtype: jnp.dtype
) -> jax.Array | Quantized:
  """The parameter `kernel`; a quantized one as it lies, for flax would compare its arrays' shapes.

  Raises:
    ValueError: a quantized kernel of another shape.
  """
  kernel = module.variables.get('params', {}).get('kernel')
  if not isinstance(kernel, Quantized):
    return module.param('kernel', init, shape, dtype)
  if kernel.shape != shape:
    raise ValueError(
      f'expected a quantized kernel of shape {list(shape)} at {"/".join(module.path)}, found '
      f'{list(kernel.shape)}; quantize the base of this model')
  return kernel


class Projection(nn.Module):
  """y = x W (+ b), W [I, O], through the adapter that lies beside W."""

  features: int
  config: Config
  use_bias: bool = False
  writes: bool = False  # its output is added to the residual stream: small at init
  wide: bool = False  # its output is wider than the residual stream: more to keep than others

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    dtype, store = jnp.dtype(self.config.dtype), jnp.dtype(self.config.param_dtype)
    shape = (x.shape[-1], self.features)
    init = nn.initializers.normal(0.02) if self.writes else nn.initializers.lecun_normal()
    kernel = kernel_of(self, init, shape, store).astype(dtype)
    x = x.astype(dtype)
    if self.has_variable('adapter', 'kernel'):
      key = self.make_rng('dropout') if self.has_rng('dropout') else None
      y = self.get_variable('adapter', 'kernel').project(x, kernel, key).astype(dtype)
    else:
      y = x @ kernel
    if self.use_bias:
      bias = adapted(self, 'bias', nn.initializers.zeros, (self.features,), store)
      y = y + self._as_projected(bias).astype(dtype)
    return checkpoint_name(y, 'wide' if self.wide else 'product')

  def _as_projected(self, bias: jax.Array) -> jax.Array:
    """The bias as an adapter of all that the projection gives would have it."""
    if not self.has_variable('adapter', 'kernel'):
      return bias
    delta = self.get_variable('adapter', 'kernel')
    return delta.merge_bias(bias) if hasattr(delta, 'merge_bias') else bias


TOGETHER = {'attn': ('q', 'k', 'v'), 'mlp': ('gate', 'up')}
"""Projections of a module that read the same input, and may be one product in decoding."""


def together(module: nn.Module, x: jax.Array, features: dict[str, int]) -> list[jax.Array] | None:
  """x through the projections of those names at once, if `module` was given them side by side.

  They are in the collection 'together', which perl/models/decode.py makes: {'q_k_v': {'kernel':
  f[I, O + O + O]}}, and a bias where they have one.
  """
  name = '_'.join(features)
  if not module.has_variable('together', name):
    return None
  weights, dtype = module.get_variable('together', name), jnp.dtype(module.config.dtype)
  y = x.astype(dtype) @ weights['kernel'].astype(dtype)
  if 'bias' in weights:
    y = y + weights['bias'].astype(dtype)
  ends = [sum(list(features.values())[: i + 1]) for i in range(len(features) - 1)]
  return jnp.split(y, ends, -1)


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
  """act(x W_gate) * (x W_up) W_down, or act(x W_up) W_down without a gate.

  What goes into W_down is computed again in the backward pass, which keeps the projections alone.
  """

  config: Config

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    config = self.config
    project = lambda name, features, x: Projection(
      features, config, config.mlp_bias, writes=name == 'down', wide=name != 'down', name=name
    )(x)
    act, wide = activation(config.activation), config.mlp_width
    if not config.gated:
      return project('down', config.width, jax.checkpoint(act)(project('up', wide, x)))
    gate, up = together(self, x, {'gate': wide, 'up': wide}) or (
      project('gate', wide, x), project('up', wide, x))
    return project('down', config.width, jax.checkpoint(lambda gate, up: act(gate) * up)(gate, up))
