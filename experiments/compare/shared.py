"""Jobs that several processes on one machine share: each takes what no other has taken.

A folder is held by a lock of the operating system on a file in it, which a process that ends, or is
killed, lets go of; what it left unfinished is then another's to resume.
"""

import contextlib
import fcntl
import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

from perl.cli import launch

LOCK = '.taken'


class Job(NamedTuple):
  """Stages of a config that stand in one folder."""

  config: ConfigDict
  stages: Sequence[str]
  folder: pathlib.Path


def run(jobs: Sequence[Job]) -> None:
  """Returns when all are finished, whoever ran them: those free first, then those that were held.

  Raises:
    ConfigError: a folder holds a stage of another config.
    SystemExit: a signal stopped a stage.
  """
  left = [job for job in jobs if not _attempt(job, wait=False)]
  for job in left:
    _attempt(job, wait=True)


def _attempt(job: Job, *, wait: bool) -> bool:
  with hold(job.folder, wait=wait) as mine:
    if mine:
      launch.run_stages(job.config, job.stages, job.folder)
      _forget_programs()
  return mine


@contextlib.contextmanager
def hold(folder: pathlib.Path, *, wait: bool) -> Iterator[bool]:
  """Whether this process holds the folder; with `wait` it does in the end."""
  folder.mkdir(parents=True, exist_ok=True)
  with open(folder / LOCK, 'w', encoding='utf-8') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
      yield False
    else:
      yield True


def _forget_programs() -> None:
  """A row's compiled programs serve no other, and there are hundreds of rows."""
  import jax  # must follow platform.tune

  jax.clear_caches()
