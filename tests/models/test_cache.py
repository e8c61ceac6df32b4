"""Caches: narrow ones are near, slots are written where they should be, nothing is copied."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from perl import machine, trees
from perl.models import decode, lm, stack
from perl.models.cache import Store
from perl.models.config import Config
from perl.models.transformer import Transformer
from perl.rl.rollout import rollout


def numbers(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize('is_keys', [True, False])
def test_int8_is_within_half_a_step_of_what_was_stored(is_keys):
  x = numbers(2, 5, 3, 8) * 10.0 ** numbers(2, 5, 3, 1, seed=1)
  store = Store.of(x, 'int8', is_keys=is_keys)
  assert store.data.dtype == jnp.int8 and store.scale.shape == (2, 3, 5)
  back = store.data * jnp.expand_dims(store.scale, -2 if is_keys else -1)
  back = back.transpose(0, 3, 1, 2) if is_keys else back.transpose(0, 2, 1, 3)
  step = jnp.abs(x).max(-1, keepdims=True) / 127
  assert (jnp.abs(back - x) <= 0.5001 * step).all()


def test_int8_of_zeros_is_zero_and_not_nan():
  store = Store.of(jnp.zeros((1, 2, 1, 4)), 'int8', is_keys=True)
  assert (store.data == 0).all() and np.isfinite(store.scale).all()


@pytest.mark.parametrize('kind', ['model', 'bfloat16', 'int8'])
@pytest.mark.parametrize('is_keys', [True, False])
@pytest.mark.parametrize('layer', [None, 1])
@pytest.mark.parametrize('slot', [2, (0, 3)])
def test_a_token_is_written_to_its_slot_and_nowhere_else(kind, is_keys, layer, slot):
  lead = () if layer is None else (3,)
  store = Store.empty(2, 3, 4, 5, jnp.float32, kind, is_keys=is_keys, lead=lead)
  x, slot = numbers(2, 1, 3, 4), jnp.asarray(slot, jnp.int32)
  index = None if layer is None else jnp.int32(layer)
  new = jax.jit(lambda s: s.put(x, slot, index))(store)
  alone = Store.of(x, kind, is_keys=is_keys)
  data = np.array(new.data if layer is None else new.data[layer], np.float32)
  data = np.moveaxis(data, -1 if is_keys else -2, 1)  # [B, S, G, K]
  for row, at in enumerate(np.broadcast_to(slot, (2,))):
    expected = np.moveaxis(np.asarray(alone.data, np.float32), -1 if is_keys else -2, 1)[row, 0]
    np.testing.assert_array_equal(data[row, at], expected)
    data[row, at] = 0
  assert not data.any()
  if layer is not None:
    assert not np.asarray(new.data[:1], np.float32).any()


@pytest.mark.parametrize('kind, tolerance', [('float32', 1e-5), ('bfloat16', 0.1), ('int8', 0.1)])
@pytest.mark.parametrize('copy', [True, False])
def test_narrow_caches_decode_nearly_the_same(kind, tolerance, copy):
  model, base = tiny.make('llama')
  prompt = tiny.tokens(3, 5)

  def logits(kind):
    parts = decode.parts(model, base, {}, copy=copy)
    out, cache = decode.prefill(model, parts, prompt, jnp.ones((3, 5), bool), 4, kind=kind)
    for i in range(3):
      seen = jnp.broadcast_to(jnp.arange(4) <= i, (3, 4))
      out, cache = decode.step(model, parts, cache, prompt[:, i], seen, jnp.int32(i))
    return out

  np.testing.assert_allclose(logits(kind), logits('model'), atol=tolerance)


def test_decoding_copies_the_base_where_memory_has_ample_room():
  config = Config(
    vocab_size=64, layers=8, width=96, heads=4, kv_heads=4, head_dim=24, mlp_width=320)
  model = Transformer(config)
  base = lm.abstract(model)
  adapter = jax.eval_shape(lambda b: tiny.lora(b, head=False), base)
  shape = jax.ShapeDtypeStruct

  def temporaries(room, accelerated=False):
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(stack, 'COPIED_BYTES', 0)
      patch.setattr(machine, 'memory_bytes', lambda: room)
      jax.clear_caches()
      with machine.accelerated() if accelerated else contextlib.nullcontext():
        compiled = rollout.lower(
          model, base, adapter, shape((2, 4), jnp.int32), shape((2, 4), bool),
          jax.eval_shape(jax.random.key, 0), max_new_tokens=4, eos_id=1, pad_id=0).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  whole = trees.size_bytes(base)
  enough = decode.COPIED_SHARE * whole
  assert temporaries(enough - 1) < 0.4 * whole
  assert temporaries(enough, accelerated=True) < 0.4 * whole
  assert temporaries(enough) > whole  # so that the law can fail
