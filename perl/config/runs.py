"""Reads what finished and unfinished stages left in a workdir; nothing missing is an error."""

import json
from collections.abc import Mapping
from typing import Any

from etils import epath

from perl.jobs import STAGES


def read_json(path: epath.Path, default: Any) -> Any:
  """The JSON in a file; `default` if there is no file, or none that can be read."""
  try:
    return json.loads(path.read_text())
  except (OSError, ValueError):
    return default


def read_metrics(folder: epath.Path, name: str = 'metrics.jsonl') -> list[dict]:
  """The rows of metrics.jsonl; lines that a running or killed job left half-written are skipped."""
  try:
    lines = (folder / name).read_text().splitlines()
  except OSError:
    return []
  rows = []
  for line in lines:
    try:
      row = json.loads(line)
    except ValueError:
      continue
    if isinstance(row, dict) and 'step' in row:
      rows.append(row)
  return rows


def summary(folder: epath.Path) -> dict:
  """The stage's summary.json; {} if it is not finished."""
  value = read_json(folder / 'summary.json', {})
  return value if isinstance(value, dict) else {}


def summaries(workdir: epath.Path) -> dict[str, dict]:
  """{stage: its summary} of the stages that are finished in workdir."""
  values = {stage: summary(workdir / stage) for stage in STAGES}
  return {stage: value for stage, value in values.items() if value}


def optimum(summaries: Mapping[str, Any]) -> float | None:
  """The gold optimum, if one of the stages knows it."""
  optima = [s['gold_optimum'] for s in summaries.values() if s.get('gold_optimum') is not None]
  return optima[-1] if optima else None


def config(workdir: epath.Path) -> dict:
  """The pipeline's config.json, or that of the last stage that has one."""
  places = [workdir, *(workdir / stage for stage in reversed(STAGES))]
  for place in places:
    value = read_json(place / 'config.json', {})
    if value:
      return value
  return {}
