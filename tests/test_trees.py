"""Trees: paths, patterns, counts, digests, partitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from perl import trees

TREE = {
  'layers': {'attn': {'q': jnp.ones((2, 3)), 'k': jnp.zeros((3,), jnp.bfloat16)}},
  'head': jnp.arange(4),
}
NAMES = ['layers/block/attn/q', 'layers/block/attn/v', 'layers/block/mlp/up', 'embed/lm_head']


def test_leaves_by_path_and_back():
  assert list(trees.flat(TREE)) == ['head', 'layers/attn/k', 'layers/attn/q']
  tiny.equal(trees.nest(trees.flat(TREE)), TREE)
  assert trees.flat([{'a': 1}, (2, 3)]) == {'0/a': 1, '1/0': 2, '1/1': 3}


def test_counts_and_bytes_need_only_shapes():
  assert trees.count(TREE) == 6 + 3 + 4
  assert trees.size_bytes(TREE) == 24 + 6 + 16
  shapes = jax.eval_shape(lambda: TREE)
  assert trees.count(shapes) == 13 and trees.size_bytes(shapes) == 46
  assert trees.count({}) == 0


@pytest.mark.parametrize('patterns, found', [
  (['attn/(q|v)'], [0, 1]), (['q', 'up'], [0, 2]), (['.*'], [0, 1, 2, 3]),
  (['layers/block/attn/q'], [0]), (['up', 'q'], [0, 2]), (['mlp/.*', 'lm_head'], [2, 3]),
])
def test_patterns_match_whole_names_or_from_a_slash_on(patterns, found):
  assert trees.match(NAMES, patterns) == [NAMES[i] for i in found]


@pytest.mark.parametrize('pattern', ['attn', 'ttn/q', 'attn/qq', 'head'])
def test_a_pattern_that_matches_nothing_names_what_could_be(pattern):
  with pytest.raises(ValueError) as error:
    trees.match(NAMES, ['attn/q', pattern])
  assert repr(pattern) in str(error.value)
  assert all(name in str(error.value) for name in NAMES)


def test_a_near_miss_is_suggested_and_a_broken_pattern_refused():
  with pytest.raises(ValueError, match="did you mean 'layers/block/attn/q'"):
    trees.match(NAMES, ['layers/block/atn/q'])
  with pytest.raises(ValueError, match='regular expression'):
    trees.match(NAMES, ['attn/(q'])


def test_the_digest_sees_bits_names_shapes_and_types():
  digest = trees.digest(TREE)
  assert digest == trees.digest(jax.tree.map(jnp.copy, TREE)) and len(digest) == 64
  changed = [
    {**TREE, 'head': jnp.arange(4).at[3].set(9)},
    {**TREE, 'head': jnp.arange(4).astype(jnp.float32)},
    {**TREE, 'head': jnp.arange(4).reshape(2, 2)},
    {**TREE, 'tail': jnp.zeros(0)},
  ]
  assert len({digest, *map(trees.digest, changed)}) == 5
  assert trees.digest({'x': jnp.float32(0.0)}) != trees.digest({'x': jnp.float32(-0.0)})


def test_partition_and_combine_are_inverse():
  chosen, others = trees.partition(TREE, lambda name: 'attn' in name)
  assert list(trees.flat(chosen)) == ['layers/attn/k', 'layers/attn/q']
  assert list(trees.flat(others)) == ['head']
  tiny.equal(trees.combine(chosen, others), TREE)
  tiny.equal(trees.combine(others, chosen), TREE)


def test_stack_and_unstack_are_inverse():
  parts = [jax.tree.map(lambda x, i=i: x + i, TREE) for i in range(3)]
  stacked = trees.stack(parts)
  assert stacked['head'].shape == (3, 4)
  for part, back in zip(parts, trees.unstack(stacked)):
    tiny.equal(part, back)
  np.testing.assert_array_equal(stacked['head'][2], jnp.arange(4) + 2)
