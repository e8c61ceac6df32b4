"""One run's responses judged against another's, from the command line."""

import json
import sys

import pytest
from toyrun import small_world, toyrun  # noqa: F401

from perl.cli import judge
from perl.data.sets import toy


@pytest.fixture
def evaluated(toyrun):  # noqa: F811
  return toyrun / 'evaluate'


def ask(capsys, *arguments):
  """(exit code, what was printed, what was said on stderr)."""
  code = judge.main(arguments)
  return code, *capsys.readouterr()


def test_by_gold(evaluated, tmp_path, capsys):
  file = tmp_path / 'found.json'
  code, out, _ = ask(capsys, f'--ours={evaluated}', f'--theirs={evaluated}:before', '--by=gold',
                     f'--json={file}')
  found, rows = json.loads(file.read_text()), json.loads((evaluated / 'responses.json').read_text())
  gold = [[toy.gold_reward(row['prompt'], row[when]) for row in rows] for when in
          ('before', 'after')]
  assert found['win'] == sum(b > a for a, b in zip(*gold)) / len(rows)
  assert found['loss'] == sum(b < a for a, b in zip(*gold)) / len(rows)
  assert code == 0 and f'of {len(rows)} pairs' in out and found['order_dependent'] == 0


def test_a_run_is_level_with_itself_by_its_reward_model(evaluated, tmp_path, capsys):
  file = tmp_path / 'found.json'
  with small_world():
    ask(capsys, f'--ours={evaluated}', f'--theirs={evaluated}', '--by=reward',
        f'--reward={evaluated.parent / "reward"}', f'--json={file}')
    assert json.loads(file.read_text())['tie'] == 1.0
    ask(capsys, f'--ours={evaluated}', f'--theirs={evaluated}:before', '--by=reward',
        f'--reward={evaluated.parent / "reward"}', f'--json={file}')
  found, rows = json.loads(file.read_text()), json.loads((evaluated / 'responses.json').read_text())
  same = sum(row['before'] == row['after'] for row in rows) / len(rows)
  assert found['tie'] >= same and found['win'] + found['loss'] == pytest.approx(1 - found['tie'])


def test_by_a_program(evaluated, capsys):
  program = f'{sys.executable} -c "import sys; [print(\'second\') for _ in sys.stdin]"'
  code, out, _ = ask(capsys, f'--ours={evaluated}', f'--theirs={evaluated}', '--by=command',
                     f'--command={program}')
  assert code == 0 and 'The order decided 100.0 %' in out


@pytest.mark.parametrize('arguments, said', [
  (['--ours={0}:later'], "expected ':before' or ':after'"),
  (['--ours={0}/nothing'], 'expected responses.json of a finished evaluate stage'),
  (['--by=reward'], 'expected --reward=<...>'),
  (['--by=command', '--command=/nowhere/judge'], 'expected a program to run as judge')])
def test_what_cannot_be_judged_is_explained(evaluated, capsys, arguments, said):
  code, _, err = ask(capsys, f'--ours={evaluated}', f'--theirs={evaluated}',
                     *(argument.format(evaluated) for argument in arguments))
  assert code == 2 and said in err


def test_other_prompts_are_refused(evaluated, tmp_path, capsys):
  rows = json.loads((evaluated / 'responses.json').read_text())
  (tmp_path / 'responses.json').write_text(json.dumps(rows[::-1]))
  code, _, err = ask(capsys, f'--ours={evaluated}', f'--theirs={tmp_path}')
  assert code == 2 and 'expected responses to the same prompts' in err


def test_a_dataset_without_gold_is_refused(evaluated, tmp_path, capsys):
  config = json.loads((evaluated / 'config.json').read_text())
  config['data']['name'] = 'gsm8k'
  (tmp_path / 'config.json').write_text(json.dumps(config))
  (tmp_path / 'responses.json').write_text((evaluated / 'responses.json').read_text())
  code, _, err = ask(capsys, f'--ours={tmp_path}', f'--theirs={tmp_path}')
  assert code == 2 and 'expected a dataset with a gold reward, found gsm8k' in err
