"""One process of the fuzz: it spoils inputs and hands them to perl, within time and memory.

    python -m experiments.fuzz._child KIND SEED FIRST COUNT SECONDS MEBIBYTES

prints a JSON line when it is ready, and one an input. What takes more processor time than it may
ends the process, and so may a native library; more memory is a MemoryError. The parent (_judge.py)
sees where it stopped.
"""

import json
import logging
import os
import pathlib
import random
import resource
import signal
import sys
import tempfile
import traceback
import warnings

from perl import choices

KINDS = 'experiments.fuzz.kinds'
DOCUMENTED = (ValueError, OSError)
"""What perl raises over what it is given; see docs/edges.md."""


def serve(name: str, seed: int, first: int, count: int, seconds: float, mebibytes: int) -> None:
  """Judges the inputs of a kind, one after another."""
  kind = choices.find(KINDS, name)
  getattr(kind, 'prepare', lambda: None)()
  valid = kind.files()
  with tempfile.TemporaryDirectory() as scratch:
    folder = pathlib.Path(scratch)
    write(folder, valid)
    first_of_all = judge(kind, folder, random.Random(0), list(valid))  # imports and compiles
    if first_of_all['verdict'] not in ('accepted', 'refused'):
      sys.exit(f'expected a valid input of {name} to be read, found {first_of_all}')
    print(json.dumps({'ready': name}), file=OUT, flush=True)
    limit(mebibytes)
    for number in range(first, first + count):
      rng = random.Random(f'{seed}/{name}/{number}')
      spoilt = kind.spoil(valid, rng)
      write(folder, spoilt)
      signal.setitimer(signal.ITIMER_PROF, seconds)
      verdict = judge(kind, folder, rng, list(spoilt))
      signal.setitimer(signal.ITIMER_PROF, 0)
      print(json.dumps({'number': number, **verdict}), file=OUT, flush=True)
      clear(folder, spoilt, valid)


def limit(mebibytes: int) -> None:
  """Address space beyond what is in use."""
  used = int(pathlib.Path('/proc/self/statm').read_text().split()[0]) * os.sysconf('SC_PAGE_SIZE')
  most = used + mebibytes * 2**20
  resource.setrlimit(resource.RLIMIT_AS, (most, most))


def write(folder: pathlib.Path, files: dict[str, bytes | None]) -> None:
  """The files as they shall be; None is absent."""
  for name, content in files.items():
    if content is None:
      (folder / name).unlink(missing_ok=True)
    else:
      (folder / name).parent.mkdir(parents=True, exist_ok=True)
      (folder / name).write_bytes(content)


def clear(
  folder: pathlib.Path, spoilt: dict[str, bytes | None], valid: dict[str, bytes]
) -> None:
  """What was valid as it was; nothing else is left of what was spoilt."""
  write(folder, {name: valid.get(name) for name in spoilt})


def judge(kind, folder: pathlib.Path, rng: random.Random, spoilt: list[str]) -> dict:
  """{'verdict': 'accepted' | 'refused' | 'foreign' | 'wrong', ...} of the folder."""
  try:
    value = kind.read(folder, rng)
    if hasattr(kind, 'check'):
      kind.check(folder, value)
    return {'verdict': 'accepted'}
  except AssertionError as error:
    return about('wrong', error, spoilt)
  except BaseException as error:  # a Rust panic is no Exception
    if isinstance(error, KeyboardInterrupt):
      raise
    plain = isinstance(error, DOCUMENTED) and all(w in str(error) for w in ('expected', 'found'))
    named = plain and (not getattr(kind, 'NAMED', True) or any(
      pathlib.PurePath(name).name in str(error) or str(folder) in str(error) for name in spoilt))
    return about('refused' if named else 'foreign', error, spoilt)


def about(verdict: str, error: BaseException, spoilt: list[str]) -> dict:
  """What is said of an error: its class, its text, where in perl it came from."""
  frames = traceback.extract_tb(error.__traceback__)
  inner = [f for f in frames if '/perl/' in f.filename] or frames
  place = f'{inner[-1].filename.rpartition("/perl/")[2]}:{inner[-1].lineno} {inner[-1].name}'
  return {'verdict': verdict, 'error': type(error).__name__, 'place': place,
          'text': str(error).encode('utf-8', 'backslashreplace').decode()[:240], 'files': spoilt}


if __name__ == '__main__':
  OUT = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)  # what libraries print is no verdict
  logging.disable(logging.WARNING)
  warnings.simplefilter('ignore')
  _, *words = sys.argv
  serve(words[0], *map(int, words[1:4]), float(words[4]), int(words[5]))
