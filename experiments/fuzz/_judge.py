"""The parent of a kind's processes: what they say of each input, and what their end says."""

import collections
import json
import pathlib
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

FINE = ('accepted', 'refused')


class Bounds(NamedTuple):
  """What one input may take."""

  seconds: float = 10.0  # of processor time; sixty times as much by the clock
  mebibytes: int = 2048  # of address space beyond what the process begins with


def verdicts(kind: str, seed: int, first: int, count: int, bounds: Bounds) -> Iterator[dict]:
  """A verdict of each input, in order; an input that ends its process is one too."""
  number, end = first, first + count
  while number < end:
    for verdict in _of_process(kind, seed, number, end - number, bounds):
      yield verdict
      number = verdict['number'] + 1


def _of_process(kind: str, seed: int, first: int, count: int, bounds: Bounds) -> Iterator[dict]:
  command = [sys.executable, '-m', 'experiments.fuzz._child', kind, *map(
    str, (seed, first, count, *bounds))]
  with tempfile.TemporaryFile('w+') as noise:
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=noise, text=True)
    lines: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_pump, args=(process.stdout, lines), daemon=True).start()
    number, wait = first - 1, 3600.0  # to begin, it imports and compiles
    while number < first + count:
      try:
        line = lines.get(timeout=wait)
      except queue.Empty:
        line = ''
        process.kill()
      if not line:
        code = process.wait()
        noise.seek(0)
        yield _ended(number, code, noise.read()[-1000:], first)
        return
      if number >= first:
        yield json.loads(line)
      number, wait = number + 1, 60 * bounds.seconds
    process.wait()


def _pump(stream: Any, lines: queue.Queue) -> None:
  for line in stream:
    lines.put(line)
  lines.put('')


def _ended(number: int, code: int, noise: str, first: int) -> dict:
  """The verdict of an input that ended its process.

  Raises:
    RuntimeError: the process ended before it was ready: the fuzz is broken, not perl.
  """
  if number < first:
    raise RuntimeError(
      f'expected the process of the fuzz to begin, found exit code {code}:\n{noise}')
  name = signal.Signals(-code).name if code < 0 else f'exit code {code}'
  what = 'hang' if name in ('SIGPROF', 'SIGKILL') else 'died'
  return {'number': number, 'verdict': what, 'error': name, 'place': '', 'text': noise[-240:],
          'files': []}


def tally(kind: str, seed: int, count: int, bounds: Bounds, first: int = 0) -> dict[str, Any]:
  """What became of so many inputs of a kind; findings are gathered by place."""
  start, counts, errors = time.monotonic(), collections.Counter(), collections.Counter()
  findings: dict[tuple, dict] = {}
  for verdict in verdicts(kind, seed, first, count, bounds):
    counts[verdict['verdict']] += 1
    if verdict['verdict'] == 'refused':
      errors[verdict['error']] += 1
    elif verdict['verdict'] not in FINE:
      key = tuple(verdict[name] for name in ('verdict', 'error', 'place'))
      finding = findings.setdefault(key, {**verdict, 'count': 0})
      finding['count'] += 1
  return {
    'inputs': count, **{name: counts[name] for name in FINE},
    'refused_by': dict(errors.most_common()), 'findings': list(findings.values()),
    'seconds': round(time.monotonic() - start, 1)}


def spoilt(kind: str, seed: int, number: int, folder: pathlib.Path) -> list[str]:
  """Writes one input into a folder, to be looked at; the names of its files that are not valid."""
  import random

  from experiments.fuzz import _child as child
  from perl import choices

  module = choices.find(child.KINDS, kind)
  valid = module.files()
  changed = module.spoil(valid, random.Random(f'{seed}/{kind}/{number}'))
  child.write(folder, {**valid, **changed})
  return sorted(changed)
