"""Operations of traced programs: by hand, and beside XLA's count of one without loops."""

import jax
import jax.numpy as jnp
import pytest
import tiny

from perl.forecast import flops
from perl.jobs import _language as language
from perl.models import lm
from perl.models.transformer import Transformer
from perl.peft import adapters
from perl.train import optim
from perl.train import step as steps

SHAPE = dict(
  vocab_size=512, layers=2, width=128, heads=4, kv_heads=2, head_dim=32, mlp_width=256)
ROWS, TOKENS = 2, 64
LAYER = 128 * 128 * 2 + 128 * 64 * 2 + 3 * 128 * 256
"""Matrix elements of a layer: q and o, k and v, the MLP's three."""
KEYS = 2 * 128
"""Operations of a score and its weighted value, over 2, for each query and key."""


def model(**options):
  return Transformer(tiny.Config(**{**SHAPE, **options}))


def shapes(**options):
  made = model(**options)
  tokens = jax.ShapeDtypeStruct((ROWS, TOKENS), jnp.int32)
  mask = jax.ShapeDtypeStruct((ROWS, TOKENS), jnp.bool_)
  return made, lm.abstract(made), tokens, mask


def update(method, **options):
  """A next-token step by shapes, traced."""
  made, base, tokens, mask = shapes(**options)
  settings = {'rank': 4} if method == 'lora' else {}
  adapter = jax.eval_shape(
    lambda base: adapters.init(jax.random.key(0), base, method, **settings), base)
  tx = optim.make(learning_rate=1e-3, steps=1)
  state = jax.eval_shape(
    lambda a: steps.init_state(a, tx, jax.random.key(0), adapters.split), adapter)
  step = steps.make_train_step(
    language.make_loss(made, dropout=False), tx, split=adapters.split)
  return step.trace(state, base, {'tokens': tokens, 'mask': mask, 'loss_mask': mask})


def test_operations_of_a_forward_pass_by_hand():
  made, base, tokens, mask = shapes()
  traced = jax.jit(lambda b, t, m: lm.logits(made, b, {}, t, m)).trace(base, tokens, mask)
  matrices = ROWS * TOKENS * (SHAPE['layers'] * LAYER + 128 * 512)
  attention = ROWS * SHAPE['layers'] * TOKENS * TOKENS * KEYS  # one block: keys ahead count too
  assert flops.count(traced.jaxpr) == 2 * (matrices + attention)


def test_a_frozen_base_has_no_weight_gradients():
  lora, full = (flops.count(update(m).jaxpr) for m in ('lora', 'full'))
  tokens, layers = ROWS * TOKENS, SHAPE['layers']
  missing = 2 * tokens * (layers * LAYER + 128 * 512)  # a weight's gradient costs its product
  low_rank = 4 * (4 * 128 + 2 * 128 + 2 * 64)  # r (I + O) of q, k, v, o, of a layer
  extra = 3 * 2 * tokens * layers * low_rank  # forward, and both gradients
  # What lies below the first adapter needs no gradient either.
  assert full - 1.3 * missing < lora - extra < full - missing


def test_recomputation_is_counted():
  more = flops.count(update('lora', remat='layer').jaxpr) - flops.count(update('lora').jaxpr)
  assert more >= 2 * ROWS * TOKENS * SHAPE['layers'] * LAYER * 0.9


def test_a_scan_counts_its_length_and_agrees_with_xla_when_unrolled():
  rolled, unrolled = (update('full', scan_unroll=n) for n in (1, SHAPE['layers']))
  ours = flops.count(unrolled.jaxpr)
  # Unrolled, the last layer may leave out what nobody reads.
  assert flops.count(rolled.jaxpr) == pytest.approx(ours, rel=0.02)
  theirs, wrong = (t.lower().compile().cost_analysis()['flops'] for t in (unrolled, rolled))
  assert ours == pytest.approx(theirs, rel=0.1)  # XLA adds what is element-wise
  assert wrong < 0.75 * theirs  # why we count ourselves


def test_a_loop_of_unknown_length_asks_for_it():
  def loop(x, n):
    return jax.lax.while_loop(lambda c: c[0] < n, lambda c: (c[0] + 1, c[1] @ c[1]), (0, x))

  traced = jax.jit(loop).trace(jnp.ones((4, 4)), 7)
  assert flops.count(traced.jaxpr, [5]) == 5 * 2 * 4**3
  with pytest.raises(ValueError, match='say how often it runs'):
    flops.count(traced.jaxpr)
  with pytest.raises(ValueError, match=r'leave \[6\] out'):
    flops.count(traced.jaxpr, [5, 6])


def test_the_dearest_branch_counts():
  def either(x):
    return jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x @ x, x)

  assert flops.count(jax.jit(either).trace(jnp.ones((4, 4))).jaxpr) == 2 * 2 * 4**3
