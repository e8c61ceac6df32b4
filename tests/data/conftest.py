"""What tests of data share."""

import orders
import pytest


@pytest.fixture
def mirror(tmp_path):
  """A tiny mirror of Taskmaster's public home."""
  return orders.write_mirror(tmp_path / 'mirror')
