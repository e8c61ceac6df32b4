"""Prompt tuning: P trained embeddings before every row (Lester et al., arXiv 2104.08691)."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import struct

IDENTITY = False
"""Every token sees the prompt, from the first step on."""

SITE = 'embed/prompt'


class Prompt(struct.PyTreeNode):
  """What the model reads first; perl/models/virtual.py makes a prefix of it."""

  tokens: jax.Array  # f32[P, D]


def places(leaves: Mapping[str, jax.Array], targets: Sequence[str]) -> dict[str, str]:
  """Beside the embeddings."""
  del leaves, targets
  return {SITE: 'embed/embedding'}


def init(key: jax.Array, weight: jax.Array, *, virtual_tokens: int = 16) -> Prompt:
  """Embeddings of P tokens drawn from the vocabulary (section 2.2: 'sampled vocab').

  As they are stored: where the base scales its embeddings (Gemma) they begin smaller than tokens
  by sqrt(D), as in PEFT.

  Args:
    key: typed PRNG key.
    weight: f[V, D], the embeddings.
    virtual_tokens: P.
  """
  if virtual_tokens < 1:
    raise ValueError(f'expected at least 1 virtual token, found {virtual_tokens}; raise '
                     'config.peft.virtual_tokens')
  rows = jax.random.randint(key, (virtual_tokens,), 0, weight.shape[0])
  return Prompt(jnp.take(weight, rows, axis=0).astype(jnp.float32))


def parameters(shape: tuple[int, ...], *, virtual_tokens: int = 16) -> int:
  """P D."""
  return virtual_tokens * shape[-1]
