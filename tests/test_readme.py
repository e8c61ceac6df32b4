"""README and docs: every command means something, every link leads somewhere, nothing is stale."""

import importlib.util
import json
import pathlib
import re
import shlex

import pytest

from experiments import render
from perl import choices
from perl.config import command_line
from perl.preference import methods
from perl.rl import algorithms

ROOT = pathlib.Path(__file__).parents[1]
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text()
         for path in (ROOT / 'README.md', *sorted((ROOT / 'docs').rglob('*.md')))}
README = PAGES['README.md']
OUTPUT = ('--workdir', '--json', '--out')
"""Flags that name what a command writes."""
FILE = re.compile(r'[\w./-]+/[\w.-]+\.(py|json|md|ipynb|html|yaml|toml)')
COMMAND = re.compile(r'(?:\bpython[\d.]* -m|(?<![\w/.-])perl-rlhf) (?!--help)([a-z][^`\n]*)')
LINK = re.compile(r'\]\(([^)\s]+)\)')
TARGET = re.compile(r'(?:^|`|&& )make ([a-z-]+)', re.M)


def commands(text: str) -> list[list[str]]:
  """[module, arguments ...] of every command, in blocks and inline, continued lines joined."""
  text = re.sub(r'\\\n\s*', ' ', text)
  words = [shlex.split(re.split(r'\s(?:&&|\||;)\s', match[1])[0], comments=True)
           for match in COMMAND.finditer(text)]
  installed = ['perl-rlhf' in match[0] for match in COMMAND.finditer(text)]
  return [[f'perl.cli.{w[0].replace("-", "_")}', *w[1:]] if ours else w
          for w, ours in zip(words, installed)]


def anchors(text: str) -> set[str]:
  """Those of a page's headings, as GitHub makes them."""
  headings = re.findall(r'^#+ (.+)$', re.sub(r'```.*?```', '', text, flags=re.DOTALL), re.M)
  return {re.sub(r'[^\w -]', '', title.lower()).replace(' ', '-') for title in headings}


def table_rows(text: str) -> list[list[str]]:
  """Cells of the rows of the table that `text` begins with."""
  rows = [[cell.strip() for cell in line.strip('|').split('|')]
          for line in text.split('\n\n')[0].splitlines()]
  return [row for row in rows if re.fullmatch(r'\w+', row[0])]


def outside(path: str) -> bool:
  """True for a path that a clean clone does not hold by design."""
  resolved = (ROOT / path).resolve()
  made_by_users = {'runs', 'build', '.venv'}
  return not resolved.is_relative_to(ROOT) or resolved.relative_to(ROOT).parts[0] in made_by_users


def sources(module: str, file: pathlib.Path) -> list[pathlib.Path]:
  """The files that have a program's flags: its own, those of all configs, and what it leads to."""
  command = ROOT / 'perl/cli' / f'{module.rpartition(".")[2]}.py'
  return [file, pathlib.Path(command_line.__file__), *([command] if command.exists() else []),
          *(file.parent.glob('*.py') if module == 'experiments.studies' else [])]


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
  source = ''.join(path.read_text() for path in sources(module, pathlib.Path(found.origin)))
  for argument in arguments:
    flag = re.match(r'--([a-z]\w*)(=|$)', argument)
    if flag and flag[1] != 'config' and module.split('.')[0] in ('experiments', 'perl'):
      assert f'--{flag[1]}' in source or f"'{flag[1]}'" in source, f'{module} has no {argument}'
    for path in FILE.finditer('' if argument.startswith(OUTPUT) else argument):
      assert outside(path[0]) or (ROOT / path[0]).exists(), f'no file {path[0]}'


@pytest.fixture(autouse=True)
def from_root(monkeypatch):
  """Commands are run from the root of the repository."""
  monkeypatch.chdir(ROOT)


@pytest.mark.parametrize('page', PAGES)
def test_every_command_of_a_page_is_valid(page):
  for words in commands(PAGES[page]):
    try:
      check(words[0], words[1:])
    except (AssertionError, ValueError) as error:
      raise AssertionError(f'{page}: {" ".join(words)}: {error}') from error


@pytest.mark.parametrize('page', PAGES)
def test_every_link_of_a_page_leads_somewhere(page):
  for link in LINK.findall(PAGES[page]):
    path, _, anchor = link.partition('#')
    if '://' in link:
      continue
    target = ((ROOT / page).parent / path).resolve() if path else ROOT / page
    assert target.exists(), link
    if anchor:
      assert anchor in anchors(target.read_text()), link


def test_make_targets_exist():
  makefile = (ROOT / 'Makefile').read_text()
  for target in {name for text in PAGES.values() for name in TARGET.findall(text)}:
    assert re.search(rf'^{re.escape(target)}:', makefile, re.M), target


def test_the_readme_is_a_front_door():
  assert len(README.splitlines()) <= 160
  jobs = README.split('| job | command |\n')[1].split('\n\n')[0].splitlines()[1:]
  assert 10 <= len(jobs) <= 20 and all(len(line) <= 130 for line in jobs)
  assert {'demo', 'test'} <= set(TARGET.findall(README))
  assert any(words[0] == 'perl.cli.launch' for words in commands(README))
  assert any(words[0] == 'experiments.launch' for words in commands(README))


def test_every_page_is_two_clicks_from_the_readme():
  linked = lambda page: {
    ((ROOT / page).parent / link.partition('#')[0]).resolve().relative_to(ROOT).as_posix()
    for link in LINK.findall(PAGES[page]) if '://' not in link and not link.startswith('#')}
  first = linked('README.md')
  second = set().union(*(linked(page) for page in first if page in PAGES))
  assert set(PAGES) - {'README.md'} <= first | second


def test_every_result_is_in_the_docs():
  text = '\n'.join(PAGES.values())
  for file in (ROOT / 'experiments' / 'results').iterdir():
    assert file.name in text, file.name


@pytest.mark.parametrize('page', PAGES)
def test_result_blocks_are_what_their_files_say(page):
  assert render.updated(PAGES[page]) == PAGES[page], 'run python -m experiments.render'


def test_a_stale_result_block_is_noticed_and_mended(monkeypatch, tmp_path, capsys):
  (tmp_path / 'docs').mkdir()
  page = tmp_path / 'docs' / 'page.md'
  page.write_text('a\n\n<!-- results: demo.json -->\n0.9\n<!-- end -->\n\nb\n')
  monkeypatch.setattr(render, 'ROOT', tmp_path)
  assert render.main(['--check']) == 1 and '0.9\n' in page.read_text()
  assert render.main([]) == 0 and '| gold reward | 0.573 [' in page.read_text()
  assert render.main(['--check']) == 0 and page.read_text().endswith('\n\n<!-- end -->\n\nb\n')
  capsys.readouterr()


def test_every_family_of_models_is_in_the_docs_and_tested():
  import releases

  rows = set(re.findall(r'^\| `(\w+)` \|', PAGES['docs/checkpoints.md'], re.M))
  assert rows - {'model_type'} == set(choices.names('perl.hub.families'))
  # gemma3 has a test of its own
  assert set(choices.names('perl.hub.families')) - {'gemma3'} == set(releases.CLASSES)
  tests = (ROOT / 'tests/hub/test_pretrained.py').read_text()
  assert all(f"('{family}', " in tests for family in releases.CLASSES)


# --- The reader of commands itself


def test_commands_are_found_in_blocks_and_inline():
  text = ('x\n```\nmake demo && python -m a.b \\\n    --c=1  # why\nperl-rlhf e --f\n```\n'
          '`.venv/bin/python -m d` `perl-rlhf <command>`\n')
  assert commands(text) == [['a.b', '--c=1'], ['perl.cli.e', '--f'], ['d']]
  assert TARGET.findall(text) == ['demo']


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


def test_every_method_is_in_the_docs():
  section = PAGES['docs/methods.md'].split('\n## ')[0]
  assert set(re.findall(r'^\| (\w+) \|', section, re.M)) == set(choices.names('perl.peft.methods'))


def test_every_dataset_and_rule_is_in_the_docs():
  rows = table_rows('| `data' + PAGES['docs/data.md'].split('| `data', 1)[1])
  assert {row[0] for row in rows} == set(choices.names('perl.data.sets'))
  rules = PAGES['docs/data.md'].split('`perl/rl/rules` (')[1].split(')')[0]
  assert set(re.split(r',\s+', rules)) == set(choices.names('perl.rl.rules'))


def test_every_algorithm_is_in_the_docs_with_its_own_values():
  rows = table_rows(PAGES['docs/algorithms.md'].split('| `rl.algorithm` |')[1])
  assert {row[0] for row in rows} == set(choices.names('perl.rl.algorithms'))
  in_words = {'aggregation', 'level', 'regularize', 'whiten_advantages'}
  for name, _, _, own, arxiv in rows:
    module = algorithms.find(name)
    printed = dict(text.split() for text in own.split(', ') if text)
    assert printed == {k: str(v) for k, v in module.OWN.items() if k not in in_words}
    assert arxiv in module.__doc__


def test_every_preference_method_is_in_the_docs():
  rows = table_rows(PAGES['docs/algorithms.md'].split('| `preference.method` |')[1])
  assert {row[0] for row in rows} == set(choices.names('perl.preference.methods'))
  for name, *_, reference, _ in rows:
    assert methods.find(name).reference == (reference == 'yes')


@pytest.mark.parametrize('name', ['demo', 'arithmetic'])
def test_the_seconds_of_a_run_in_the_text_are_those_of_its_file(name):
  seconds = json.loads((render.RESULTS / f'{name}.json').read_text())['wall_seconds']
  text = ' '.join(render.BLOCK.sub('', PAGES[f'docs/results/{name}.md']).split())
  assert f' {seconds:.0f} s ' in text


def test_figures_of_the_readme_are_those_of_their_files():
  text = ' '.join(README.split())
  demo = json.loads((render.RESULTS / 'demo.json').read_text())['evaluate']
  assert f'goes from {demo["gold_reward_before"]:.3f} to {demo["gold_reward"]:.3f} of 1 ' in text
  rl = json.loads((render.RESULTS / 'forecast_rl_1b.json').read_text())['stages']['rl']
  share = rl['configured']['peak_bytes'] / rl['full']['peak_bytes']
  assert f'takes {share:.0%} of the memory'.replace('%', ' %') in text
  for package, count in (('perl.rl.algorithms', 'RL algorithms'), ('perl.peft.methods', 'PEFT')):
    assert f' {len(choices.names(package))} {count}' in text
