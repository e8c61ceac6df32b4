"""The programs as users start them: by the installed command, by -m, from any folder."""

import ast
import configparser
import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest

from perl import cli
from perl.config import experiments, platform

ROOT = pathlib.Path(__file__).parents[2]
COMMANDS = ('compare', 'convert', 'example-model', 'forecast', 'judge', 'launch', 'report')
STARTED = 'import os, sys; print(sys.orig_argv[1:], file=open(os.environ["SEEN"], "a"))'
"""A sitecustomize.py, which Python executes at every start."""


def run(words, path, folder, **environ):
  """A Python process that finds perl in `path`, as a fresh shell would start it."""
  ours = (*platform.MALLOC, platform.GUARD, 'XLA_FLAGS')
  clean = {name: value for name, value in os.environ.items() if name not in ours}
  return subprocess.run(
    [sys.executable, *words], cwd=folder, capture_output=True, text=True, timeout=300, check=False,
    env={**clean, 'PYTHONPATH': str(path), 'JAX_PLATFORMS': 'cpu', **environ})


@pytest.fixture(scope='module')
def installed(tmp_path_factory):
  """A folder that holds what the wheel installs, built from a copy of the checkout."""
  folder = tmp_path_factory.mktemp('wheel')
  for name in ('perl', 'configs', 'experiments'):
    shutil.copytree(ROOT / name, folder / 'source' / name,
                    ignore=shutil.ignore_patterns('__pycache__', 'results'))
  shutil.copy(ROOT / 'setup.py', folder / 'source')
  built = subprocess.run(
    [sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '--no-build-isolation', '-w', folder,
     folder / 'source'], capture_output=True, text=True, check=False)
  assert built.returncode == 0, built.stderr
  wheel, = folder.glob('*.whl')
  zipfile.ZipFile(wheel).extractall(folder / 'site')
  return folder / 'site'


@pytest.fixture
def elsewhere(tmp_path):
  """A user's folder with packages of her own, which have the names of our folders."""
  for name in ('configs', 'experiments'):
    (tmp_path / name).mkdir()
    (tmp_path / name / '__init__.py').write_text('raise RuntimeError("the user\'s own")')
    (tmp_path / name / 'demo.py').write_text('raise RuntimeError("the user\'s own")')
  return tmp_path


def test_the_wheel_holds_perl_alone_with_the_experiments_as_its_data(installed):
  assert {path.name for path in installed.iterdir() if path.suffix != '.dist-info'} == {'perl'}
  files = {path.relative_to(ROOT) for path in (ROOT / 'perl').rglob('*.py')}
  files |= {pathlib.Path('perl/configs') / path.name for path in (ROOT / 'configs').glob('*.py')}
  assert {path.relative_to(installed) for path in installed.rglob('*.py')} == files
  scripts = configparser.ConfigParser()
  scripts.read(next(installed.glob('*.dist-info/entry_points.txt')))
  assert dict(scripts['console_scripts']) == {'perl-rlhf': 'perl.cli:main'}


def test_folders_of_the_user_do_not_take_the_place_of_ours(installed, elsewhere):
  flags = ['-m', 'perl.cli', 'launch', '--config=coffee_methods:seed=4', '--print_config']
  done = run(flags, installed, elsewhere)
  assert done.returncode == 0, done.stderr
  assert 'seed = 4\nname = coffee-methods-tiny\n' in done.stdout
  code = 'import perl.config.experiments as e; print(e.FOLDER)'
  assert run(['-c', code], installed, elsewhere).stdout.strip() == str(installed / 'perl/configs')
  theirs = run([*flags[:3], '--config=configs/demo.py', '--print_config'], installed, elsewhere)
  assert "the user's own" in theirs.stderr  # a path is a path


@pytest.mark.parametrize('start', ['script', '-m perl.cli launch', '-m experiments.launch'])
def test_a_program_starts_itself_anew_once_with_its_own_words(start, tmp_path):
  (tmp_path / 'sitecustomize.py').write_text(STARTED)
  script = tmp_path / 'perl-rlhf'  # as pip writes it
  script.write_text('import sys\nfrom perl.cli import main\nsys.exit(main())\n')
  words = [str(script), 'launch'] if start == 'script' else start.split()
  words += ['--config=demo', '--workdir=x y', '--config.model.size=nanno']
  done = run(words, f'{tmp_path}{os.pathsep}{ROOT}', ROOT, SEEN=str(tmp_path / 'seen'))
  assert done.returncode == 2 and "did you mean 'nano'" in done.stderr, done.stderr
  seen = [ast.literal_eval(line) for line in (tmp_path / 'seen').read_text().splitlines()]
  assert seen == [words, words]


def test_the_commands_are_listed_and_the_nearest_is_told(capsys, monkeypatch):
  monkeypatch.setattr(sys, 'argv', ['perl-rlhf'])
  for argv in (None, [], ['--help'], ['-h']):
    assert cli.main(argv) == 0
    out = capsys.readouterr().out
    assert out.startswith('usage: perl-rlhf <command>')
    assert [line.split()[0] for line in out.splitlines() if line.startswith('  ')] == [*COMMANDS]
  assert cli.main(['lanch']) == 2
  assert f"among {', '.join(COMMANDS)}, found 'lanch'; did you mean 'launch'" in (
    capsys.readouterr().err)


@pytest.mark.parametrize('command', COMMANDS)
def test_each_command_calls_itself_by_its_name(command, capsys, monkeypatch):
  monkeypatch.setenv(platform.GUARD, '1')
  try:
    assert cli.main([command, '--help']) == 0
  except SystemExit as stop:
    assert not stop.code
  assert capsys.readouterr().out.startswith(f'usage: perl-rlhf {command} ')


@pytest.mark.parametrize('flag, said', [('--help_fields', "\nname = 'demo'\n"),
                                        ('--print_config', '\nname = demo\n')])
def test_seeing_a_config_loads_no_jax(flag, said, tmp_path):
  code = ('import sys; from perl import cli; code = cli.main(sys.argv[1:]);'
          'assert "jax" not in sys.modules; sys.exit(code)')
  for command, own in (('launch', '--job=rl'), ('forecast', '--stages=rl')):
    done = run(['-c', code, command, '--config=demo:seed=2', own, '--config.rl.beta', '3', flag],
               ROOT, tmp_path)
    assert done.returncode == 0, done.stderr
    assert said in done.stdout and '\nrl.beta = 3.0\n' in done.stdout


def test_a_wrong_override_is_told_where_a_config_is_seen(capsys):
  assert cli.main(['launch', '--config=demo', '--config.rl.btea=3', '--print_config']) == 2
  assert "did you mean 'rl.beta'" in capsys.readouterr().err


def test_the_makefile_names_folders_that_exist():
  lines = (ROOT / 'Makefile').read_text().splitlines()
  check, = (line.split()[2:] for line in lines if 'ruff check' in line)
  assert {'perl', 'configs', 'experiments', 'tests'} <= set(check)
  assert all((ROOT / name).exists() for name in check)
  assert experiments.FOLDER == ROOT / 'configs'
