"""Reads what finished and unfinished stages left in a workdir; nothing missing is an error.

Nor is a damaged file, where it is only shown: it is passed over, and named.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any

from etils import epath

from perl import documents, paths
from perl.config.fields import ConfigError, flatten, kind, nest
from perl.config.schema import FIELDS
from perl.jobs import STAGES

SUMMARY = documents.record(
  wall_seconds=documents.either(documents.number(0), documents.NULL),
  gold_optimum=documents.either(documents.number(), documents.NULL))
"""What a summary.json has to be."""


def recorded(file: epath.Path) -> dict[str, Any]:
  """The fields of the config.json that a run left, flat; those that are declared have their type.

  Raises:
    ConfigError: it is no such file; it is named.
    OSError: it cannot be read.
  """
  remedy = 'it was changed, or saved by another version: write the file again'
  flat = flatten(documents.read(file, documents.OBJECT, remedy=remedy, error=ConfigError))
  sections = {path.split('.')[0] for path in FIELDS if '.' in path}
  for name, value in flat.items():
    if name in sections:
      documents.check(value, documents.OBJECT, name, file, remedy=remedy, error=ConfigError)
    if name in FIELDS:
      documents.check(value, kind(FIELDS[name]), name, file, remedy=remedy, error=ConfigError)
  return flat


def read_metrics(folder: epath.Path, name: str = 'metrics.jsonl') -> list[dict]:
  """The rows of metrics.jsonl; lines that a running or killed job left half-written are skipped."""
  try:
    lines = documents.read_bytes(folder / name).split(b'\n')
  except OSError:
    return []
  rows = []
  for line in lines:
    try:
      rows.append(documents.parse(line, folder, _ROW))
    except documents.Malformed:
      continue
  return rows


_ROW = documents.record(step=documents.whole())


def summary(folder: epath.Path) -> dict:
  """The stage's summary.json; {} if it is not finished.

  Raises:
    ValueError: it is there, and none; it is named.
  """
  file = folder / 'summary.json'
  return paths.read_json(file, SUMMARY) if file.exists() else {}


def summaries(workdir: epath.Path) -> dict[str, dict]:
  """{stage: its summary} of the stages that are finished in workdir."""
  values = {stage: readable(summary, workdir / stage, {}) for stage in STAGES}
  return {stage: value for stage, value in values.items() if value}


def optimum(summaries: Mapping[str, Any]) -> float | None:
  """The gold optimum, if one of the stages knows it."""
  optima = [s['gold_optimum'] for s in summaries.values() if s.get('gold_optimum') is not None]
  return optima[-1] if optima else None


def config(workdir: epath.Path) -> dict:
  """The pipeline's config.json, or that of the last stage that has one; {} if there is none."""
  places = [workdir, *(workdir / stage for stage in reversed(STAGES))]
  files = [file for place in places if (file := place / 'config.json').exists()]
  return nest(next(filter(None, (readable(recorded, file, {}) for file in files)), {}))


def readable(read: Callable[[epath.Path], Any], place: epath.Path, default: Any) -> Any:
  """read(place); of a file that is damaged the default, and a warning that names it."""
  try:
    return read(place)
  except ValueError as error:
    logging.warning('passing over a file: %s', error)
    return default
