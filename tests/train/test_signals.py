"""Signals ask for a stop, and leave no trace behind."""

import os
import signal
import threading

import pytest

from perl.train.signals import stop_on_signal


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_stop_is_true_after_a_signal_and_handlers_return(number):
  before = signal.getsignal(number)
  with stop_on_signal() as stop:
    assert not stop()
    os.kill(os.getpid(), number)
    assert stop() and stop()
  assert signal.getsignal(number) is before


def test_a_second_interrupt_raises():
  before = signal.getsignal(signal.SIGINT)
  with pytest.raises(KeyboardInterrupt), stop_on_signal() as stop:
    os.kill(os.getpid(), signal.SIGINT)
    assert stop()
    os.kill(os.getpid(), signal.SIGINT)
  assert signal.getsignal(signal.SIGINT) is before


def test_sigterm_may_come_twice():
  with stop_on_signal() as stop:
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop()


def test_off_the_main_thread_it_never_stops():
  seen = []

  def work():
    with stop_on_signal() as stop:
      seen.append(stop())

  thread = threading.Thread(target=work)
  thread.start()
  thread.join()
  assert seen == [False]
