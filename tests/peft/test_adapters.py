"""Adapters as a tree: patterns, heads, errors, stacks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from perl import choices, trees
from perl.models import lm
from perl.peft import adapters
from perl.peft.methods import full
from perl.peft.methods.lora import LoRA

BASE = tiny.make('llama')[1]
KEY = jax.random.key(0)


def test_methods_are_found_by_file():
  assert {'lora', 'full'} <= set(choices.names('perl.peft.methods'))
  with pytest.raises(ValueError, match="a file of perl/peft/methods .*lora, .*found 'lorra'"):
    adapters.init(KEY, BASE, 'lorra')


def test_the_default_adapts_all_four_attention_projections():
  adapter = adapters.init(KEY, BASE, 'lora', rank=2)
  found = {name.rsplit('/', 2)[0] for name in trees.flat(adapter)}
  assert found == {f'layers/block/attn/{n}' for n in 'qkvo'}


def test_a_pattern_that_matches_nothing_names_what_could_be():
  with pytest.raises(ValueError) as error:
    adapters.init(KEY, BASE, 'lora', targets=('attn/(q|v)', 'attn/query'), rank=2)
  assert "'attn/query'" in str(error.value)
  assert all(name in str(error.value) for name in adapters.projections(BASE))


def test_nothing_to_train_is_an_error_that_names_what_could_be():
  with pytest.raises(ValueError, match='expected something to train.*layers/block/attn/q'):
    adapters.init(KEY, BASE, 'lora', targets=())
  with pytest.raises(ValueError, match='expected something to train'):
    adapters.init(KEY, {}, 'full')


def test_a_head_belongs_to_the_adapter_and_is_trained():
  adapter = adapters.init(KEY, BASE, 'lora', rank=2, head=True)
  assert adapter['head']['kernel'].shape == (16, 1)
  assert adapters.count(adapter) == adapters.count({k: v for k, v in adapter.items()
                                                    if k != 'head'}) + 17


def test_a_head_is_normal_with_std_one_over_root_width_plus_one():
  head = adapters.init_head(KEY, 4095)
  assert np.std(head['kernel']) == pytest.approx(1 / 64, rel=0.05)
  np.testing.assert_array_equal(head['bias'], 0.0)


def test_keys_of_projections_differ_and_a_head_changes_none():
  plain, headed = (adapters.init(KEY, BASE, 'lora', rank=2, head=h) for h in (False, True))
  block = plain['layers']['block']['attn']
  assert not np.array_equal(block['k']['kernel'].a, block['v']['kernel'].a)
  tiny.equal(plain, {k: v for k, v in headed.items() if k != 'head'})


def test_an_adapter_of_another_base_is_refused():
  other = tiny.make('gpt2')[1]
  adapter = adapters.init(KEY, other, 'full')
  with pytest.raises(ValueError, match='expected an adapter made for this base, found'):
    adapters.merge(BASE, adapter)


def test_merging_leaves_the_rest_and_the_arguments_alone():
  before = trees.digest(BASE)
  adapter = tiny.trained(adapters.init(KEY, BASE, 'lora', rank=2, targets=('q',), head=True))
  merged = adapters.merge(BASE, adapter)
  assert jax.tree.structure(merged) == jax.tree.structure(BASE)
  changed = [n for n, x in trees.flat(merged).items()
             if not np.array_equal(x, trees.flat(BASE)[n])]
  assert changed == ['layers/block/attn/q/kernel']
  assert trees.digest(BASE) == before
  tiny.equal(adapters.merge(BASE, {}), BASE)


def test_merging_is_in_float32():
  """A change too small for bfloat16 to add step by step is not lost on the way to the sum."""
  w = jnp.full((2, 2), 1.0, jnp.bfloat16)
  delta = LoRA(a=jnp.full((2, 1), 2.0**-5), b=jnp.full((1, 2), 0.25), scale=jnp.float32(1.0))
  merged = adapters.merge({'x': {'kernel': w}}, {'x': {'kernel': delta}})['x']['kernel']
  np.testing.assert_array_equal(merged, jnp.full((2, 2), 1.0 + 2.0**-7, jnp.bfloat16))


def test_full_tuning_has_its_own_buffers_and_cannot_be_unmerged():
  adapter = adapters.init(KEY, BASE, 'full')
  assert adapters.count(adapter) == trees.count(BASE)
  ours = adapter['embed']['embedding'].w
  assert isinstance(adapter['embed']['embedding'], full.Full)
  assert ours.unsafe_buffer_pointer() != BASE['embed']['embedding'].unsafe_buffer_pointer()
  with pytest.raises(ValueError, match='load the base again'):
    adapters.unmerge(BASE, adapter)


def test_stacks_need_one_structure_and_one_set_of_shapes():
  a, b = (adapters.init(KEY, BASE, 'lora', rank=r) for r in (2, 3))
  other = adapters.init(KEY, BASE, 'lora', rank=2, targets=('q',))
  for pair in ([a, b], [a, other]):
    with pytest.raises(ValueError, match='stack runs of the same method'):
      adapters.stack(pair)
  stacked = adapters.stack([a, tiny.trained(a)])
  tiny.equal(trees.unstack(stacked)[0], a)


def test_split_and_combine_are_inverse_and_the_scale_is_fixed():
  adapter = adapters.init(KEY, BASE, 'lora', rank=2, head=True)
  learnt, fixed = adapters.split(adapter)
  assert {name.rsplit('/', 1)[1] for name in trees.flat(fixed)} == {'scale'}
  assert {name.rsplit('/', 1)[1] for name in trees.flat(learnt)} == {'a', 'b', 'kernel', 'bias'}
  tiny.equal(trees.combine(learnt, fixed), adapter)


def test_a_base_by_its_shapes_is_enough():
  model = tiny.make('llama')[0]
  shapes = lm.abstract(model)
  make = lambda base: adapters.init(KEY, base, 'lora', rank=2, head=True)
  tiny.equal(make(shapes), make(BASE))
