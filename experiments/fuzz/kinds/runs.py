"""What a run left in its workdir: config.json, summary.json, metrics, responses, samples."""

import contextlib
import functools
import io
import json
import pathlib
import random
from typing import Any

from experiments.fuzz import _mutations as mutations
from perl.cli import compare, judge, launch
from perl.config import command_line, identity, runs, schema
from perl.config.fields import ConfigError, plain
from perl.config.validate import validate
from perl.report import page

SHARE = 7


@functools.cache
def files() -> dict[str, bytes]:
  """A workdir with a finished SFT and an evaluation."""
  config = json.dumps(plain(command_line.read('demo'))).encode()
  summary = {'loss': 1.5, 'wall_seconds': 3.0, 'seed': 0, 'gold_optimum': 1.0, 'exact_match': 0.5,
             'exact_match_low': 0.4, 'exact_match_high': 0.6, 'versions': {'python': '3.11'}}
  row = {'prompt': '<|user|>a<|agent|>', 'before': 'b', 'after': 'c', 'group': 'g',
         'reference': 'r', 'gold_before': 0.1, 'gold_after': 0.2, 'finished_before': True,
         'finished_after': False}
  metrics = '\n'.join(
    json.dumps({'step': i, 'loss': 1.0 / i, 'dev/loss': 1.0}) for i in range(1, 5))
  return {
    'config.json': config, 'summary.json': json.dumps({'sft': summary, 'wall_seconds': 3}).encode(),
    'sft/config.json': config, 'sft/summary.json': json.dumps(summary).encode(),
    'sft/metrics.jsonl': metrics.encode(), 'evaluate/config.json': config,
    'evaluate/summary.json': json.dumps(summary).encode(),
    'evaluate/responses.json': json.dumps([row, row]).encode(),
    'evaluate/samples.json': json.dumps([row]).encode(),
  }


def spoil(valid: dict[str, bytes], rng: random.Random) -> dict[str, bytes | None]:
  """One of its files."""
  return mutations.spoilt_one(valid, rng)


def read(folder: pathlib.Path, rng: random.Random) -> Any:
  """As one of the commands does."""
  action = rng.choice(['config', 'same', 'compare', 'report', 'judge', 'summary', 'files'])
  if action == 'config':
    config = command_line.read(str(folder / 'config.json'))
    try:
      validate(config)
    except ConfigError as error:  # of values: it names their fields
      raise ConfigError(f'config.json: {error}') from error
  elif action == 'same':
    config = command_line.read('demo')
    for stage in ('sft', 'evaluate'):
      identity.check_same(config, stage, folder / stage)
    identity.check_inputs(config, ['rl'], folder)
  elif action == 'compare':
    compare.rows([folder, folder])
  elif action == 'report':
    page.write(str(folder))
  elif action == 'judge':
    judge.by_gold(folder / 'evaluate')
    options = dict(ours=f'{folder}/evaluate', theirs=f'{folder}/evaluate:before', by='gold', seed=0,
                   reward='', command='')
    import argparse
    judge.table(judge.run(argparse.Namespace(**options)))
  elif action == 'summary':
    launch.describe(launch.summarize(folder))
  else:
    runs.config(folder), runs.summaries(folder), schema.get_config()
  with contextlib.redirect_stdout(io.StringIO()):
    return None
