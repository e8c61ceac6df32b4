"""Preference optimisation over token rows: log-probs, references, every method, known optima."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from perl import choices
from perl.config import schema
from perl.models import lm
from perl.objectives import preferences
from perl.peft import adapters
from perl.preference import direct, methods
from perl.preference import pairs as rows
from perl.train import optim, step

MODEL, BASE = tiny.make('llama', layers=1)
POLICY = tiny.trained(tiny.lora(BASE, head=False), 0.5, seed=1)
REFERENCE = tiny.trained(tiny.lora(BASE, head=False), 0.5, seed=2)
FROZEN = direct.Frozen(BASE, REFERENCE)
B, T, R = 3, 10, 5
STARTS = np.array([3, 5, 2])
LENGTHS = {'chosen': np.array([7, 8, 5]), 'rejected': np.array([5, 10, 6])}
WEIGHT = np.array([1.0, 1.0, 1.0], np.float32)
METHODS = choices.names('perl.preference.methods')


def method(name, **options):
  """With the config's defaults."""
  return methods.find(name)(**{**schema.get_config().preference.get(name, {}), **options})


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
  """The pairs with each prompt once, as perl/data/batches/collate.py lays them out."""
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


@pytest.fixture(scope='module')
def known():
  """{(name, whose): f32[B]}: log-probs of pairs, and as 'other' of prompt b with response b + 1."""
  batch = pairs()
  said = lambda name, b: batch[name][b, STARTS[b]:LENGTHS[name][b]]
  wanted = [(name, b, said(name, b)) for name in LENGTHS for b in range(B)]
  wanted += [('other', b, said('chosen', (b + 1) % B)) for b in range(B)]
  tokens, scored = np.zeros((len(wanted), T), int), np.zeros((len(wanted), T), bool)
  for row, (_, b, response) in enumerate(wanted):
    start, end = STARTS[b], STARTS[b] + len(response)
    tokens[row, :start], tokens[row, start:end] = batch['chosen'][b, :start], response
    scored[row, start:end] = True
  mask = scored | (np.arange(T) < np.array([STARTS[b] for _, b, _ in wanted])[:, None])
  ask = jax.jit(lambda adapter: lm.logprobs(MODEL, BASE, adapter, tokens, mask))
  found = {}
  for whose, adapter in (('policy', POLICY), ('reference', REFERENCE)):
    sums = np.where(scored, ask(adapter), 0.0).sum(-1).reshape(-1, B)
    found |= {(name, whose): jnp.asarray(x) for name, x in zip([*LENGTHS, 'other'], sums)}
  return found


@functools.cache
def judge(made, longest=T):
  return jax.jit(direct.make_judge(MODEL, made, longest=longest, longest_response=R))


@functools.cache
def reader(made):
  return jax.jit(functools.partial(direct.read, MODEL, made))


def judged(made, batch, policy=POLICY, frozen=FROZEN, longest=T):
  return judge(made, longest)(policy, frozen, batch)


def padded(batch, columns, value):
  """With so many more columns, and a filler row at the end."""
  wide = lambda x: np.pad(x, ((0, 0), (0, columns)), constant_values=value) if x.ndim == 2 else x
  found = {name: np.concatenate([wide(x), wide(x)[-1:]]) for name, x in batch.items()}
  found['weight'][-1] = 0.0
  return found | {name: x & (np.arange(T + columns) < T) for name, x in found.items()
                  if x.dtype == bool}


# --- Every method over token rows is the pure function of log-probs


def test_what_is_read_of_a_batch_is_the_log_probs_of_its_responses(known):
  for made, batch, names in ((method('dpo'), pairs(), ('chosen', 'rejected')),
                             (method('kto'), thumbs(), ('chosen',))):
    found = reader(made)(POLICY, FROZEN, batch)
    for column, name in enumerate(names):
      np.testing.assert_allclose(found.logprobs[:, column], known[name, 'policy'], rtol=1e-4)
      np.testing.assert_allclose(found.reference[:, column], known[name, 'reference'], rtol=1e-4)
      np.testing.assert_array_equal(found.tokens[:, column], LENGTHS[name] - STARTS)


def test_every_methods_loss_is_the_pure_function(known):
  said = {name: methods.Responses(known[name, 'policy'], known[name, 'reference'],
                                     jnp.asarray(LENGTHS[name] - STARTS, jnp.float32))
          for name in LENGTHS}
  chosen, rejected = said.values()
  w, l = chosen.logprobs, rejected.logprobs
  mean_w, mean_l = w / chosen.tokens, l / rejected.tokens
  d = preferences.margin(w, l, chosen.reference, rejected.reference)
  each = chosen.ratio / chosen.tokens - rejected.ratio / rejected.tokens
  label, z = jnp.asarray(thumbs()['label']), jnp.float32(0.3)
  expected = {
    'dpo': preferences.dpo(d, beta=0.1),
    'ipo': preferences.ipo(d, beta=0.1),
    'hinge': preferences.hinge(d, beta=0.05),
    'slic': jnp.maximum(0.0, 1.0 - (w - l)) - 0.1 * w,
    'kto': preferences.kto(w - chosen.reference, label, z, beta=0.1),
    'orpo': preferences.orpo(mean_w, mean_l, beta=0.1),
    'simpo': preferences.simpo(mean_w, mean_l, beta=2.0, gamma=1.0),
    'cpo': preferences.cpo(w, l, mean_w, beta=0.1),
  }
  assert set(expected) == set(METHODS)
  for name, losses in expected.items():
    made = method(name)
    given = (chosen, rejected) if made.examples == 'preference' else (chosen, label, z)
    np.testing.assert_allclose(made.loss(*given), losses, rtol=1e-5, err_msg=name)
  smooth = method('dpo', per_token=True, smoothing=0.1, beta=5.0).loss(chosen, rejected)
  np.testing.assert_allclose(smooth, preferences.dpo(each, beta=5.0, smoothing=0.1), rtol=1e-5)


def test_the_loss_and_the_metrics_of_a_batch_are_means_over_its_rows(known):
  found = judged(method('dpo'), pairs())
  metrics = {name: float(mean.value()) for name, mean in found.metrics.items()}
  ratio = {name: known[name, 'policy'] - known[name, 'reference'] for name in LENGTHS}
  d = ratio['chosen'] - ratio['rejected']
  np.testing.assert_allclose(found.loss.value(), preferences.dpo(d, beta=0.1).mean(), rtol=1e-4)
  np.testing.assert_allclose(metrics['chosen_logprob'], known['chosen', 'policy'].mean(), rtol=1e-4)
  np.testing.assert_allclose(metrics['chosen_log_ratio'], ratio['chosen'].mean(), rtol=1e-3)
  np.testing.assert_allclose(metrics['margin'], 0.1 * d.mean(), rtol=1e-3, atol=1e-6)
  np.testing.assert_allclose(found.rewards[:, 1], 0.1 * ratio['rejected'], rtol=1e-3, atol=1e-6)
  assert metrics['accuracy'] == pytest.approx((d > 0).mean())


def test_thumbs_are_held_to_the_drift_of_mismatched_pairs(known):
  found = judged(method('kto'), thumbs())
  ratio, other = (known[n, 'policy'] - known[n, 'reference'] for n in ('chosen', 'other'))
  z = jnp.maximum(other.mean(), 0.0)
  expected = preferences.kto(ratio, jnp.asarray(thumbs()['label']), z, beta=0.1)
  np.testing.assert_allclose(found.metrics['drift'].value(), z, rtol=1e-3, atol=1e-6)
  np.testing.assert_allclose(found.loss.value(), expected.mean(), rtol=1e-4)
  filler = {name: x[[0, 1, 1]] for name, x in thumbs().items()}
  filler['weight'] = np.array([1.0, 1.0, 0.0], np.float32)
  # The second row would meet its own response in the filler, so that the first one alone counts.
  drift = judged(method('kto'), filler).metrics['drift'].value()
  np.testing.assert_allclose(drift, max(other[0], 0.0), rtol=1e-3, atol=1e-6)


def test_at_the_reference_dpo_is_log_two_and_kto_a_half():
  same = judged(method('dpo'), pairs(), policy=REFERENCE)
  assert float(same.loss.value()) == pytest.approx(np.log(2.0), rel=1e-6)
  assert float(judged(method('kto'), thumbs(), policy=REFERENCE).loss.value()) == 0.5


# --- What changes nothing


def test_padding_a_shared_prompt_and_a_known_reference_change_no_loss():
  made = method('dpo')
  plain, unread = judged(made, pairs()), direct.Frozen(BASE, None)
  known = {'reference': reader(made)(POLICY, FROZEN, pairs()).reference}
  assert float(plain.loss.value()) != pytest.approx(np.log(2.0), abs=1e-3)
  for other in (judged(made, pairs(pad=7)), judged(made, padded(pairs(), 3, 9)),
                judged(made, shared(pad=7)), judged(made, pairs() | known, frozen=unread)):
    tiny.close(other.rewards[:B], plain.rewards)
    tiny.close(other.loss, plain.loss)


def test_padding_changes_no_drift():
  plain, other = judged(method('kto'), thumbs()), judged(method('kto'), thumbs(pad=7))
  tiny.close((plain.loss, plain.metrics), (other.loss, other.metrics))
  wide = {n: np.pad(x, ((0, 0), (0, 2))) if x.ndim == 2 else x for n, x in thumbs().items()}
  tiny.close(judged(method('kto'), wide, longest=T + 2).loss, plain.loss)


def test_mismatched_rows_are_a_prompt_and_the_next_response():
  batch, found = thumbs(pad=7), rows.mismatched(thumbs(pad=7), T)
  for b in range(B):
    after, start = (b + 1) % B, STARTS[b]
    said = batch['tokens'][after, STARTS[after]:LENGTHS['chosen'][after]]
    whole = [*batch['tokens'][b, :start], *said]
    np.testing.assert_array_equal(found.tokens[b][found.mask[b]], whole)
    np.testing.assert_array_equal(found.tokens[b][found.responses[b]], said)


def test_a_method_without_a_reference_reads_none():
  free = [name for name in METHODS if not method(name).reference]
  assert free == ['cpo', 'orpo', 'simpo', 'slic']
  for name in free:
    made, batch = direct.make_judge(MODEL, method(name), longest=T, longest_response=R), pairs()
    given = (jax.make_jaxpr(made)(POLICY, direct.Frozen(BASE, reference), batch)
             for reference in (REFERENCE, None))
    assert len({len(jaxpr.eqns) for jaxpr in given}) == 1


# --- Known optima


@pytest.mark.parametrize('name, options, optimum', [
  ('dpo', {'beta': 0.5}, np.log(0.7 / 0.3) / 0.5), ('ipo', {'tau': 0.5}, (0.7 - 0.3) / (2 * 0.5))])
def test_two_responses_preferred_with_probability_p_end_at_the_known_margin(name, options, optimum):
  """Both orders of one pair, weighed by p and 1 - p: the loss is its expectation."""
  p, prompt = 0.7, jnp.asarray([[1, 2, 3]] * 2)
  row = lambda *last: np.concatenate([prompt, np.asarray(last)[:, None]], 1)
  whole = np.ones((2, 4), bool)
  batch = {'chosen': row(4, 5), 'rejected': row(5, 4), 'chosen_mask': whole, 'rejected_mask': whole,
           'prompt_tokens': np.array([3, 3]), 'weight': np.array([p, 1 - p], np.float32)}
  tx = optim.make('adamw', learning_rate=0.03, steps=150, schedule_name='cosine')
  loss = direct.make_loss(MODEL, method(name, **options), longest=T, longest_response=R)
  update = step.make_train_step(loss, tx, split=adapters.split)
  state = step.init_state(jax.tree.map(jnp.copy, REFERENCE), tx, jax.random.key(0), adapters.split)
  for _ in range(150):
    state, _ = update(state, FROZEN, batch)
  margin = reader(method('dpo'))(state.adapters, FROZEN, batch).ratio[0]
  assert float(margin[0] - margin[1]) == pytest.approx(optimum, rel=0.01)


def test_an_unknown_method_is_told():
  with pytest.raises(ValueError, match="a file of perl/preference/methods .* found 'dop'"):
    methods.find('dop')
