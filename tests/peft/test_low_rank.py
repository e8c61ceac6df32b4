"""What is a low-rank method's own: LoRA+'s rates, AdaLoRA's budget, VeRA's pair, a router."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from perl import trees
from perl.models import lm
from perl.peft import adapters
from perl.peft.methods import adalora, dora, intrinsic, lora_fa, mole, pissa, vera
from perl.peft.methods.lora import LoRA

KEY = jax.random.key(0)
MODEL, BASE = tiny.make('llama')
W = jnp.asarray(np.random.default_rng(0).normal(size=(6, 5)), jnp.float32)
X = jnp.asarray(np.random.default_rng(1).normal(size=(4, 6)), jnp.float32)


def logits(adapter, base=BASE):
  return lm.logits(MODEL, base, adapter, tiny.tokens(), tiny.right_mask([10, 7, 1, 4]))


# --- Learning rates and options


def test_lora_plus_moves_b_so_many_times_as_far():
  adapter = tiny.lora(BASE)
  learnt, _ = adapters.split(adapter)
  tx = adapters.optimizer('lora_plus', optax.sgd(0.1), steps=10, rate_ratio=16.0, rank=2)
  grads = jax.tree.map(jnp.ones_like, learnt)
  updates, _ = tx.update(grads, tx.init(learnt), learnt)
  q = updates['layers']['block']['attn']['q']['kernel']
  np.testing.assert_allclose(q.a, -0.1, rtol=1e-6)
  np.testing.assert_allclose(q.b, -1.6, rtol=1e-6)
  np.testing.assert_allclose(updates['head']['kernel'], -0.1, rtol=1e-6)


def test_methods_that_train_as_all_do_keep_the_optimizer():
  tx = optax.sgd(0.1)
  assert adapters.optimizer('lora', tx, steps=10, rank=2) is tx


def test_an_option_that_no_method_has_is_refused():
  with pytest.raises(ValueError, match="expected options of a method among .*found 'rnak'"):
    adapters.init(KEY, BASE, 'lora', rnak=2)


def test_options_of_other_methods_are_ignored():
  tiny.equal(adapters.init(KEY, BASE, 'lora', rank=2, experts=7), adapters.init(
    KEY, BASE, 'lora', rank=2))


# --- LoRA-FA


def test_lora_fa_trains_b_alone_and_is_loras_function():
  made = tiny.trained({'kernel': lora_fa.init(KEY, W, rank=2)}, 0.3)['kernel']
  learnt, fixed = adapters.split({'kernel': made})
  assert set(trees.flat(learnt)) == {'kernel/b'}
  plain = LoRA(a=made.a, b=made.b, scale=made.scale)
  np.testing.assert_array_equal(made.project(X, W), plain.project(X, W))


# --- DoRA


def test_dora_takes_the_norm_as_a_constant():
  """Its gradient is that of m W / c (section 4.3), at b = 0 and away from it."""
  made = tiny.trained({'kernel': dora.init(KEY, W, rank=2)}, 0.3)['kernel']
  low = made.scale * made.a @ made.b
  norm = jnp.linalg.norm(W + low, axis=0)

  def by_hand(a, b, m):
    return ((X @ (W + made.scale * a @ b)) * m / norm).sum()

  expected = jax.grad(by_hand, (0, 1, 2))(made.a, made.b, made.m)
  found = jax.grad(lambda d: d.project(X, W).sum())(made)
  for name, grad in zip('abm', expected):
    np.testing.assert_allclose(getattr(found, name), grad, rtol=2e-5, atol=2e-5)
  free = jax.grad(lambda d: d.replace(detach=False).project(X, W).sum())(made)
  assert np.abs(free.b - found.b).max() > 1e-3


def test_doras_columns_have_the_length_that_it_learns():
  made = tiny.trained({'kernel': dora.init(KEY, W, rank=2)}, 0.3)['kernel']
  np.testing.assert_allclose(
    jnp.linalg.norm(made.merge(W), axis=0), np.abs(made.m), rtol=1e-5)


def test_a_column_of_zeros_is_no_nan():
  w = W.at[:, 2].set(0.0)
  made = dora.init(KEY, w, rank=2)
  np.testing.assert_array_equal(made.project(X, w)[:, 2], 0.0)
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(
    jax.grad(lambda d: d.project(X, w).sum())(made)))


# --- PiSSA


def test_pissa_begins_as_the_best_approximation_of_its_rank():
  made = pissa.init(KEY, W, rank=2)
  u, s, v = np.linalg.svd(np.asarray(W))
  np.testing.assert_allclose(made.a @ made.b, u[:, :2] * s[:2] @ v[:2], atol=1e-5)


def test_pissa_is_plain_lora_of_twice_the_rank():
  adapter = tiny.trained(adapters.init(KEY, BASE, 'pissa', rank=2))
  plain = trees.nest({path: node.to_lora(trees.flat(BASE)[path])
                      for path, node in adapters.nodes(adapter).items()})
  node = plain['layers']['block']['attn']['q']['kernel']
  assert isinstance(node, LoRA) and node.a.shape[-1] == 4
  np.testing.assert_allclose(logits(plain), logits(adapter), atol=2e-5)
  tiny.close(adapters.merge(BASE, plain), adapters.merge(BASE, adapter), atol=1e-6)


# --- VeRA


def test_vera_stores_vectors_and_draws_the_same_pair_for_every_layer():
  adapter = adapters.init(KEY, BASE, 'vera', rank=7, targets=('q',), projection_seed=3)
  node = adapter['layers']['block']['attn']['q']['kernel']
  assert {n: x.shape for n, x in trees.flat(adapter).items()} == {
    'layers/block/attn/q/kernel/d': (2, 7), 'layers/block/attn/q/kernel/b': (2, 16)}
  a, b = vera.pair(3, 16, 7, 16)
  np.testing.assert_array_equal(node.d, np.full((2, 7), np.float32(0.1)))
  one = jax.tree.map(lambda x: x[0], tiny.trained(adapter))
  one = one['layers']['block']['attn']['q']['kernel']
  w = BASE['layers']['block']['attn']['q']['kernel'][0]
  x = jnp.ones((3, 16))
  expected = x @ (w + a @ np.diag(one.d) @ b @ np.diag(one.b))
  np.testing.assert_allclose(one.project(x, w), expected, rtol=2e-5, atol=2e-5)
  other = one.replace(projection_seed=4)
  assert np.abs(other.project(x, w) - expected).max() > 0.01


# --- Intrinsic dimension


def test_hadamard_is_sylvesters_matrix():
  h = np.array([[1]])
  for _ in range(3):
    h = np.block([[h, h], [h, -h]])
  x = np.random.default_rng(0).normal(size=8).astype(np.float32)
  np.testing.assert_allclose(intrinsic.hadamard(jnp.asarray(x)), h @ x, atol=1e-6)


def test_the_projection_is_linear_and_keeps_lengths():
  z = jnp.asarray(np.random.default_rng(0).normal(size=(2, 20)), jnp.float32)
  ask = lambda z: intrinsic.project(KEY, z, (3, 40, 25))
  np.testing.assert_allclose(ask(2 * z[0] - z[1]), 2 * ask(z[0]) - ask(z[1]), atol=1e-5)
  length = lambda key: jnp.linalg.norm(intrinsic.project(key, z[0], (40, 25)))
  lengths = jax.jit(jax.vmap(length))(jax.random.split(KEY, 40))
  assert np.mean(lengths) / jnp.linalg.norm(z[0]) == pytest.approx(1.0, abs=0.1)


def test_one_vector_moves_every_target():
  adapter = adapters.init(KEY, BASE, 'intrinsic', dimension=3, targets=('q', 'down'))
  assert set(trees.flat(adapter)) == {'intrinsic/z'}
  moved = adapters.merge(BASE, tiny.trained(adapter))
  changed = [n for n, x in trees.flat(moved).items() if not np.array_equal(x, trees.flat(BASE)[n])]
  assert changed == ['layers/block/attn/q/kernel', 'layers/block/mlp/down/kernel']


# --- Mixture of experts


def routed(**options):
  made = mole.init(KEY, W, rank=2, experts=4, top_experts=2, **options)
  return tiny.trained({'kernel': made}, 0.3)['kernel']


def test_gates_are_of_the_k_best_experts_and_sum_to_one():
  made = routed().replace(balance=jnp.zeros(4))
  gates, scores = made.gates(X), X @ made.router
  np.testing.assert_allclose(gates.sum(-1), 1.0, rtol=1e-6)
  best = np.argsort(-np.asarray(scores), -1)[:, :2]
  for row, kept, score in zip(gates, best, np.asarray(scores)):
    expected = np.exp(score[kept]) / np.exp(score[kept]).sum()
    np.testing.assert_allclose(row[kept], expected, rtol=1e-5)
    assert np.count_nonzero(row) == 2


def test_a_mixture_is_the_sum_that_its_equation_says():
  made = routed()
  gates = made.gates(X)
  expected = X @ W + made.scale * sum(
    gates[:, e, None] * (X @ made.a[e] @ made.b[e]) for e in range(4))
  np.testing.assert_allclose(made.project(X, W), expected, rtol=1e-4, atol=1e-5)


def test_the_balance_learns_load_and_not_the_loss():
  """In place of a derivative: how much oftener than evenly, tokens weighed by their gradient."""
  made = routed()
  weight = jnp.asarray([1.0, 2.0, 0.0, 3.0])
  grad = jax.grad(lambda m: (m.project(X, W)[:, 0] * weight).sum())(made)
  load = (weight[:, None] * (made.gates(X) > 0) / 2).sum(0)
  np.testing.assert_allclose(grad.balance, load - load.mean(), rtol=1e-5, atol=1e-6)


def test_training_evens_out_the_load():
  """All tokens alike prefer two experts; the bias alone sends them elsewhere."""
  made = mole.init(KEY, W, rank=2, experts=4, top_experts=2)
  x = jnp.abs(jax.random.normal(KEY, (64, 6)))
  made = made.replace(router=jnp.zeros((6, 4)).at[:, 0].set(0.1).at[:, 1].set(0.05)
                      + 0.02 * jax.random.normal(jax.random.key(1), (6, 4)))
  spread = lambda m: np.std((m.gates(x) > 0).mean(0))
  tx = optax.adam(1e-2)
  state, start = tx.init(made.balance), spread(made)
  for _ in range(60):
    grad = jax.grad(lambda m: m.project(x, W).sum())(made).balance
    update, state = tx.update(grad, state)
    made = made.replace(balance=made.balance + update)
  assert spread(made) < 0.3 * start


def test_more_experts_for_a_token_than_there_are_is_refused():
  with pytest.raises(ValueError, match='top_experts from 1 to experts, found 5 and 4'):
    mole.init(KEY, W, experts=4, top_experts=5)


# --- AdaLoRA


def budgeted(steps=40, **options):
  """A budget's run on gradients of one direction a matrix: (adapters after, kept after each)."""
  base = {'one': {'kernel': W}, 'two': {'kernel': 3.0 * W}}
  adapter = {name: {'kernel': adalora.init(jax.random.key(i), w['kernel'], rank=1, initial_rank=3)}
             for i, (name, w) in enumerate(base.items())}
  learnt, fixed = adapters.split(adapter)
  tx = adalora.optimizer(optax.sgd(1e-2), steps=steps, rank=1, budget_every_steps=1, **options)
  goal = {name: w['kernel'] @ jnp.ones((5, 5)) for name, w in base.items()}
  slope = jax.jit(jax.grad(lambda learnt: sum(
    -(trees.combine(learnt, fixed)[n]['kernel'].to_lora(None).merge(0 * W) * goal[n]).sum()
    for n in base)))
  state, kept = tx.init(learnt), []
  step = jax.jit(tx.update)
  for _ in range(steps):
    updates, state = step(slope(learnt), state, learnt)
    learnt = optax.apply_updates(learnt, updates)
    kept.append(sum(int((n['kernel'].e != 0).sum()) for n in learnt.values()))
  return learnt, kept


def test_the_budget_falls_by_the_cube_from_the_first_rank_to_the_last():
  _, kept = budgeted(orthogonality=0.0, budget_start=0.25, budget_end=0.25)
  steps, first, last = 40, 10, 30
  for t, found in enumerate(kept, start=1):
    left = min(max((last - t) / (last - first), 0.0), 1.0)
    budget = 6 if t < first else round(2 + 4 * left**3)
    assert found == budget, t
  assert kept[0] == 6 and kept[steps - 1] == 2


def test_importance_is_what_the_paper_says():
  """By hand: the entry's own sensitivity times its spread, plus the means of its vectors'."""
  node = adalora.AdaLoRA(p=jnp.asarray([[1.0, 2.0], [3.0, 4.0]]), e=jnp.asarray([10.0, 20.0]),
                         q=jnp.asarray([[5.0, 7.0], [1.0, 3.0]]), scale=None)
  np.testing.assert_allclose(adalora._importance(node), [10 + 2 + 6, 20 + 3 + 2])


def test_the_orthogonality_penalty_is_the_gradient_of_its_formula():
  made = tiny.trained({'kernel': adalora.init(KEY, W, rank=2)}, 0.3)['kernel']
  off = lambda m: jnp.sum((m - jnp.eye(3)) ** 2)
  expected = jax.grad(lambda d: 0.1 * (off(d.p.T @ d.p) + off(d.q @ d.q.T)))(made)
  zero = jax.tree.map(jnp.zeros_like, made)
  found = adalora._add_orthogonality(made, zero, 0.1)
  np.testing.assert_allclose(found.p, expected.p, rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(found.q, expected.q, rtol=1e-4, atol=1e-6)


def test_a_head_and_other_roles_pass_through_the_budget():
  adapter = adapters.init(KEY, BASE, 'adalora', rank=2, head=True)
  roles = {'policy': adapter, 'critic': jax.tree.map(jnp.copy, adapter)}
  learnt, _ = adapters.split(roles)
  wrap = lambda: adapters.optimizer('adalora', optax.adam(0.1), steps=4, rank=2)
  tx = optax.partition(
    {'policy': wrap(), 'critic': wrap()},
    lambda tree: {r: jax.tree.map(lambda _, r=r: r, part) for r, part in tree.items()})
  state = tx.init(learnt)
  for _ in range(4):
    updates, state = jax.jit(tx.update)(jax.tree.map(jnp.ones_like, learnt), state, learnt)
    learnt = optax.apply_updates(learnt, updates)
  for part in learnt.values():
    assert np.abs(part['head']['kernel'] - adapter['head']['kernel']).min() > 0.1
    kept = sum(int((n.e != 0).sum()) for n in adapters.nodes(part).values())
    assert kept == 2 * 8  # of 3 at the start, in 8 matrices
