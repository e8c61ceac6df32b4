"""Whether what a finished or killed stage has read is still what it would read now."""

from collections.abc import Sequence

from etils import epath
from ml_collections import ConfigDict

from perl.data import examples as kinds
from perl.data import sets
from perl.jobs import _data, _reading
from perl.jobs._run import Run


def check(config: ConfigDict, stages: Sequence[str], workdir: epath.Path) -> None:
  """Refuses stages of a workdir whose rows or inputs are others than when they ran.

  Rows are read where a file of theirs was written since, once for all stages.

  Args:
    config: the experiment.
    stages: those that are finished, or go on from checkpoints.
    workdir: stage s lies in workdir/s.

  Raises:
    MismatchError: what differs is named.
    ValueError, OSError: the rows cannot be read.
  """
  rows: dict[str, str] = {}
  stamp = sets.stamp(config.data.mirror, config.data.data_dir) if stages else ''
  for stage in stages:
    folder = str(workdir / stage)
    if not _reading.is_stamped(folder, stamp):
      _check_rows(config, folder, rows)
    check_inputs(config, stage, workdir)


def _check_rows(config: ConfigDict, folder: str, rows: dict[str, str]) -> None:
  """`rows` holds the digests of those that were read before, and gets more."""
  before = _reading.recorded(folder)
  for what in before:
    word, *names = what.split(' ')
    if word == _data.ROWS and what not in rows:
      name, kind, split = names
      rows[what] = kinds.digest(_data.load(config.data, split, kind, name))
  _reading.check(before, rows, folder)


def check_inputs(config: ConfigDict, stage: str, workdir: epath.Path) -> None:
  """Refuses a stage that was made of other results of stages, or other published files.

  Raises:
    MismatchError: what differs is named.
  """
  folder = str(workdir / stage)
  if not (before := _reading.recorded(folder)):
    return
  try:
    inputs = Run(config, folder, stage).inputs()
  except FileNotFoundError:
    return  # an input is gone, or not there yet: nothing says that it is another one
  _reading.check(before, inputs, folder)
