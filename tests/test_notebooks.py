"""The notebooks run as their users run them: `jupyter execute`, over a run of another process."""

import os
import pathlib
import shutil
import subprocess
import sys

import nbformat
import pytest
import toyrun

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOKS = sorted(ROOT.glob('notebooks/*.ipynb'))
EXECUTE = 'from nbclient.cli import main; main()'
"""The program `jupyter execute`, of the Python of the tests."""


def outputs(notebook) -> tuple[str, int]:
  """(all text, the number of images) that the cells gave."""
  shown = [out for cell in notebook.cells for out in cell.get('outputs', ())]
  text = ''.join(out.get('text', '') for out in shown)
  return text, sum('image/png' in out.get('data', {}) for out in shown)


def process(folder: pathlib.Path, *words: str, **environ: str) -> None:
  """Runs Python in a folder with none of our variables: nothing of XLA, jax, pytest or perl."""
  bare = {'PATH': os.environ['PATH'], 'HOME': str(folder), 'LANG': 'C.UTF-8',
          'PYTHONPATH': str(ROOT)}  # the package under test, whichever one is installed
  done = subprocess.run([sys.executable, *words], cwd=folder, env=bare | environ, text=True,
                        capture_output=True)
  assert done.returncode == 0, done.stderr[-5000:]


@pytest.fixture(scope='module')
def clone(tmp_path_factory) -> pathlib.Path:
  """A folder as `make demo` leaves it after a few steps.

  Its model is the demo's own: where matrices are as large as these, the tuned process of a program
  multiplies them by other kernels than a notebook does, to other last bits.
  """
  folder = tmp_path_factory.mktemp('clone')
  shutil.copytree(ROOT / 'notebooks', folder / 'notebooks')
  quick = {name.upper(): str(value) for name, value in toyrun.QUICK.items()}
  process(folder, '-m', 'perl.cli', 'launch', '--config=demo', '--workdir=runs/demo',
          *toyrun.SMALL, '--config.model.size=micro', **quick)
  return folder


def test_the_walkthrough_runs_over_what_make_demo_leaves(clone):
  process(clone, '-c', EXECUTE, 'notebooks/walkthrough.ipynb', '--output=executed')
  text, images = outputs(nbformat.read(clone / 'notebooks' / 'executed.ipynb', as_version=4))
  assert images == 3  # learning curves, reward against KL, what the adapter learnt
  for words in ('rl/adapter', 'base_digest', 'before', 'after', 'logit after merging',
                'of the way, at'):
    assert words in text, words
  assert not (clone / 'notebooks' / 'runs').exists()  # it found the run, and made no other


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_is_committed_without_outputs_and_defines_nothing(path):
  notebook = nbformat.read(path, as_version=4)
  nbformat.validate(notebook)
  code = [cell for cell in notebook.cells if cell.cell_type == 'code']
  assert '%pip install' in code[0].source and 'except ModuleNotFoundError' in code[0].source
  assert all(not cell.outputs and cell.execution_count is None for cell in code)
  assert not any(line.startswith(('def ', 'class ')) for c in code for line in c.source.split('\n'))
