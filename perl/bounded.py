"""Functions that run what a stranger wrote, in a process with bounds on its time and its memory.

A chat template may loop for ever or ask for 3 GB in one expression, which no count of steps sees:
'{{ 9**999999999 }}' is one step. The operating system ends it. The process starts with the first
call, serves all that follow, and starts anew after one that went over its bounds; it ends with its
parent.

What it is asked comes pickled, what it answers is JSON: nothing that it says is executed here.
"""

import atexit
import contextlib
import functools
import importlib
import json
import os
import pickle
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any, NamedTuple


class Bounds(NamedTuple):
  """What one call may take."""

  seconds: float = 5.0  # of processor time
  mebibytes: int = 512  # of memory, the interpreter's own included
  characters: int = 2**24  # of its answer


class Exceeded(Exception):
  """A call went over its bounds, or ended its process."""


class Failed(Exception):
  """The function raised; the text is its class and its text."""


class Function:
  """A function of a module, called in a process of its own.

  Args:
    name: 'package.module:function'; the module is imported there too, and should be light. The
      function takes what can be pickled, and returns what JSON can hold.
    bounds: of a call; None is what `Bounds` says.
  """

  def __init__(self, name: str, bounds: Bounds | None = None):
    self.name, self.bounds = name, bounds or Bounds()
    self._lock, self._process, self._owner = threading.Lock(), None, 0

  def __call__(self, *arguments: Any) -> Any:
    """What the function returns.

    Raises:
      Failed: it raised.
      Exceeded: it took more than its bounds.
    """
    with self._lock:
      process = self._running()
      try:
        _send(process.stdin, pickle.dumps(arguments))
        ok, value = json.loads(_receive(process.stdout))
      except (OSError, EOFError, ValueError, RecursionError):
        code = self.close()
        raise Exceeded(self._why(code)) from None
    if not ok:
      raise Failed(value)
    return value

  def _running(self) -> subprocess.Popen:
    """The process; a fork of ours starts its own."""
    if self._process is None or self._owner != os.getpid():
      start = (f'import sys; sys.path[:] = {sys.path!r}; from perl import bounded; '
               f'bounded.serve({self.name!r}, {tuple(self.bounds)!r})')
      self._process = subprocess.Popen(
        [sys.executable, '-c', start], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL)
      self._owner = os.getpid()
      atexit.register(self.close)
    return self._process

  def close(self) -> int:
    """Ends the process, if it runs; returns its exit code."""
    process, self._process = self._process, None
    if process is None or self._owner != os.getpid():
      return 0
    for stream in (process.stdin, process.stdout):
      with contextlib.suppress(OSError):  # what was not sent has nobody to read it
        stream.close()
    try:
      return process.wait(timeout=5)
    except subprocess.TimeoutExpired:
      process.kill()
      return process.wait()

  def _why(self, code: int) -> str:
    seconds, mebibytes, _ = self.bounds
    if code == -getattr(signal, 'SIGPROF', 0):
      return f'more than {seconds:g} s of processor time'
    return f'the end of its process (exit code {code}), which may take {mebibytes} MiB of memory'


def serve(name: str, bounds: tuple) -> None:
  """Answers calls until the parent is gone; the body of the process."""
  module, _, function = name.partition(':')
  function = getattr(importlib.import_module(module), function)
  bounds = Bounds(*bounds)
  requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), 'wb')
  os.dup2(2, 1)
  _limit_memory(bounds.mebibytes)
  while (request := _receive(requests, default=None)) is not None:
    _set_timer(bounds.seconds)
    answer = _answer(functools.partial(function, *pickle.loads(request)), bounds.characters)
    _set_timer(0.0)
    _send(answers, answer)


def _answer(call: Callable[[], Any], characters: int) -> bytes:
  try:
    content = json.dumps([True, call()])
    if len(content) > characters:
      raise ValueError(f'an answer of more than {characters:,} characters')
  except Exception as error:  # whatever a stranger's text may raise
    content = json.dumps([False, f'{type(error).__name__}: {error}'[:2000]])
  return content.encode()


def _limit_memory(mebibytes: int) -> None:
  try:
    import resource  # Unix only

    resource.setrlimit(resource.RLIMIT_AS, (mebibytes * 2**20,) * 2)
  except (ImportError, ValueError, OSError):  # this system has no such limit
    pass


def _set_timer(seconds: float) -> None:
  """After so much processor time the system ends the process; 0 is never."""
  if hasattr(signal, 'setitimer'):  # Unix only
    signal.setitimer(signal.ITIMER_PROF, seconds)


def _send(stream: Any, content: bytes) -> None:
  stream.write(struct.pack('<Q', len(content)) + content)
  stream.flush()


def _receive(stream: Any, **default: Any) -> Any:
  """A message; raises EOFError at the end of the stream, where no default is given."""
  head = stream.read(8)
  size = struct.unpack('<Q', head)[0] if len(head) == 8 else 0
  content = stream.read(size)
  if len(head) < 8 or len(content) < size:
    if default:
      return default['default']
    raise EOFError
  return content
