"""What finished runs left in the folders of a study, as rows for JSON."""

import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from perl.config import runs

ABOUT = ('commit', 'versions', 'hardware')
Summary = Mapping[str, Any]


def folders(
  workdir: pathlib.Path, name: str = '*', unit: str = 'seed'
) -> Iterator[tuple[int, pathlib.Path]]:
  """(k, <workdir>/<unit><k>/<name>) of those that are there, by k."""
  paths = [(path.parent.name.removeprefix(unit), path) for path in workdir.glob(f'{unit}*/{name}')]
  yield from sorted((int(number), path) for number, path in paths if number.isdecimal())


def summaries(folder: pathlib.Path, stages: Sequence[str]) -> dict[str, dict[str, Any]]:
  """{stage: its summary} of those that are finished in the folder."""
  return {stage: summary for stage in stages if (summary := runs.summary(folder / stage))}


def facts(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """{fact: its value in all summaries, or a list of the different ones}, for ABOUT."""
  stages = [s for row in rows for s in row.values() if isinstance(s, Mapping)]
  shared = {}
  for name in ABOUT:
    values = [s.get(name) for s in stages]
    different = [v for i, v in enumerate(values) if v is not None and v not in values[:i]]
    shared[name] = different[0] if len(different) == 1 else different
  return shared


def slim(row: Mapping[str, Any], shared: Mapping[str, Any]) -> dict[str, Any]:
  """The row without the facts that all summaries share; those that differ stay."""
  def short(summary: Summary) -> Summary:
    return {k: v for k, v in summary.items() if k not in ABOUT or v != shared[k]}

  return {k: short(v) if isinstance(v, Mapping) else v for k, v in row.items()}


def results(
  workdir: pathlib.Path, rows: Sequence[Mapping[str, Any]], unit: str = 'seed'
) -> dict[str, Any]:
  """What is committed of methods x `unit`: the rows, what all share, and their common stages."""
  shared = facts(rows)
  stages = {
    folder.relative_to(workdir).as_posix(): summary
    for pattern in ('base/*', f'{unit}*/pretrain', f'{unit}*/sft')
    for folder in sorted(workdir.glob(pattern)) if (summary := runs.summary(folder))}
  return {
    f'{unit}s': sorted({row[unit] for row in rows}),
    'methods': list(dict.fromkeys(row['peft'] for row in rows)),
    **shared, 'shared_stages': slim(stages, shared), 'rows': [slim(row, shared) for row in rows]}
