"""Eight virtual CPU devices for every test; set before jax is imported for the first time."""

import os

import pytest

DEVICES = '--xla_force_host_platform_device_count'

os.environ['JAX_PLATFORMS'] = 'cpu'
if DEVICES not in os.environ.get('XLA_FLAGS', ''):
  os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {DEVICES}=8'.strip()


@pytest.fixture(scope='module')
def compiled_quickly():
  """For modules that compare programs: what they compute is the same however well compiled."""
  import toyrun

  with toyrun.quick_compiler():
    yield
