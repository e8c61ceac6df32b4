"""Runs side by side: the cells of the table, worked out by hand."""

import csv
import json

import pytest

from perl.cli import compare
from perl.config import experiments
from perl.config.fields import plain


def workdir(folder, summaries, text=''):
  """A run that left these summaries, with the demo's config."""
  config = experiments.load('demo').get_config(text)
  folder.mkdir()
  (folder / 'config.json').write_text(json.dumps(plain(config)))
  for stage, summary in summaries.items():
    (folder / stage).mkdir()
    (folder / stage / 'summary.json').write_text(json.dumps(summary))
  return folder


@pytest.fixture
def pair(tmp_path):
  first = workdir(tmp_path / 'first', {
    'sft': {'loss': 0.25, 'seed': 0, 'commit': 'abc'},
    'evaluate': {'reward': 1.5, 'reward_low': 1.25, 'reward_high': 1.75, 'kl': float('nan')}})
  second = workdir(tmp_path / 'second', {'sft': {'loss': 12.5, 'wall_seconds': 61.25}}, 'seed=3')
  return first, second


def test_figures_stand_by_stage_then_the_fields_that_differ(pair):
  assert compare.rows(pair) == [
    ['sft loss', '0.250', '12.5'],
    ['sft wall_seconds', '–', '61.2'],
    ['evaluate reward', '1.500 [1.250, 1.750]', '–'],
    ['seed', '0', '3'],
  ]


def test_runs_of_one_config_differ_in_no_field(pair):
  assert [row[0] for row in compare.rows([pair[0]] * 3)] == ['sft loss', 'evaluate reward']


def test_a_field_that_an_older_run_lacks_had_its_default(pair):
  path = pair[0] / 'config.json'
  config = json.loads(path.read_text())
  assert config['peft']['rslora'] is False and config['peft']['rank'] == 8
  del config['peft']['rslora']
  config['peft'].update(rank=2, gone='x')
  path.write_text(json.dumps(config))
  rows = compare.rows(pair)[3:]
  assert rows == [['seed', '0', '3'], ['peft.rank', '2', '8'], ['peft.gone', 'x', '–']]


def test_the_program_prints_a_table(pair, capsys):
  assert compare.main([str(folder) for folder in pair]) == 0
  out = capsys.readouterr().out
  assert out.startswith(f'|  | {pair[0]} | {pair[1]} |') and '| seed | 0 | 3 |' in out
  assert compare.main([*map(str, pair), '--format=csv']) == 0
  table = list(csv.reader(capsys.readouterr().out.splitlines()))
  assert table[0] == ['', str(pair[0]), str(pair[1])] and ['seed', '0', '3'] in table


def test_a_folder_without_a_run_is_refused(pair, tmp_path, capsys):
  assert compare.main([str(pair[0]), str(tmp_path)]) == 2
  error = capsys.readouterr().err
  assert f'stage in {tmp_path}, found none; run perl-rlhf launch' in error
