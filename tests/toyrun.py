"""A finished pipeline of a nano model on the toy task, made once a session for all who read it.

Everything is as small as it can be: what such a run costs is compilation.
"""

import collections
import contextlib
import fcntl
import functools
import itertools
import json
import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator

import jax
import pytest
import quick
from ml_collections import ConfigDict

from perl.cli import launch
from perl.config import experiments
from perl.data.sets import toy
from perl.jobs import TRAINED
from perl.train import loop, sharding

ROOT = pathlib.Path(__file__).parents[1]
ROWS = {'train': 64, 'dev': 16, 'test': 16}
COMPILE_EVENT = '/jax/core/compile/backend_compile_duration'
SMALL = (
  '--config.model.size=nano', '--config.model.scan_unroll=1', '--config.tokenizer.vocab_size=300',
  '--config.rl.max_new_tokens=8', '--config.evaluate.max_examples=16',
  '--config.evaluate.batch_size=16', '--config.evaluate.bootstrap=20',
  *(f'--config.{stage}.{field}' for stage in ('pretrain', 'sft', 'reward', 'rl') for field in (
    'steps=2', 'batch_size=8', 'evaluate_every_steps=2', 'checkpoint_every_steps=2',
    'log_every_steps=1', 'optim.warmup_steps=1')))
"""The demo made tiny on a command line, for runs in processes of their own."""
WALL = ('time', 'train/step_seconds')
"""What two runs of the same thing need not share."""


def config(**overrides) -> ConfigDict:
  """The demo, tiny; `overrides` are paths with '__' for '.': sft__steps=3."""
  made = experiments.load('demo').get_config()
  made.name = 'toyrun'
  made.model.update(size='nano', scan_unroll=1)
  made.tokenizer.vocab_size = 300
  made.data.update(max_prompt_tokens=24, max_response_tokens=8)
  made.peft.update(rank=2, targets=('attn/(q|k|v|o)',))
  made.rl.max_new_tokens = 8
  for stage in TRAINED:
    made[stage].update(steps=6, batch_size=8, evaluate_every_steps=2, checkpoint_every_steps=2,
                       log_every_steps=1)
    made[stage].optim.warmup_steps = 1
  made.evaluate.update(batch_size=16, max_examples=16, samples=3, bootstrap=20)
  made.update_from_flattened_dict({k.replace('__', '.'): v for k, v in overrides.items()})
  return made


@contextlib.contextmanager
def small_world(devices: int = 1) -> Iterator[pytest.MonkeyPatch]:
  """Little data, and `devices` of the eight."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(toy, 'SIZES', dict.fromkeys(toy.SIZES, ROWS))
    mesh = functools.partial(sharding.mesh, devices=jax.devices()[:devices])
    patch.setattr(sharding, 'mesh', mesh)
    yield patch


def in_step(patch: pytest.MonkeyPatch, number: int, action: Callable) -> None:
  """Before the step `number` (from 1, of those that this process does): state = action(state)."""
  fit = loop.fit

  def patched(step_fn, state, stream, **options):
    calls = itertools.count(1)

    def step(state, batch):
      return step_fn(action(state) if next(calls) == number else state, batch)

    return fit(step, state, stream, **options)

  patch.setattr(loop, 'fit', patched)


@contextlib.contextmanager
def counted_compilations(patch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
  """{stage: programs compiled after its first step returned, until its loop ended}."""
  counts, active = collections.Counter(), []
  listen = lambda event, seconds, **_: counts.update(active if event == COMPILE_EVENT else ())
  fit = loop.fit

  def patched(step_fn, state, stream, *, name, **options):
    def step(state, batch):
      result = step_fn(state, batch)
      active[:] = [name]
      return result

    try:
      return fit(step, state, stream, name=name, **options)
    finally:
      active.clear()

  patch.setattr(loop, 'fit', patched)
  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    yield counts
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)


def read(path: str | os.PathLike) -> dict:
  """The JSON in a file."""
  return json.loads(pathlib.Path(path).read_text())


def rows(folder: str | os.PathLike) -> list[dict]:
  """metrics.jsonl of a stage, without what the clock says."""
  lines = (pathlib.Path(folder) / 'metrics.jsonl').read_text().splitlines()
  return [{k: v for k, v in json.loads(line).items() if k not in WALL} for line in lines]


def once(tmp_path_factory, worker_id: str, name: str, make: Callable) -> pathlib.Path:
  """A folder that make(folder) has filled, once a session: workers share it."""
  shared = tmp_path_factory.getbasetemp()
  if worker_id != 'master':
    shared = shared.parent  # the base of all workers
  with open(shared / f'{name}.lock', 'w') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    if not (shared / f'{name}.made').exists():
      (shared / name).mkdir(exist_ok=True)
      make(shared / name)
      (shared / f'{name}.made').touch()
  return shared / name


@pytest.fixture(scope='session')
def toyrun(tmp_path_factory, worker_id) -> pathlib.Path:
  """The workdir of the finished pipeline; to be read, never written."""
  def make(workdir):
    with small_world() as patch, counted_compilations(patch) as counts:
      launch.run_stages(config(), config().stages, workdir)
    (workdir / 'compilations.json').write_text(json.dumps(counts))

  return once(tmp_path_factory, worker_id, 'toyrun', make)


def process(folder: pathlib.Path, *words: str, **environ: str) -> subprocess.CompletedProcess:
  """Runs Python in a folder with none of our variables: nothing of XLA, jax, pytest or perl."""
  bare = {'PATH': os.environ['PATH'], 'HOME': str(folder), 'LANG': 'C.UTF-8',
          'PYTHONPATH': str(ROOT)}  # the package under test, whichever one is installed
  done = subprocess.run([sys.executable, *words], cwd=folder, env=bare | environ, text=True,
                        capture_output=True)
  assert done.returncode == 0, done.stderr[-5000:]
  return done


@pytest.fixture(scope='session')
def clone(tmp_path_factory, worker_id) -> pathlib.Path:
  """A folder as `make demo` leaves it after a few steps, in runs/demo; what it said is in words/.

  Its model is the demo's own: where matrices are as large as these, the tuned process of a program
  multiplies them by other kernels than a notebook does, to other last bits.
  """
  def make(folder):
    shutil.copytree(ROOT / 'notebooks', folder / 'notebooks')
    done = process(folder, '-m', 'perl.cli', 'launch', '--config=demo', '--workdir=runs/demo',
                   *SMALL, '--config.model.size=micro', **quick.ENVIRON)
    (folder / 'words').mkdir()
    for name in ('stdout', 'stderr'):
      (folder / 'words' / name).write_text(getattr(done, name))

  return once(tmp_path_factory, worker_id, 'clone', make)
