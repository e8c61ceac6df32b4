"""When a finished stage still counts, and what a stage needs of others."""

import datetime
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from perl.config import runs
from perl.config.fields import ConfigError, flatten, plain
from perl.config.schema import FIELDS
from perl.jobs import ADAPTERS, PRODUCER, PUBLISHED, STAGES


def from_checkpoint(config: Mapping | ConfigDict, name: str) -> bool:
  """Whether an input is a published checkpoint's: no folder is named, and no stage makes it."""
  flat = {path: field.default for path, field in FIELDS.items()} | flatten(config)
  elsewhere = flat[f'inputs.{name}'] or PRODUCER[name] in flat['stages']
  return name in PUBLISHED and bool(flat['model.checkpoint']) and not elsewhere


def inputs(config: Mapping | ConfigDict, stage: str) -> tuple[str, ...]:
  """The inputs that a stage reads: no reward model where rules alone reward."""
  flat = {path: field.default for path, field in FIELDS.items()} | flatten(config)
  ruled = STAGES[stage].ruled and not flat['rl.reward_weight']
  return tuple(name for name in STAGES[stage].reads if not (ruled and name == 'reward'))


def identity(config: Mapping | ConfigDict, stage: str) -> dict[str, Any]:
  """The fields that determine a stage's result: its own, and those of the stages it builds on.

  An input that is named by path stands for the stages behind it, whose fields then do not count.
  A field that a saved config lacks is younger than the run, and had its default's effect.
  """
  flat = {path: field.default for path, field in FIELDS.items()} | flatten(config)
  own = {
    path: value for path, value in flat.items()
    if path.split('.')[0] in STAGES[stage].sections
    and (path not in FIELDS or FIELDS[path].identity)}
  for name in inputs(config, stage):
    own[f'inputs.{name}'] = os.path.normpath(flat[f'inputs.{name}'] or '.')
    if from_checkpoint(config, name):
      own['model.checkpoint'] = os.path.normpath(flat['model.checkpoint'])
      own['tokenizer.path'] = flat['tokenizer.path']
    elif not flat[f'inputs.{name}']:
      own.update(identity(config, PRODUCER[name]))
  return own


def is_finished(folder: pathlib.Path) -> bool:
  """Whether the stage in this folder is done: its summary is written last."""
  return (folder / 'summary.json').is_file()


def check_same(config: ConfigDict, stage: str, folder: pathlib.Path) -> None:
  """Refuses to go on in a folder whose stage was run with another config.

  Raises:
    ConfigError: the stage is finished, or has checkpoints, and its recorded config determines
      another result; every field that differs is named.
  """
  begun = is_finished(folder) or any((folder / 'checkpoints').glob('*'))
  if not begun or not (folder / 'config.json').is_file():
    return
  recorded = identity(json.loads((folder / 'config.json').read_text()), stage)
  expected = identity(plain(config), stage)
  lines = [
    f'  {path}: expected {expected.get(path, "no such field")!r}, '
    f'found {recorded.get(path, "no such field")!r}'
    for path in sorted({*expected, *recorded}) if expected.get(path) != recorded.get(path)]
  if lines:
    raise ConfigError('\n'.join([
      f'stage {stage} in {folder} was run with another config:', *lines,
      f'use a new --workdir, or delete {folder} to run it again',
    ]))


def dated(config: ConfigDict, workdir: pathlib.Path) -> ConfigDict:
  """The config with a day in data.date: its own, or that of the run in workdir, or today."""
  day = config.data.date or runs.config(workdir).get('data', {}).get('date')
  dated = config.copy_and_resolve_references()
  with dated.unlocked():
    dated.data.date = day or datetime.date.today().isoformat()
  return dated


def check_inputs(config: ConfigDict, stages: Sequence[str], workdir: pathlib.Path) -> None:
  """Checks that every input of the stages is named, finished in workdir, or made on the way.

  Raises:
    ConfigError: an input is missing.
  """
  for stage in stages:
    for name in inputs(config, stage):
      place, producer = config.inputs[name], PRODUCER[name]
      if from_checkpoint(config, name) or (name, place) == ('anchor', 'base'):
        continue
      folder = pathlib.Path(place) if place else workdir / producer
      comes = not place and producer in stages
      published = name in ADAPTERS and (folder / 'adapter_config.json').is_file()
      if not comes and not published and not is_finished(folder):
        raise ConfigError(
          f'stage {stage} needs the {name}: expected a finished {producer} stage in {folder}, '
          f'found none; run --job={producer} first, add it to stages, or set --config.inputs.{name}'
        )
