"""Options: a function gets what it takes, and what nobody takes is an error."""

import functools
import inspect

import jax.numpy as jnp
import optax
import pytest

from perl import choices, options
from perl.peft import adapters, protocol
from perl.rl import algorithms, update
from perl.types import Experience


def clipped(logprobs, e, *, clip, level='token', tokens=0):
  return logprobs, e, clip, level, tokens


def test_a_function_takes_what_it_names():
  known = {'clip': 0.1, 'level': 'response', 'samples': 4}
  assert options.names(clipped) == ('clip', 'level', 'tokens')
  assert options.taken(clipped, known) == {'clip': 0.1, 'level': 'response'}
  assert options.bound(clipped, known)(1, 2) == (1, 2, 0.1, 'response', 0)


def test_what_a_partial_has_decided_stays():
  part = functools.partial(clipped, level='sequence')
  assert options.names(part) == ('clip', 'tokens')
  assert options.bound(part, {'clip': 0.1, 'level': 'token'})(1, 2) == (1, 2, 0.1, 'sequence', 0)
  assert options.bound(functools.partial(part, clip=3), {'clip': 1})(1, 2)[2:4] == (3, 'sequence')


def test_what_nobody_takes_is_refused_with_the_nearest_name():
  options.check(['clip'], ['clip', 'level'], 'a choice')
  with pytest.raises(ValueError, match="options of a choice among clip, level, found 'clpi'; did "
                                       "you mean 'clip'"):
    options.check(['level', 'clpi'], ['level', 'clip'], 'a choice')
  with pytest.raises(ValueError, match="found 'xyz'; leave it out"):
    options.check(['xyz'], ['clip'], 'a choice')


@pytest.mark.parametrize('make', [update.make_loss, update.make_prepare])
@pytest.mark.parametrize('name', choices.names('perl.rl.algorithms'))
def test_every_algorithm_refuses_a_misspelt_option(make, name):
  with pytest.raises(ValueError, match="found 'clpi'; did you mean 'clip'"):
    make(None, name, max_new_tokens=8, clpi=0.5)


@pytest.mark.parametrize('name', choices.names('perl.rl.algorithms'))
def test_what_an_algorithm_needs_has_a_value(name):
  """Its functions have no `**`, and an option without a default is one that every config gives."""
  module = algorithms.find(name)
  known = algorithms.OPEN.keys() | {'max_new_tokens', 'running'}
  for hook in algorithms.HOOKS:
    parameters = inspect.signature(getattr(module, hook, lambda: None)).parameters.values()
    assert not any(p.kind is p.VAR_KEYWORD for p in parameters), hook
    assert {p.name for p in parameters
            if p.kind is p.KEYWORD_ONLY and p.default is p.empty} <= known, hook


def test_an_algorithm_may_be_made_of_partials(tmp_path, monkeypatch):
  (tmp_path / 'whole.py').write_text(
    'import functools\n'
    'from perl.rl.algorithms._groups import relative as estimate\n'
    'from perl.rl.surrogate import clipped\n'
    "OWN = {'samples': 4}\n"
    "policy_loss = functools.partial(clipped, level='response', clip=0.5)\n")
  monkeypatch.setattr(algorithms, '__path__', [*algorithms.__path__, str(tmp_path)])
  assert 'whole' in choices.names('perl.rl.algorithms')
  update.make_loss(None, 'whole', max_new_tokens=2, clip_high=0.7)
  now, none, every = jnp.log(jnp.asarray([[1.0, 1.25]])), jnp.zeros((1, 2)), jnp.ones((1, 2), bool)
  e = Experience(
    tokens=jnp.zeros((1, 2), int), mask=every, response_mask=every, behaviour_logprobs=none,
    reference_logprobs=none, rewards=none, returns=none, scores=jnp.zeros(1), weight=jnp.ones(1),
    advantages=-jnp.ones((1, 2)))
  resolved = algorithms.resolve('whole', dict.fromkeys(algorithms.OPEN)) | {'max_new_tokens': 2}
  loss, _ = options.bound(algorithms.find('whole').policy_loss, resolved)(now, e)
  # -A rho with rho = 1 * 1.25 of the whole response; of tokens it would be (1 + 1.25) / 2.
  assert loss.value() == pytest.approx(1.25)


def test_an_optimizer_of_a_method_refuses_a_misspelt_option():
  for method in choices.names('perl.peft.methods'):
    with pytest.raises(ValueError, match="found 'rate_ratoi'; did you mean 'rate_ratio'"):
      adapters.optimizer(method, None, steps=2, rate_ratoi=3.0)
  tx = optax.sgd(0.1)
  assert adapters.optimizer('lora', tx, steps=2, rank=2, **dict.fromkeys(protocol.COMMON)) is tx
