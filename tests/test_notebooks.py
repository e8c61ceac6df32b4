"""The notebooks run as their users run them: `jupyter execute`, over a run of another process."""

import pathlib

import nbformat
import pytest
from toyrun import clone, process  # noqa: F401

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOKS = sorted(ROOT.glob('notebooks/*.ipynb'))
EXECUTE = 'from nbclient.cli import main; main()'
"""The program `jupyter execute`, of the Python of the tests."""


def outputs(notebook) -> tuple[str, int]:
  """(all text, the number of images) that the cells gave."""
  shown = [out for cell in notebook.cells for out in cell.get('outputs', ())]
  text = ''.join(out.get('text', '') for out in shown)
  return text, sum('image/png' in out.get('data', {}) for out in shown)


def test_the_walkthrough_runs_over_what_make_demo_leaves(clone):  # noqa: F811
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
