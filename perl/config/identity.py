"""When a finished stage still counts, and what a stage needs of others."""

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from perl import paths
from perl.config import runs
from perl.config.fields import ConfigError, flatten, plain
from perl.config.schema import FIELDS
from perl.jobs import ADAPTERS, PRODUCER, STAGES, _identity


def _flat(config: Mapping | ConfigDict) -> dict[str, Any]:
  """A field that a saved config lacks is younger than the run, and had its default's effect."""
  return {path: field.default for path, field in FIELDS.items()} | flatten(config)


def from_checkpoint(config: Mapping | ConfigDict, name: str) -> bool:
  """Whether an input is a published checkpoint's: no folder is named, and no stage makes it."""
  return _identity.from_checkpoint(_flat(config), name)


def inputs(config: Mapping | ConfigDict, stage: str) -> tuple[str, ...]:
  """The inputs that a stage reads: no reward model where rules alone reward."""
  return _identity.inputs(_flat(config), stage)


def identity(config: Mapping | ConfigDict, stage: str) -> dict[str, Any]:
  """The fields that determine a stage's result: perl/jobs/_identity.py."""
  return _identity.of(_flat(config), stage)


def is_finished(folder: epath.Path) -> bool:
  """Whether the stage in this folder is done: its summary is written last."""
  return (folder / 'summary.json').exists()


def is_begun(folder: epath.Path) -> bool:
  """Whether the stage in this folder is done, or goes on where it was when it is run."""
  checkpoints = folder / 'checkpoints'
  return is_finished(folder) or (checkpoints.is_dir() and any(checkpoints.iterdir()))


def check_same(
  config: ConfigDict, stage: str, folder: epath.Path, *, upstream: bool = False
) -> None:
  """Refuses to go on in a folder whose stage was run with another config.

  Args:
    config, stage, folder: what would be run, and where.
    upstream: the stage is not to run, but others stand on it.

  Raises:
    ConfigError: the stage is finished, or has checkpoints, and its recorded config determines
      another result; every field that differs is named.
  """
  if not is_begun(folder) or not (folder / 'config.json').exists():
    return
  recorded = identity(runs.recorded(folder / 'config.json'), stage)
  expected = identity(plain(config), stage)
  lines = [
    f'  {path}: expected {expected.get(path, "no such field")!r}, '
    f'found {recorded.get(path, "no such field")!r}'
    for path in sorted({*expected, *recorded}) if expected.get(path) != recorded.get(path)]
  if lines:
    remedy = f'use a new --workdir, or delete {folder} to run it again'
    if upstream:
      remedy += (f', or take its result as it is: '
                 f'--config.inputs.{STAGES[stage].makes}={folder}')
    raise ConfigError('\n'.join([
      f'stage {stage} in {folder} was run with another config:', *lines, remedy]))


def upstream(config: ConfigDict, stages: Sequence[str]) -> tuple[str, ...]:
  """The stages whose siblings' results these stages read, and those that these stand on, in order.

  An input that is named by path, or a checkpoint's, stands for the stages behind it.
  """
  behind: set[str] = set()
  todo = list(stages)
  while todo:
    for name in inputs(config, todo.pop()):
      if not config.inputs[name] and not from_checkpoint(config, name):
        todo += [PRODUCER[name]] if PRODUCER[name] not in behind else []
        behind.add(PRODUCER[name])
  return tuple(stage for stage in STAGES if stage in behind - {*stages})


def dated(config: ConfigDict, workdir: epath.Path) -> ConfigDict:
  """The config with a day in data.date: its own, or that of the run in workdir, or today."""
  day = config.data.date or runs.config(workdir).get('data', {}).get('date')
  dated = config.copy_and_resolve_references()
  with dated.unlocked():
    dated.data.date = day or datetime.date.today().isoformat()
  return dated


def check_inputs(config: ConfigDict, stages: Sequence[str], workdir: epath.Path) -> None:
  """Checks that every input of the stages is named, finished in workdir, or made on the way.

  Raises:
    ConfigError: an input is missing.
  """
  for stage in stages:
    for name in inputs(config, stage):
      place, producer = config.inputs[name], PRODUCER[name]
      if from_checkpoint(config, name) or (name, place) == ('anchor', 'base'):
        continue
      folder = paths.of(place) if place else workdir / producer
      comes = not place and producer in stages
      published = name in ADAPTERS and (folder / 'adapter_config.json').exists()
      if not comes and not published and not is_finished(folder):
        raise ConfigError(
          f'stage {stage} needs the {name}: expected a finished {producer} stage in {folder}, '
          f'found none; run --job={producer} first, add it to stages, or set --config.inputs.{name}'
        )
