"""Eight virtual CPU devices for every test; set before jax is imported for the first time."""

import functools
import gc
import os
import sys

import pytest
import quick

DEVICES = '--xla_force_host_platform_device_count=8'
HASTE = 'jax_disable_most_optimizations'

flags = os.environ.get('XLA_FLAGS', '')
os.environ.update(quick.ENVIRON, XLA_FLAGS=f'{DEVICES} {quick.ENVIRON["XLA_FLAGS"]} {flags}')
os.environ['OMP_NUM_THREADS'] = '1'  # PyTorch's: a worker of pytest has a core

# What jax has traced stays until the end: it is not worth looking through it every 700 objects.
gc.set_threshold(50_000, 20, 100)


def pytest_configure(config):
  config.addinivalue_line(
    'markers', 'index: a real model from the Python package index; skipped where none is in reach')


@pytest.fixture
def optimized(monkeypatch):
  """Programs as users have them, of what is given to `jax.jit` meanwhile."""
  import jax

  if quick.EMITTERS[0] in quick.flags():
    default = {quick.EMITTERS[0].strip('-').split('=')[0]: True}
    monkeypatch.setattr(jax, 'jit', functools.partial(jax.jit, compiler_options=default))
  jax.config.update(HASTE, False)
  yield
  jax.config.update(HASTE, True)


@pytest.fixture(autouse=True, scope='module')
def haste():
  """Whoever leaves another compiler behind makes all tests after it slow: 6 s become 30."""
  yield
  if 'jax' in sys.modules:
    assert sys.modules['jax'].config.values[HASTE]
