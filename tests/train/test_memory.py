"""Memory by the compiler."""

import jax
import jax.numpy as jnp
import numpy as np

from perl.train import memory


def test_of_a_program_by_hand():
  compiled = jax.jit(lambda x, y: x @ y).lower(jnp.ones((8, 4)), jnp.ones((4, 2))).compile()
  found = memory.analysis(compiled)
  assert found['arguments_bytes'] == 4 * (32 + 8) and found['outputs_bytes'] == 4 * 16
  assert found['total_bytes'] >= 4 * (32 + 8 + 16)


def test_donated_arguments_count_once():
  x = jnp.ones(1000)
  program = lambda **o: memory.analysis(jax.jit(lambda x: x + 1, **o).lower(x).compile())
  apart, shared = program(), program(donate_argnums=0)
  assert apart['total_bytes'] - shared['total_bytes'] == 4000


def test_of_a_step_needs_only_shapes_and_runs_nothing():
  shape = jax.ShapeDtypeStruct((1000,), jnp.float32)
  found = memory.of_step(jax.jit(lambda x: x * 2), shape)
  assert found['peak_memory_bytes'] >= 8000


def test_the_longest_batch_resized():
  batches = [{'x': np.zeros((2, n))} for n in (3, 7, 5)]
  assert memory.longest(batches)['x'].shape == (2, 7)
  assert memory.resized({'x': np.ones((2, 7)), 'w': np.ones(2)}, 5)['x'].shape == (5, 7)
  assert memory.resized({'w': np.ones(2)}, 1)['w'].shape == (1,)
