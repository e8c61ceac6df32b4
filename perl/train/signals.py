"""Leaving cleanly: a signal asks the loop to stop, the loop saves and returns."""

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils


@contextlib.contextmanager
def stop_on_signal() -> Iterator[Callable[[], bool]]:
  """Yields stop() -> bool, True once SIGTERM or SIGINT has come; handlers are put back at the end.

  A second SIGINT raises KeyboardInterrupt, for a loop that does not reach its next stop(). With
  more than one host all must call stop() at the same steps: a signal to one stops every one.
  Outside the main thread Python allows no handlers, and stop() stays False.
  """
  stopping = threading.Event()

  def on_signal(number: int, frame) -> None:
    if number == signal.SIGINT and stopping.is_set():
      raise KeyboardInterrupt
    stopping.set()
    again = '; Ctrl-C again aborts' if number == signal.SIGINT else ''
    print(f'\n{signal.Signals(number).name}: stops after this step{again}', file=sys.stderr)

  def stop() -> bool:
    if jax.process_count() == 1:
      return stopping.is_set()
    return bool(np.any(multihost_utils.process_allgather(np.asarray(stopping.is_set()))))

  if threading.current_thread() is not threading.main_thread():
    yield stop
    return
  previous = {n: signal.signal(n, on_signal) for n in (signal.SIGTERM, signal.SIGINT)}
  try:
    yield stop
  finally:
    for number, handler in previous.items():
      # None: installed outside Python, which cannot put it back.
      signal.signal(number, signal.SIG_DFL if handler is None else handler)
