"""The page of docs on a real model: its commands, with three updates in place of fifty."""

import pathlib

import orders
import pytest
import toyrun

from perl import cli
from perl.config import platform

PAGE = pathlib.Path(__file__).parents[2] / 'docs/real_model.md'


def commands() -> list[list[str]]:
  """The words of each command of the page's first block, without the program."""
  block = PAGE.read_text(encoding='utf-8').split('```')[1]
  return [line.split()[1:] for line in block.strip().splitlines()]


@pytest.mark.index
def test_from_an_empty_folder_to_a_reward_model_that_transformers_scores_alike(
    smollm2, tmp_path, monkeypatch, capsys):
  monkeypatch.setenv(platform.GUARD, '1')
  monkeypatch.chdir(tmp_path)
  fetch, launch, export, check = commands()
  assert fetch == ['example-model', 'smollm2', '--out=models/smollm2']
  pathlib.Path('models').mkdir()
  pathlib.Path('models/smollm2').symlink_to(smollm2)
  mirror = orders.write_mirror(tmp_path / 'mirror')
  launch = [f'{word},mirror={mirror}' if word.startswith('--config=') else word for word in launch]
  short = ['--config.reward.steps=3', '--config.reward.batch_size=2',
           '--config.evaluate.max_examples=4', '--config.evaluate.bootstrap=2']
  with toyrun.small_world():
    assert cli.main([*launch, *short]) == 0
  assert 'auc' in capsys.readouterr().out
  assert cli.main(export) == 0
  assert cli.main(check) == 0
  said = dict(line.split(' ', 1) for line in capsys.readouterr().out.splitlines() if ' ' in line)
  assert said['compared'] == 'scores'
  assert float(said['largest_difference']) < 1e-3
