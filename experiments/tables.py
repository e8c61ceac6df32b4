r"""The LoRA-against-full table, from finished runs or from a committed result file.

    python -m experiments.tables --workdir=runs/coffee --format=markdown \
        --json=experiments/results/coffee.json
    python -m experiments.tables --results=experiments/results/coffee.json --format=latex

Reads <workdir>/seed<k>/<peft>/{reward,rl,evaluate}/summary.json as experiments/sweep.py lays them
out; a row of the collected list is one seed and method.
"""

import argparse
import json
import pathlib
import re
import sys
from collections.abc import Sequence
from typing import Any

from experiments import comparison
from perl.config import runs
from perl.report import formats

STAGES = ('reward', 'rl', 'evaluate')
ABOUT = ('commit', 'versions', 'hardware')


def collect(workdir: str) -> list[dict[str, Any]]:
  """One row a seed and method: {'seed', 'peft', 'reward': its summary, 'rl': ..., 'evaluate': ...}.

  Stages that are not finished are left out of a row, and rows without any out of the list; rows are
  sorted by method (full first) and seed.
  """
  rows = []
  for folder in pathlib.Path(workdir).glob('seed*/*'):
    number = re.fullmatch(r'seed(\d+)', folder.parent.name)
    found = {stage: runs.summary(folder / stage) for stage in STAGES}
    found = {stage: summary for stage, summary in found.items() if summary}
    if number and found:
      rows.append({'seed': int(number[1]), 'peft': folder.name, **found})
  return sorted(rows, key=lambda row: (*comparison.method_order(row['peft']), row['seed']))


def render(rows: Sequence[dict[str, Any]], fmt: str = 'markdown') -> str:
  """The table, a column a method, with the paper's figures beside; then the claims that it tests.

  Args:
    rows: of `collect`.
    fmt: 'markdown', 'csv' or 'latex'; the claims are comments in the last two.

  Raises:
    ValueError: no rows, or another format.
  """
  if fmt not in formats.FORMATS:
    raise ValueError(f'expected a format among {", ".join(formats.FORMATS)}, found {fmt!r}')
  if not rows:
    raise ValueError('expected at least one finished reward, rl or evaluate stage in '
                     '<workdir>/seed<k>/<peft>/, found none; run experiments.sweep first')
  head, body = comparison.table(rows)
  return formats.FORMATS[fmt](head, body, [*comparison.claims(rows), *comparison.notes(rows)])


def results(
  rows: Sequence[dict[str, Any]], workdir: str, *, unit: str = 'seed'
) -> dict[str, Any]:
  """What is committed of runs: the rows, their common stages, and once what all of them share.

  `unit` is what rows differ in beside the method. A fact (commit, versions, hardware) on which
  stages differ stays in their summaries as well.
  """
  shared = common_facts([row[stage] for row in rows for stage in STAGES if stage in row])
  slim = lambda s: {k: v for k, v in s.items() if k not in ABOUT or v != shared[k]}
  common = {
    folder.relative_to(workdir).as_posix(): slim(summary)
    for pattern in ('base/*', f'{unit}*/pretrain', f'{unit}*/sft')
    for folder in sorted(pathlib.Path(workdir).glob(pattern)) if (summary := runs.summary(folder))
  }
  return {
    'workdir': pathlib.PurePath(workdir).as_posix(),
    f'{unit}s': sorted({row[unit] for row in rows}),
    'methods': list(dict.fromkeys(row['peft'] for row in rows)),
    **shared,
    'shared_stages': common,
    'rows': [{k: slim(v) if isinstance(v, dict) else v for k, v in row.items()} for row in rows],
  }


def common_facts(summaries: Sequence[dict[str, Any]]) -> dict[str, Any]:
  """{fact: its value in all summaries, or a list of the different ones}, for ABOUT."""
  shared = {}
  for name in ABOUT:
    values = [s.get(name) for s in summaries]
    different = [v for i, v in enumerate(values) if v is not None and v not in values[:i]]
    shared[name] = different[0] if len(different) == 1 else different
  return shared


def load(path: str) -> list[dict[str, Any]]:
  """The rows of a result file.

  Raises:
    ValueError: no such file, no JSON, or no rows in it.
  """
  try:
    found = json.loads(pathlib.Path(path).read_text(encoding='utf-8'))
    return found['rows']
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise ValueError(f'expected a result file with "rows" in {path}, found {error!r}; '
                     'write one with --workdir=... --json=...') from None


def main(argv: Sequence[str] | None = None) -> int:
  """The program; returns the exit code."""
  parser = argparse.ArgumentParser(prog='python -m experiments.tables', description='Prints the '
                                   'comparison of PEFT methods over seeds.')
  source = parser.add_mutually_exclusive_group(required=True)
  source.add_argument('--workdir', default='', help='of experiments.sweep')
  source.add_argument('--results', default='', help='a result file, in place of runs')
  parser.add_argument('--format', default='markdown', choices=tuple(formats.FORMATS))
  parser.add_argument('--json', default='', help='also write the collected rows to this file')
  options = parser.parse_args(argv)
  try:
    rows = load(options.results) if options.results else collect(options.workdir)
    print(render(rows, options.format))
  except ValueError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  if options.json:
    save(options.json, results(rows, options.workdir or options.results))
  return 0


def save(path: str, value: dict[str, Any]) -> None:
  """Writes JSON, folders included."""
  file = pathlib.Path(path)
  file.parent.mkdir(parents=True, exist_ok=True)
  file.write_text(json.dumps(value, indent=1, ensure_ascii=False) + '\n', encoding='utf-8')


if __name__ == '__main__':
  sys.exit(main())
