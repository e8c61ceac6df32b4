"""Runs a job, or the pipeline of a config.

    perl-rlhf launch --config=demo --workdir=runs/demo
    perl-rlhf launch --config=coffee:size=tiny --workdir=runs/coffee --job=reward \
        --config.peft.rank=16

Stage s works in <workdir>/s. A finished stage whose config is unchanged is skipped; one that was
killed is resumed. <workdir> ends with config.json, summary.json and report.html.
"""

import importlib
import sys
import time
from collections.abc import Sequence

from etils import epath
from ml_collections import ConfigDict

from perl import paths
from perl.config import brought, command_line, identity, runs
from perl.config.fields import plain
from perl.config.validate import validate
from perl.jobs import STAGES, _preflight, _unchanged
from perl.report import page
from perl.train import metrics


def run_stage(config: ConfigDict, stage: str, workdir: epath.Path) -> dict:
  """Runs one stage in workdir/stage, or takes its result from there.

  Returns:
    the stage's summary; 'skipped' in it tells whether it had been finished before.

  Raises:
    ConfigError: the folder holds this stage with another config.
    MismatchError: it was made of other results of stages than there are now.
    SystemExit: a signal stopped the job, which has saved its state.
  """
  folder = workdir / stage
  identity.check_same(config, stage, folder)
  if identity.is_finished(folder):
    _unchanged.check_inputs(config, stage, workdir)
    print(f'[{stage}] skipped: finished before, in {folder}', flush=True)
    return {**runs.summary(folder), 'skipped': True}
  print(f'[{stage}] runs in {folder}', flush=True)
  metrics.write_json(folder / 'config.json', plain(config))
  importlib.import_module(f'perl.jobs.{stage}').run(config, str(folder))
  return {**runs.summary(folder), 'skipped': False}


def run_stages(config: ConfigDict, names: Sequence[str], workdir: epath.Path) -> dict:
  """Runs stages in order and writes the summary and the report of workdir.

  Args:
    config: valid (`validate`).
    names: stages, in order.
    workdir: stage s works in workdir/s.

  Returns:
    {stage: its summary, ..., 'gold_optimum' where a stage knows it, 'wall_seconds'}, over all
    stages that are finished in workdir; wall_seconds counts the skipped ones at what they took.
  """
  start, workdir = time.monotonic(), paths.of(workdir)
  names = brought.left(config, names, asked=True)
  config = identity.dated(config, workdir)
  identity.check_inputs(config, names, workdir)
  check_unchanged(config, names, workdir)
  _preflight.check(
    config, [s for s in names if not identity.is_finished(workdir / s)], workdir)
  metrics.write_json(workdir / 'config.json', plain(config))
  ran = [stage for stage in names if not run_stage(config, stage, workdir)['skipped']]
  summary = summarize(workdir)
  before = [s.get('wall_seconds') or 0.0 for name, s in summary.items()
            if isinstance(s, dict) and name not in ran]
  summary['wall_seconds'] = time.monotonic() - start + sum(before)
  metrics.write_json(workdir / 'summary.json', summary)
  page.write(str(workdir))
  return summary


def check_unchanged(config: ConfigDict, names: Sequence[str], workdir: epath.Path) -> None:
  """Refuses these stages, and those that they stand on, if they ran otherwise.

  Raises:
    ConfigError: with another config.
    MismatchError: over other rows, or other results of stages.
  """
  behind = identity.upstream(config, names)
  names = [*behind, *names]
  for stage in names:
    identity.check_same(config, stage, workdir / stage, upstream=stage in behind)
  _unchanged.check(config, [s for s in names if identity.is_begun(workdir / s)], workdir)


def summarize(workdir: epath.Path) -> dict:
  """The summaries of the finished stages, by stage, and the optimum if one of them knows it."""
  summaries = {
    stage: runs.summary(workdir / stage)
    for stage in STAGES if identity.is_finished(workdir / stage)}
  optimum = runs.optimum(summaries)
  return {**summaries, **({} if optimum is None else {'gold_optimum': optimum})}


SHOWN = ('loss', 'perplexity', 'accuracy', 'auc', 'baseline_auc', 'reward_start', 'reward',
         'gold_reward', 'kl', 'wall_seconds')


def describe(summary: dict) -> str:
  """The summary's chief figures, a line a stage."""
  lines = []
  for stage, value in summary.items():
    if isinstance(value, dict):
      figures = [f'{n} {value[n]:.4g}' for n in SHOWN if isinstance(value.get(n), (int, float))]
      lines.append(f'{stage:>10}  {"  ".join(figures)}')
    else:
      lines.append(f'{stage:>10}  {value:.4g}')
  return '\n'.join(lines)


def check(config: ConfigDict) -> ConfigDict:
  """The config, validated; warnings go to stderr."""
  for warning in validate(config):
    print(f'warning: {warning}', file=sys.stderr)
  return config


@command_line.guarded
def main(argv: Sequence[str] | None = None) -> None:
  """The program; returns the exit code: 2 for a wrong config, 143 after a signal, else 0."""
  reader = command_line.parser('perl-rlhf launch', 'Runs a job, or the pipeline of a config.')
  reader.add_argument('--job', default='pipeline', choices=('pipeline', *STAGES),
                    help='one stage alone (in <workdir>/<stage>), or all of config.stages')
  options, overrides = command_line.parse(reader, argv)
  config = command_line.read(options.config, overrides)
  names = config.stages if options.job == 'pipeline' else (options.job,)
  brought.check_idle(config, map(command_line.overridden, overrides), names)
  workdir = paths.of(options.workdir)
  summary = run_stages(check(config), names, workdir)
  print(f'{describe(summary)}\nresults in {workdir}, the report is {workdir / "report.html"}')
