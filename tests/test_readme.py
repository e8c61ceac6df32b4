"""Every command of the README means something: its module, config, overrides and files exist."""

import importlib.util
import json
import pathlib
import re
import shlex

import pytest

from perl import choices
from perl.config import command_line

ROOT = pathlib.Path(__file__).parents[1]
README = ROOT / 'README.md'
OUTPUT = ('--workdir', '--json', '--out')
"""Flags that name what a command writes."""
FILE = re.compile(r'[\w./-]+/[\w.-]+\.(py|json|md|ipynb|html|yaml|toml)')
MODULE = re.compile(r'\bpython[\d.]* -m ([^`\n]+)')
TARGET = re.compile(r'(?:^|`|&& )make ([a-z-]+)', re.M)


def modules(text: str) -> list[list[str]]:
  """[module, arguments ...] of every `python -m`, in blocks and inline, continued lines joined."""
  found = MODULE.findall(re.sub(r'\\\n\s*', ' ', text))
  return [shlex.split(re.split(r'\s(?:&&|\||;)\s', line)[0], comments=True) for line in found]


def outside(path: str) -> bool:
  """True for a path that a clean clone does not hold by design."""
  resolved = (ROOT / path).resolve()
  made_by_users = {'runs', 'build', '.venv'}
  return not resolved.is_relative_to(ROOT) or resolved.relative_to(ROOT).parts[0] in made_by_users


def check(module: str, arguments: list[str]) -> None:
  """Fails where the command would fail for its words alone."""
  found = importlib.util.find_spec(module)
  assert found is not None, f'no module {module}'
  if found.submodule_search_locations:  # a package runs its __main__
    found = importlib.util.find_spec(f'{module}.__main__')
    assert found is not None, f'{module} cannot be run'
  spec = next((a.split('=', 1)[1] for a in arguments if a.startswith('--config=')), None)
  overrides = [a for a in arguments if a.startswith(('--config.', '--noconfig.'))]
  if spec is not None and not outside(spec.split(':')[0]):
    command_line.read(spec, overrides)
  else:
    command_line.check_overrides(overrides)
  source = pathlib.Path(found.origin).read_text() + pathlib.Path(command_line.__file__).read_text()
  for argument in arguments:
    flag = re.match(r'--([a-z]\w*)(=|$)', argument)
    if flag and flag[1] != 'config' and module.split('.')[0] == 'experiments':
      assert f'--{flag[1]}' in source or f"'{flag[1]}'" in source, f'{module} has no {argument}'
    for path in FILE.finditer('' if argument.startswith(OUTPUT) else argument):
      assert outside(path[0]) or (ROOT / path[0]).exists(), f'no file {path[0]}'


def readme() -> str:
  """Its text; empty while there is none."""
  return README.read_text() if README.exists() else ''


@pytest.fixture(autouse=True)
def from_root(monkeypatch):
  """Commands are run from the root of the repository."""
  monkeypatch.chdir(ROOT)


@pytest.mark.parametrize('words', modules(readme()), ids=' '.join)
def test_a_python_command_of_the_readme_is_valid(words):
  check(words[0], words[1:])


@pytest.mark.parametrize('target', sorted(set(TARGET.findall(readme()))))
def test_a_make_target_of_the_readme_exists(target):
  assert re.search(rf'^{re.escape(target)}:', (ROOT / 'Makefile').read_text(), re.M)


def test_the_readme_says_how_to_run_the_demo():
  assert {'demo', 'test'} <= set(TARGET.findall(readme()))
  assert any(words[0] == 'experiments.launch' for words in modules(readme()))


# --- The reader of commands itself


def test_every_family_of_models_is_in_the_readme_and_tested():
  import releases


  rows = set(re.findall(r'^\| `(\w+)` \|', readme(), re.M))
  assert rows - {'model_type'} == set(choices.names('perl.hub.families'))
  # gemma3 has a test of its own
  assert set(choices.names('perl.hub.families')) - {'gemma3'} == set(releases.CLASSES)
  tests = (ROOT / 'tests/hub/test_pretrained.py').read_text()
  assert all(f"('{family}', " in tests for family in releases.CLASSES)


def test_commands_are_found_in_blocks_and_inline():
  text = 'x\n```\nmake demo && python -m a.b \\\n    --c=1  # why\n```\n`.venv/bin/python -m d`\n'
  assert modules(text) == [['a.b', '--c=1'], ['d']] and TARGET.findall(text) == ['demo']


@pytest.mark.parametrize('line, wrong', [
  ('experiments.launch --config=configs/demo.py:seed=1 --workdir=runs/x', None),
  ('experiments.launch --config=runs/x/config.json --workdir=/elsewhere/y', None),
  ('experiments.lunch --config=configs/demo.py', 'no module'),
  ('experiments.launch --config=configs/dmo.py', 'demo.py'),
  ('experiments.launch --config=configs/demo.py:sed=1', 'seed'),
  ('experiments.launch --config=configs/demo.py --config.peft.rnk=1', 'peft.rank'),
  ('experiments.launch --config=configs/demo.py --jbo=rl', 'has no --jbo'),
  ('experiments.report notebooks/missing.ipynb', 'no file'),
])
def test_a_wrong_command_is_noticed(line, wrong):
  module, *arguments = line.split()
  if wrong is None:
    check(module, arguments)
  else:
    with pytest.raises((AssertionError, ValueError), match=wrong):
      check(module, arguments)


def test_every_method_is_in_the_readme():

  section = readme().split('**Methods**')[1].split('**Methods on coffee**')[0]
  assert set(re.findall(r'^\| (\w+) \|', section, re.M)) == set(choices.names('perl.peft.methods'))


def test_every_dataset_is_in_the_readme():
  folder = ROOT / 'perl/data'
  files = [*folder.glob('*.py'), *folder.glob('*/__init__.py')]
  found = {(f.parent if f.stem == '__init__' else f).stem for f in files
           if '\ndef load(split' in f.read_text()}
  section = readme().split('## Data\n')[1].split('\n## ')[0]
  assert set(re.findall(r'^\| (\w+) \|', section, re.M)) == found


def test_every_algorithm_is_in_the_readme_with_its_own_values():
  from perl import choices
  from perl.rl import algorithms

  section = readme().split('| `rl.algorithm` |')[1].split('\n\n')[0]
  rows = [[cell.strip() for cell in line.strip('|').split('|')]
          for line in section.splitlines() if re.match(r'\| \w+ \|', line)]
  assert {row[0] for row in rows} == set(choices.names('perl.rl.algorithms'))
  in_words = {'aggregation', 'level', 'regularize', 'whiten_advantages'}
  for name, _, _, own, arxiv in rows:
    module = algorithms.find(name)
    printed = dict(text.split() for text in own.split(', ') if text)
    assert printed == {k: str(v) for k, v in module.OWN.items() if k not in in_words}
    assert arxiv in module.__doc__


def test_every_preference_method_is_in_the_readme():
  from perl import choices
  from perl.preference import methods

  section = readme().split('| `preference.method` |')[1].split('\n\n')[0]
  rows = [[cell.strip() for cell in line.strip('|').split('|')]
          for line in section.splitlines() if re.match(r'\| \w+ \|', line)]
  assert {row[0] for row in rows} == set(choices.names('perl.preference.methods'))
  for name, *_, reference, _ in rows:
    assert methods.find(name).reference == (reference == 'yes')


@pytest.mark.parametrize('name, row, figure, interval', [
  ('demo', 'gold reward', 'gold_reward', True), ('demo', 'exact match', 'exact_match', False),
  ('arithmetic', 'sampled', 'gold_reward', True), ('arithmetic', 'greedy', 'correct', True)])
def test_figures_of_one_run_are_those_of_its_file(name, row, figure, interval):
  found = json.loads((ROOT / f'experiments/results/{name}.json').read_text())
  shown = []
  for when in ('_before', ''):
    values = [found['evaluate'][f'{figure}{end}{when}'] for end in ('', '_low', '_high')]
    mean, low, high = (f'{value:.3f}' for value in values)
    shown.append(f'{mean} [{low}, {high}]' if interval else mean)
  section = readme().split(f'experiments/results/{name}.json`, the `summary.json` of that run')[1]
  assert f'| {row} | {shown[0]} | {shown[1]} |' in section[:1200]
  assert f' {found["wall_seconds"]:.0f} s ' in ' '.join(readme().split())
