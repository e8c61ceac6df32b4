"""Weighted sums of adapters and task vectors: sums of what they change, exactly."""

import jax
import numpy as np
import pytest
import tiny

from perl import choices, trees
from perl.peft import adapters, composition, task_arithmetic

KEY = jax.random.key(0)
BASE = tiny.make('gpt2')[1]
SUMMED = ('lora', 'lora_fa', 'rslora', 'lora_plus', 'pissa', 'vera', 'adalora', 'intrinsic', 'ia3',
          'bitfit', 'full', 'topk', 'lntuning')
REFUSED = ('dora', 'mole', 'houlsby', 'prefix', 'prompt')


def make(method, seed):
  fresh = adapters.init(jax.random.key(seed), BASE, method, rank=2, dimension=4, head=True)
  return tiny.trained(fresh, seed=seed)


def test_every_method_is_in_one_list():
  assert {*SUMMED, *REFUSED, 'pfeiffer'} == set(choices.names('perl.peft.methods'))


@pytest.mark.parametrize('method', SUMMED)
def test_a_weighted_sum_changes_the_base_by_the_sum_of_changes(method):
  one, two = make(method, 1), make(method, 2)
  total = task_arithmetic.weighted_sum(BASE, [one, two], [0.5, -2.0])
  vectors = [task_arithmetic.task_vector(BASE, a) for a in (one, two)]
  expected = task_arithmetic.add(BASE, vectors, [0.5, -2.0])
  tiny.close(adapters.merge(BASE, total), expected, atol=1e-5)
  np.testing.assert_allclose(
    total['head']['kernel'], 0.5 * one['head']['kernel'] - 2 * two['head']['kernel'], rtol=1e-5)


def test_low_rank_methods_of_different_kinds_have_a_sum():
  one, two = make('lora', 1), make('vera', 2)
  total = task_arithmetic.weighted_sum(BASE, [one, two], [1.0, 1.0])
  vectors = [task_arithmetic.task_vector(BASE, a) for a in (one, two)]
  tiny.close(adapters.merge(BASE, total), task_arithmetic.add(BASE, vectors, [1.0, 1.0]), atol=1e-5)


@pytest.mark.parametrize('method', REFUSED)
def test_others_are_refused_by_name(method):
  with pytest.raises(ValueError, match='expected adapters of which one can form a sum'):
    task_arithmetic.weighted_sum(BASE, [make(method, 1), make(method, 2)], [1.0, 1.0])


def test_a_task_vector_holds_what_changed_and_takes_it_away_again():
  adapter = tiny.trained(adapters.init(KEY, BASE, 'ia3'))
  vector = task_arithmetic.task_vector(BASE, adapter)
  names = {n.removeprefix('layers/block/') for n in trees.flat(vector)}
  assert names == {'attn/k/kernel', 'attn/k/bias', 'attn/v/kernel', 'attn/v/bias',
                   'mlp/down/kernel', 'mlp/down/bias'}
  merged = adapters.merge(BASE, adapter)
  tiny.close(task_arithmetic.add(merged, [vector], [-1.0]), BASE, atol=1e-6)
  tiny.close(task_arithmetic.add(BASE, [vector], [1.0]), merged, atol=1e-6)


def test_weights_that_do_not_fit_are_refused():
  with pytest.raises(ValueError, match='found 1 adapters and 2 weights'):
    task_arithmetic.weighted_sum(BASE, [make('lora', 1)], [1.0, 1.0])


def test_composition_freezes_what_is_below_and_drops_its_head():
  below, above = make('lora', 1), make('ia3', 2)
  both = composition.over(BASE, below, above)
  learnt, fixed = adapters.split(both)
  assert adapters.count(both) == adapters.count(above)
  np.testing.assert_array_equal(both['head']['kernel'], above['head']['kernel'])
  frozen = {n for n in trees.flat(fixed) if '/parts/0/' in n}
  assert frozen == {n for n in trees.flat(both) if '/parts/0/' in n}
  tiny.equal(composition.upper(both), above)
  third = composition.over(BASE, composition.over(BASE, below, above), make('lora', 3))
  assert third['layers']['block']['attn']['k']['kernel'].frozen == 2


def test_a_vector_over_another_adapter_is_over_it():
  """Intrinsic dimension lies at the root, and is laid over what is beside the kernels."""
  below, above = make('lora', 1), make('intrinsic', 2)
  both = composition.over(BASE, below, above)
  expected = adapters.merge(adapters.merge(BASE, below), above)
  tiny.close(adapters.merge(BASE, both), expected, atol=1e-5)
  assert adapters.count(both) == adapters.count(above)
