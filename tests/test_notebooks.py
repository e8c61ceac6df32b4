"""The notebooks run from top to bottom over a finished run, in the Python of the tests."""

import os
import pathlib
import sys

import nbclient
import nbformat
import pytest
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec
from toyrun import toyrun  # noqa: F401

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOKS = sorted(ROOT.glob('notebooks/*.ipynb'))


class Kernel(AsyncKernelManager):
  """This very Python, whatever kernels are installed on the machine."""

  @property
  def kernel_spec(self) -> KernelSpec:
    """As `ipykernel install` would write it."""
    command = [sys.executable, '-m', 'ipykernel_launcher', '-f', '{connection_file}']
    return KernelSpec(argv=command, display_name='tests', language='python')


def outputs(notebook) -> tuple[str, int]:
  """(all text, the number of images) that the cells gave."""
  given = [out for cell in notebook.cells for out in cell.get('outputs', ())]
  text = ''.join(out.get('text', '') for out in given)
  return text, sum('image/png' in out.get('data', {}) for out in given)


@pytest.fixture(scope='module')
def walkthrough(toyrun):  # noqa: F811
  """The notebook after it ran over the toy run."""
  notebook = nbformat.read(ROOT / 'notebooks' / 'walkthrough.ipynb', as_version=4)
  paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH', '')]))
  environ = {**os.environ, 'PERL_RUN': str(toyrun), 'PYTHONPATH': paths, 'XLA_FLAGS': '',
             'MPLBACKEND': 'module://matplotlib_inline.backend_inline'}
  client = nbclient.NotebookClient(notebook, km=Kernel(), timeout=600)
  client.execute(cwd=str(ROOT / 'notebooks'), env=environ)
  return notebook


def test_the_walkthrough_runs_and_shows_what_it_says(walkthrough):
  text, images = outputs(walkthrough)
  assert images == 3  # learning curves, reward against KL, what the adapter learnt
  for said in ('rl/adapter', 'base_digest', 'before', 'after', 'logit after merging',
               'of the way, at'):
    assert said in text, said


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_is_committed_without_outputs_and_installs_first(path):
  notebook = nbformat.read(path, as_version=4)
  nbformat.validate(notebook)
  code = [cell for cell in notebook.cells if cell.cell_type == 'code']
  assert '%pip install' in code[0].source and 'except ModuleNotFoundError' in code[0].source
  assert all(not cell.outputs and cell.execution_count is None for cell in code)
  assert not any(line.startswith(('def ', 'class ')) for c in code for line in c.source.split('\n'))
