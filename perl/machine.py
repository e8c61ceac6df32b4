"""What programs are made for: a CPU, which likes other shapes than an accelerator; its memory."""

import contextlib
import contextvars
import os
from collections.abc import Iterator

import jax

_ACCELERATED = contextvars.ContextVar('accelerated', default=False)


def on_cpu() -> bool:
  """Whether programs that are made now will run on a CPU."""
  return jax.default_backend() == 'cpu' and not _ACCELERATED.get()


@contextlib.contextmanager
def accelerated() -> Iterator[None]:
  """Programs made meanwhile are an accelerator's, though a CPU compiles them: a forecast."""
  token = _ACCELERATED.set(True)
  try:
    yield
  finally:
    _ACCELERATED.reset(token)


def memory_bytes() -> int:
  """All memory of this machine: the same in every run on it, as what is free is not."""
  return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
