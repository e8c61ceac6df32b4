"""Models of a few thousand parameters, one for each family, for the laws that all must obey."""

import jax
import jax.numpy as jnp
import numpy as np

from perl import trees
from perl.models import lm
from perl.models.config import Config
from perl.models.rope import Scaling
from perl.models.transformer import Transformer
from perl.peft import adapters

V = 37
SHAPE = dict(
  vocab_size=V, layers=2, width=16, heads=2, kv_heads=1, head_dim=8, mlp_width=24, max_positions=32,
  scan_unroll=1,
)
FAMILIES: dict[str, dict] = {
  'llama': {},
  'mistral': dict(window=3),
  'qwen2': dict(qkv_bias=True),
  'qwen3': dict(qk_norm=True),
  'gemma': dict(norm_offset=True, embed_scale=True, activation='gelu_tanh'),
  'gemma2': dict(
    norm_offset=True, embed_scale=True, activation='gelu_tanh', post_norm=True,
    attention_softcap=5.0, final_softcap=3.0, query_scale=0.3, window=4,
    window_layers=(True, False),
  ),
  'gemma3': dict(
    norm_offset=True, embed_scale=True, activation='gelu_tanh', post_norm=True, qk_norm=True,
    query_scale=0.3, window=3, window_layers=(True, False), rope_local_theta=100.0,
    rope_scaling=Scaling('linear', 4.0),
  ),
  'gpt2': dict(
    norm='layer', position='learnt', gated=False, activation='gelu_tanh', qkv_bias=True,
    out_bias=True, mlp_bias=True, kv_heads=2,
  ),
  'neox': dict(
    norm='layer', parallel=True, rope_fraction=0.25, gated=False, activation='gelu', qkv_bias=True,
    out_bias=True, mlp_bias=True, kv_heads=2, tied=False,
  ),
  'untied': dict(tied=False),
  'remat': dict(remat='layer'),
  'remat_products': dict(remat='products'),
  'remat_attention': dict(remat='attention'),
  'unrolled': dict(scan_unroll=2),
  'bfloat16': dict(dtype='bfloat16', param_dtype='bfloat16'),
}


def config(family: str = 'llama', **overrides) -> Config:
  """The family's options at a tiny shape."""
  return Config(**{**SHAPE, **FAMILIES[family], **overrides})


def make(family: str = 'llama', seed: int = 0, **overrides) -> tuple[Transformer, dict]:
  """(model, base); every parameter is random, norms and biases too, so that each one matters."""
  model = Transformer(config(family, **overrides))
  zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), lm.abstract(model))
  for name, leaf in trees.flat(zeros).items():
    leaf += float(name.endswith('scale') and not model.config.norm_offset)
  return model, noisy(zeros, 0.2, seed)


def noisy(tree, size: float, seed: int = 0):
  """The tree plus normal noise."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: jnp.asarray(np.asarray(x) + (size * rng.normal(size=x.shape)).astype(x.dtype)), tree
  )


def trained(adapter, size: float = 0.1, seed: int = 0):
  """The adapter as it might be after training: noise on what is trained, the fixed data as is."""
  learnt, fixed = adapters.split(adapter)
  return trees.combine(noisy(learnt, size, seed), fixed)


def lora(base, seed: int = 0, *, head: bool = True, rank: int = 2, **options):
  """A LoRA adapter, fresh."""
  return adapters.init(jax.random.key(seed), base, 'lora', rank=rank, head=head, **options)


def tokens(rows: int = 4, length: int = 10, seed: int = 0, vocabulary: int = V) -> jax.Array:
  """Random ids, i32[rows, length]."""
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.integers(0, vocabulary, (rows, length)), jnp.int32)


def right_mask(lengths, length: int = 10) -> jax.Array:
  """bool[rows, length], the first lengths[b] of row b."""
  return jnp.arange(length) < jnp.asarray(lengths)[:, None]


def equal(a, b) -> None:
  """Bitwise equal trees."""
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b)):
    assert x.dtype == y.dtype, path
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
      x, y = jax.random.key_data(x), jax.random.key_data(y)
    np.testing.assert_array_equal(np.asarray(x), np.asarray(y), err_msg=str(path))


def close(a, b, rtol: float = 1e-5, atol: float = 1e-5) -> None:
  """Trees that agree to rounding."""
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b)):
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    np.testing.assert_allclose(x, y, rtol=rtol, atol=atol, err_msg=str(path))
