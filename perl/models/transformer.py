"""The decoder-only transformer: base parameters in 'params', what is learnt in 'adapter'.

``model.apply({'params': base, 'adapter': adapter}, tokens, mask)``; with ``adapter = {}`` it is the
base model. perl/models/lm.py has the functions that callers want.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from perl.models import stack, virtual
from perl.models.block import Block
from perl.models.config import Config
from perl.models.context import Read, Rows
from perl.models.layers import Norm, Projection, adapted


class _Made(nn.Module):
  """Block as a scan body that makes parameters [L, ...]; `perl/models/stack.py` runs them."""

  config: Config

  @nn.compact
  def __call__(self, x, positions, context):
    return Block(self.config, name='block')(x, positions, context, None)[0], None


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
        self, 'positions', init, (config.max_positions, config.width), store)
    if not config.tied:
      self.head = Projection(config.vocab_size, config, name='lm_head')

  def embed(self, tokens: jax.Array, positions: jax.Array, lead: int = 0) -> jax.Array:
    """i32[B, T] -> f[B, T, D], after `lead` virtual tokens.

    Raises:
      ValueError: the sequence is longer than the learnt positions are many.
    """
    config = self.config
    if config.position == 'learnt' and lead + tokens.shape[1] > config.max_positions:
      raise ValueError(
        f'expected at most {config.max_positions} tokens, for which this model has learnt '
        f'positions, found {lead + tokens.shape[1]}; lower data.max_prompt_tokens, '
        'data.max_response_tokens and rl.max_new_tokens')
    x = jnp.take(self.table, tokens, axis=0).astype(config.dtype)
    if config.embed_scale:
      x = x * jnp.asarray(config.width**0.5, x.dtype)
    return self._placed(x, positions)

  def soft_prompt(self, start: int) -> jax.Array | None:
    """f[P, D]: the soft prompt at 'prompt', in positions from `start` on; None without.

    It takes the place of embeddings that are scaled already (embed_scale), as in PEFT.
    """
    if not self.has_variable('adapter', 'prompt'):
      return None
    tokens = self.get_variable('adapter', 'prompt').tokens
    return self._placed(tokens.astype(self.config.dtype), start + jnp.arange(len(tokens)))

  def _placed(self, x: jax.Array, positions: jax.Array) -> jax.Array:
    """Embeddings as the first layer reads them."""
    if self.config.position == 'learnt':
      x = x + jnp.take(self.position_table, positions, axis=0).astype(x.dtype)
    return x

  def unembed(self, h: jax.Array) -> jax.Array:
    """f[..., D] -> f32[..., V]."""
    config = self.config
    if not config.tied:
      logits = self.head(h)
    elif self.has_variable('together', 'unembed'):  # decoding: the table, laid out for this product
      logits = h @ self.get_variable('together', 'unembed').astype(h.dtype)
    else:
      logits = h @ self.table.T.astype(h.dtype)
    logits = logits.astype(jnp.float32)
    if config.final_softcap is not None:
      logits = config.final_softcap * jnp.tanh(logits / config.final_softcap)
    return logits


class Transformer(nn.Module):
  """Embedding, L layers, a last norm. Shapes of 'layers/block' begin with L."""

  config: Config

  def setup(self):
    config = self.config
    self.embed = Embedding(config)
    self.layers = nn.scan(
      _Made,
      variable_axes={'params': 0},
      split_rngs={'params': True},
      in_axes=(nn.broadcast, nn.broadcast),
      length=config.layers,
    )(config)
    self.final_norm = Norm(config)

  def __call__(self, tokens: jax.Array, mask: jax.Array) -> jax.Array:
    """Hidden states f[B, T, D] after the last norm, of tokens i32[B, T] and mask bool[B, T]."""
    return self.states(tokens, Rows(mask))[0]

  def states(
    self, tokens: jax.Array, context: Any, read: Read = None, early: bool = False
  ) -> tuple[jax.Array, jax.Array | None]:
    """(hidden states after the last norm at the tokens that are read, f[B, t, D]; if `early`, the
    first layer's input and output at all tokens, f[B, T, 2 D], else None).
    """
    positions = context.positions()
    if self.is_initializing():
      first = self.embed.embed(tokens, positions)
      return self.final_norm(self.layers(first, positions, context)[0]), None
    blocks = self.blocks()
    lead = virtual.length(blocks.get('adapter'))
    positions = positions + lead
    first = self.embed.embed(tokens, positions, lead)
    key = self.make_rng('dropout') if self.has_rng('dropout') else None
    x, second = stack.run(self.config, blocks, first, positions, context, read, early, key)
    return self.final_norm(x), jnp.concatenate([first, second], -1) if early else None

  def blocks(self) -> dict[str, Any]:
    """{'params': ..., 'adapter': ...} of one Block, stacked; a soft prompt is a prefix in it."""
    stacks = {name: tree['layers']['block'] for name, tree in self.variables.items()
             if 'layers' in tree}
    prompt = self.embed.soft_prompt(virtual.length(stacks.get('adapter')))
    if prompt is None:
      return stacks
    lead = virtual.of_prompt(self.config, stacks, prompt)
    return {**stacks, 'adapter': virtual.lay(stacks.get('adapter'), lead, self.config.kv_heads)}

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
