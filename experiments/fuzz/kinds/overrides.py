"""Flags: which config, its arguments, and overrides of every field."""

import functools
import pathlib
import random
from typing import Any

from perl.config import command_line
from perl.config.schema import FIELDS
from perl.config.validate import validate

SHARE = 5
NAMED = False

_WORDS = (
  '', '0', '1', '-1', '1.5', 'nan', 'inf', '1e400', 'true', 'None', '()', '(1,2)', "('a',)",
  "('a:b',)", '[1]', '{}', "{'a': 1}", '(', "'", '"', '((((((((((1))))))))))', '1' * 5000,
  'x' * 100_000, '-',
  '--', '\0', '\ud800', 'lora', 'toy', 'rloo', "__import__('os')", '10**10**10', '2**31', '(None,)',
  "(('a',),)", '(1.5,)', '(True,)', "('exact_match', 2)", '(' * 200 + ')' * 200, 'a:b', '/', '~',
  '9' * 30, "('attn/(q',)", "('.*.*.*.*!',)", '0x10', '1_000', '१', '(-1,)', 'b"a"', '1j', '...',
)
_CONFIGS = (
  'demo', 'demo', 'demo', 'demo', 'base', 'README.md', 'docs', '.', '', '/', 'demo:', 'demo:seed=x',
  'demo:seed', 'demo:size=tiny,size=tiny', 'demo.py', 'nowhere.json', 'demo:\0', 'x' * 5000,
  ':', 'demo:=', 'coffee:size=tiny,peft=lora', 'coffee:size=9', '/dev/null', 'perl', '\ud800',
)


@functools.cache
def files() -> dict[str, bytes]:
  """The flags, a line each."""
  return {'flags': b'demo\n--config.peft.rank=4'}


def spoil(valid: dict[str, bytes], rng: random.Random) -> dict[str, bytes | None]:
  """A config and up to three overrides."""
  del valid
  flags = []
  for _ in range(rng.choice([0, 1, 1, 1, 2, 3])):
    path = rng.choice(list(FIELDS))
    if rng.random() < 0.1:
      path = rng.choice([path[:-1], path + '.x', '', '..', path.upper()])
    word = rng.choice(_WORDS)
    flags.append(rng.choice([f'--config.{path}={word}'] * 8 + [
      f'--config.{path}', f'--noconfig.{path}', f'--{path}={word}', f'-config.{path}={word}']))
  lines = [rng.choice(_CONFIGS), *flags]
  return {'flags': '\n'.join(line.replace('\n', ' ') for line in lines).encode(
    'utf-8', 'surrogatepass')}


def read(folder: pathlib.Path, rng: random.Random) -> Any:
  """The config, and whether it is valid."""
  del rng
  config, *overrides = (folder / 'flags').read_bytes().decode('utf-8', 'surrogatepass').split('\n')
  return validate(command_line.read(config, overrides))
