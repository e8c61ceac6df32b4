"""One base for four roles: the same results as a copy each, in a quarter of the memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from judging import make_experience

from perl import trees
from perl.peft import adapters
from perl.rl import roles
from perl.rl import update as learner
from perl.rl.rollout import rollout
from perl.train import optim, step

MODEL, BASE = tiny.make('llama', layers=3)
POLICY, REFERENCE = (tiny.trained(tiny.lora(BASE, head=False), seed=s) for s in (1, 2))
REWARD, CRITIC = (tiny.trained(tiny.lora(BASE), seed=s) for s in (3, 4))
FROZEN = {'reference': REFERENCE, 'reward': REWARD}
PROMPT, R, SAMPLES = 5, 4, 3
COMMON = dict(max_new_tokens=R, temperature=0.7)


def one_step(layout='shared', samples=SAMPLES, microbatches=1, **experience):
  """(state, metrics, what was sampled) of a whole RL step: sample, judge, update."""
  base = roles.lay_out(BASE, layout)
  tokens = tiny.tokens(4, PROMPT)
  mask = tiny.right_mask([5, 3, 1, 4], PROMPT)[:, ::-1]
  if samples == 1:  # the same work, row by row
    tokens, mask = jnp.repeat(tokens, SAMPLES, 0), jnp.repeat(mask, SAMPLES, 0)
  sampled = rollout(MODEL, roles.of(base, 'policy'), POLICY, tokens, mask, jax.random.key(0),
                    eos_id=1, pad_id=0, samples=samples, **COMMON)
  build = make_experience(MODEL, beta=0.1, samples=samples, **experience, **COMMON)
  weight = jnp.ones(len(sampled.tokens))
  e, _ = build(base, FROZEN, sampled, weight)
  tx = optim.make('sgd', learning_rate=1.0, steps=1, clip_norm=0.0)
  copy = lambda tree: jax.tree.map(jnp.copy, tree)
  state = step.init_state({'policy': copy(POLICY), 'critic': copy(CRITIC)}, tx,
                          jax.random.key(0), adapters.split)
  update = step.make_train_step(
    learner.make_loss(MODEL, 'reinforce', samples=samples, **COMMON), tx, split=adapters.split,
    microbatches=microbatches, together=samples)
  state, metrics = update(state, base, e)
  return state, {k: float(v) for k, v in metrics.items()}, e


@pytest.fixture(scope='module')
def expected():
  return one_step()


@pytest.mark.parametrize('how', [
  dict(layout='separate'), dict(samples=1), dict(forwards='stacked'), dict(forwards='separate'),
  dict(microbatches=2), dict(microbatches=4)], ids=str)
def test_every_way_of_a_step_gives_the_same(expected, how):
  state, metrics, e = one_step(**how)
  np.testing.assert_array_equal(e.tokens, expected[2].tokens)
  np.testing.assert_allclose(e.scores, expected[2].scores, atol=2e-5)
  np.testing.assert_allclose(e.reference_logprobs, expected[2].reference_logprobs, atol=2e-5)
  assert metrics == pytest.approx(expected[1], rel=1e-3, abs=1e-4)
  tiny.close(state.adapters, expected[0].adapters, rtol=1e-3, atol=2e-3)


def test_the_behaviours_log_probs_are_those_of_teacher_forcing(expected):
  assert expected[1]['sampler_gap'] < 1e-5


def live_bytes():
  """Bytes of distinct buffers on the device."""
  seen = {x.unsafe_buffer_pointer(): x.nbytes for x in jax.live_arrays()
          if not jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)}
  return sum(seen.values())


@pytest.mark.parametrize('layout, bases', [('shared', 0), ('separate', 3)])
def test_four_roles_live_on_one_base(layout, bases):
  """What a step leaves alive beyond the one base: adapters, optimizer, experience; no base."""
  before = live_bytes()
  laid_out = roles.lay_out(BASE, layout)
  extra = live_bytes() - before
  assert extra == pytest.approx(bases * trees.size_bytes(BASE), rel=0.02, abs=64)
  state, _, e = one_step(layout=layout)
  own = trees.size_bytes((state.adapters, state.opt_state, e))
  assert live_bytes() - before - extra <= own + 2**12
  del laid_out


def test_roles_share_their_buffers():
  for role in ('policy', 'reference', 'reward', 'critic'):
    assert roles.of(BASE, role) is BASE
  with pytest.raises(ValueError, match='rl.layout'):
    roles.lay_out(BASE, 'four')


def test_groups_stay_together_in_microbatches():
  cut = step._cut(jnp.arange(12), 2, 3)
  np.testing.assert_array_equal(cut, [[0, 1, 2, 6, 7, 8], [3, 4, 5, 9, 10, 11]])
  with pytest.raises(ValueError, match='rows in turn'):
    step._cut(jnp.arange(12), 4, 4)
