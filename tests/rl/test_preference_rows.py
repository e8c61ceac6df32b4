"""Preference optimisation over token rows: log-probs, references, every method, known optima."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from configs import base, validate
from perl.models import lm
from perl.objectives import preferences
from perl.peft import adapters
from perl.rl import preference
from perl.rl.preference import learning, rows
from perl.train import optim, step

pytestmark = pytest.mark.usefixtures('compiled_quickly')

MODEL, BASE = tiny.make('llama', layers=1)
POLICY = tiny.trained(tiny.lora(BASE, head=False), 0.5, seed=1)
REFERENCE = tiny.trained(tiny.lora(BASE, head=False), 0.5, seed=2)
FROZEN = learning.Frozen(BASE, REFERENCE)
B, T, R = 3, 10, 5
STARTS = np.array([3, 5, 2])
LENGTHS = {'chosen': np.array([7, 8, 5]), 'rejected': np.array([5, 10, 6])}
WEIGHT = np.array([1.0, 1.0, 1.0], np.float32)
METHODS = validate.names_in('rl/preference', 'Method')
SIZES = dict(longest=T, longest_response=R)


def method(name, **options):
  """With the config's defaults."""
  return preference.find(name)(**base.get_config().preference.get(name, {}) | options)


def pairs(pad=0):
  """Two responses each to three prompts, right-padded; `pad` is what lies under the padding."""
  batch = {'prompt_tokens': STARTS, 'weight': WEIGHT}
  prompts = np.asarray(tiny.tokens(B, T, seed=3))
  for seed, (name, lengths) in enumerate(LENGTHS.items()):
    mask = np.asarray(tiny.right_mask(lengths, T))
    own = np.arange(T) < STARTS[:, None]
    tokens = np.where(own, prompts, tiny.tokens(B, T, seed=seed + 4))
    batch |= {name: np.where(mask, tokens, pad), f'{name}_mask': mask}
  return batch


def thumbs(pad=0):
  """The chosen responses, of which the second has a thumb down."""
  both = pairs(pad)
  return {'tokens': both['chosen'], 'mask': both['chosen_mask'], 'prompt_tokens': STARTS,
          'label': np.array([1.0, 0.0, 1.0], np.float32), 'weight': WEIGHT}


def shared(pad=0):
  """The pairs with each prompt once, as perl/data/collate.py lays them out."""
  both, width = pairs(pad), STARTS.max()
  tokens, mask = np.full((B, width + 2 * R), pad), np.zeros((B, width + 2 * R), bool)
  for b, start in enumerate(STARTS):
    tokens[b, width - start:width] = both['chosen'][b, :start]
    mask[b, width - start:width] = True
    for i, (name, lengths) in enumerate(LENGTHS.items()):
      here = slice(width + i * R, width + i * R + lengths[b] - start)
      tokens[b, here], mask[b, here] = both[name][b, start:lengths[b]], True
  return {'tokens': tokens, 'mask': mask, 'chosen_mask': mask[:, width:width + R],
          'rejected_mask': mask[:, width + R:], 'prompt_tokens': STARTS, 'weight': WEIGHT}


def alone(adapter, prompt, response):
  """log pi(response | prompt) of one row without padding."""
  tokens = jnp.asarray([[*prompt, *response]])
  found = lm.logprobs(MODEL, BASE, adapter, tokens, jnp.ones(tokens.shape, bool))
  return float(found[0, len(prompt):].sum())


def by_hand(adapter, name, other=0):
  """f32[B]: of each prompt's response (or that of the row `other` further on), row by row."""
  batch = pairs()
  said = lambda b: batch[name][b, STARTS[b]:LENGTHS[name][b]]
  return jnp.asarray([alone(adapter, batch[name][b, :STARTS[b]], said((b + other) % B))
                      for b in range(B)])


@pytest.fixture(scope='module')
def known():
  """{(name, whose): f32[B]} of pairs, and of mismatched thumbs."""
  with jax.disable_jit(False):
    whose = {'policy': POLICY, 'reference': REFERENCE}
    return {(name, who): by_hand(adapter, name) for name in LENGTHS
            for who, adapter in whose.items()} | {
      ('other', who): by_hand(adapter, 'chosen', other=1) for who, adapter in whose.items()}


def judged(made, batch, policy=POLICY, frozen=FROZEN, **sizes):
  judge = jax.jit(learning.make_judge(MODEL, made, **{**SIZES, **sizes}))
  return judge(policy, frozen, batch)


# --- Every method over token rows is the pure function of log-probs


def test_every_method_over_rows_is_its_loss_of_log_probs(known):
  tokens = {name: lengths - STARTS for name, lengths in LENGTHS.items()}
  w, l = (known[name, 'policy'] for name in LENGTHS)
  mean_w, mean_l = w / tokens['chosen'], l / tokens['rejected']
  ratio = {name: known[name, 'policy'] - known[name, 'reference'] for name in LENGTHS}
  d = preferences.margin(w, l, known['chosen', 'reference'], known['rejected', 'reference'])
  each = ratio['chosen'] / tokens['chosen'] - ratio['rejected'] / tokens['rejected']
  z = max(float((known['other', 'policy'] - known['other', 'reference']).mean()), 0.0)
  expected = {
    'dpo': preferences.dpo(d, beta=0.1),
    'ipo': preferences.ipo(d, beta=0.1),
    'hinge': preferences.hinge(d, beta=0.05),
    'slic': np.maximum(0.0, 1.0 - (w - l)) - 0.1 * w,
    'kto': preferences.kto(ratio['chosen'], thumbs()['label'], z, beta=0.1),
    'orpo': preferences.orpo(mean_w, mean_l, beta=0.1),
    'simpo': preferences.simpo(mean_w, mean_l, beta=2.0, gamma=1.0),
    'cpo': preferences.cpo(w, l, mean_w, beta=0.1),
  }
  assert set(expected) == set(METHODS)
  batches = {'preference': pairs(), 'labelled': thumbs()}
  for name, losses in expected.items():
    made = method(name)
    found = judged(made, batches[made.examples])
    np.testing.assert_allclose(found.loss.value(), losses.mean(), rtol=2e-4, err_msg=name)
  smooth = judged(method('dpo', per_token=True, smoothing=0.1, beta=5.0), pairs())
  np.testing.assert_allclose(
    smooth.loss.value(), preferences.dpo(each, beta=5.0, smoothing=0.1).mean(), rtol=2e-4)


def test_metrics_are_those_of_the_rows(known):
  found = judged(method('dpo'), pairs())
  metrics = {name: float(mean.value()) for name, mean in found.metrics.items()}
  ratio = {name: known[name, 'policy'] - known[name, 'reference'] for name in LENGTHS}
  np.testing.assert_allclose(metrics['chosen_logprob'], known['chosen', 'policy'].mean(), rtol=1e-4)
  np.testing.assert_allclose(metrics['chosen_log_ratio'], ratio['chosen'].mean(), rtol=1e-3)
  margin = 0.1 * (ratio['chosen'] - ratio['rejected'])
  np.testing.assert_allclose(metrics['margin'], margin.mean(), rtol=1e-3, atol=1e-6)
  assert metrics['accuracy'] == pytest.approx((margin > 0).mean())
  np.testing.assert_allclose(found.rewards[:, 0], 0.1 * ratio['chosen'], rtol=1e-3, atol=1e-6)


def test_at_the_reference_dpo_is_log_two_and_kto_a_half():
  same = judged(method('dpo'), pairs(), policy=REFERENCE)
  assert float(same.loss.value()) == pytest.approx(np.log(2.0), rel=1e-6)
  assert float(judged(method('kto'), thumbs(), policy=REFERENCE).loss.value()) == 0.5


# --- What changes nothing


def test_padding_a_shared_prompt_and_a_known_reference_change_no_loss():
  made = method('dpo')
  plain = judged(made, pairs())
  longer = {n: np.pad(x, ((0, 0), (0, 3))) if np.ndim(x) == 2 else x for n, x in pairs(9).items()}
  reference = learning.reference_logprobs(MODEL, FROZEN, pairs())
  unread = learning.Frozen(BASE, None)
  for other in (judged(made, pairs(pad=7)), judged(made, longer), judged(made, shared(pad=7)),
                judged(made, pairs() | {'reference': reference}, frozen=unread)):
    tiny.close(other.rewards, plain.rewards)
    tiny.close(other.loss.value(), plain.loss.value())
  filler = {n: np.concatenate([x, x[-1:]]) for n, x in pairs().items()}
  filler['weight'] = np.array([1.0, 1.0, 1.0, 0.0], np.float32)
  tiny.close(judged(made, filler).loss, plain.loss)


def test_the_drift_of_thumbs_knows_no_padding_and_no_filler():
  made = method('kto')
  plain = judged(made, thumbs())
  longer = {n: np.pad(x, ((0, 0), (0, 2))) if np.ndim(x) == 2 else x for n, x in thumbs(9).items()}
  for other in (judged(made, thumbs(pad=7)), judged(made, longer, longest=T + 2)):
    tiny.close(other.loss.value(), plain.loss.value())
  two = {n: x[:2] for n, x in thumbs().items()}
  filler = {n: np.concatenate([x[:2], x[1:2]]) for n, x in thumbs().items()}
  filler['weight'] = np.array([1.0, 1.0, 0.0], np.float32)
  # Without filler the second row meets the first prompt; a filler row leaves it out.
  first = rows.mismatched(two, T)
  ratio = [rows.logprobs(MODEL, BASE, a, first)[0] for a in (POLICY, REFERENCE)]
  drift = judged(made, filler).metrics['drift'].value()
  np.testing.assert_allclose(drift, max(float(ratio[0] - ratio[1]), 0.0), rtol=1e-4, atol=1e-6)


def test_mismatched_rows_are_a_prompt_and_the_next_response():
  batch, found = thumbs(pad=7), rows.mismatched(thumbs(pad=7), T)
  for b in range(B):
    after, start = (b + 1) % B, STARTS[b]
    said = batch['tokens'][after, STARTS[after]:LENGTHS['chosen'][after]]
    whole = [*batch['tokens'][b, :start], *said]
    np.testing.assert_array_equal(found.tokens[b][found.mask[b]], whole)
    np.testing.assert_array_equal(found.tokens[b][found.responses[b]], said)


def test_a_method_without_a_reference_needs_none_and_no_gradient_reaches_the_reference():
  free = [name for name in METHODS if not method(name).reference]
  assert free == ['cpo', 'orpo', 'simpo', 'slic']
  for name in free:
    made = learning.make_judge(MODEL, method(name), **SIZES)
    with_, without = (jax.make_jaxpr(made)(POLICY, learning.Frozen(BASE, r), pairs())
                      for r in (REFERENCE, None))
    assert len(with_.eqns) == len(without.eqns)
  loss = lambda reference: learning.make_judge(MODEL, method('dpo'), **SIZES)(
    POLICY, learning.Frozen(BASE, reference), pairs()).loss.total
  slope = jax.jit(jax.grad(loss, allow_int=True))(REFERENCE)
  assert all(not np.any(x) for x in jax.tree.leaves(slope))


# --- Known optima


@pytest.mark.parametrize('name, optimum', [
  ('dpo', lambda p: np.log(p / (1 - p)) / 0.1), ('ipo', lambda p: (2 * p - 1) / (2 * 0.1))])
def test_two_responses_preferred_with_probability_p_end_at_the_known_margin(name, optimum):
  """Both orders of one pair, weighed by p and 1 - p: the loss is its expectation."""
  p, prompt = 0.7, jnp.asarray([[1, 2, 3]] * 2)
  row = lambda *last: np.concatenate([prompt, np.asarray(last)[:, None]], 1)
  whole = np.ones((2, 4), bool)
  batch = {'chosen': row(4, 5), 'rejected': row(5, 4), 'chosen_mask': whole, 'rejected_mask': whole,
           'prompt_tokens': np.array([3, 3]), 'weight': np.array([p, 1 - p], np.float32)}
  made, tx = method(name), optim.make('adamw', learning_rate=0.03, steps=300, schedule_name='cosine')
  update = step.make_train_step(
    learning.make_loss(MODEL, made, **SIZES), tx, split=adapters.split)
  state = step.init_state(jax.tree.map(jnp.copy, REFERENCE), tx, jax.random.key(0), adapters.split)
  for _ in range(300):
    state, _ = update(state, FROZEN, batch)
  margin = judged(made, batch, policy=state.adapters).rewards / 0.1
  assert float(margin[0, 0] - margin[0, 1]) == pytest.approx(optimum(p), rel=0.02)


def test_an_unknown_method_is_told():
  with pytest.raises(ValueError, match="a Method, found 'dop'"):
    preference.find('dop')
