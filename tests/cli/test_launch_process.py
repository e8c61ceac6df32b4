"""The launcher as users start it: a process of its own, its exit code, its files, its words."""

import os
import pathlib
import subprocess
import sys

import pytest
import quick
from toyrun import clone, read  # noqa: F401

from perl.jobs import PERL

ROOT = pathlib.Path(__file__).parents[2]


def launch(workdir, *overrides) -> subprocess.CompletedProcess:
  """One call of the program, on one device."""
  command = [sys.executable, '-m', 'experiments.launch', '--config=configs/demo.py',
             f'--workdir={workdir}', *overrides]
  return subprocess.run(command, cwd=ROOT, env={**os.environ, **quick.ENVIRON}, text=True,
                        capture_output=True, timeout=900)


def test_a_pipeline_in_a_process_of_its_own(clone):  # noqa: F811
  workdir = clone / 'runs' / 'demo'
  for stage in PERL:
    for name in ('config.json', 'summary.json'):
      assert (workdir / stage / name).exists()
  summary = read(workdir / 'summary.json')
  assert 0 <= summary['sft']['gold_reward'] <= 1 and summary['wall_seconds'] > 0
  assert read(workdir / 'config.json')['sft']['steps'] == 2
  assert (workdir / 'report.html').read_text().endswith('</html>\n')
  assert 'the report is runs/demo/report.html' in (clone / 'words' / 'stdout').read_text()
  assert 'Traceback' not in (clone / 'words' / 'stderr').read_text()


@pytest.mark.parametrize('override, said', [
  ('--config.sft.stpes=3', "did you mean 'sft.steps'"),
  ('--config.model.size=nanno', "did you mean 'nano'"),
])
def test_a_wrong_override_ends_with_code_2_and_the_nearest_name(tmp_path, override, said):
  done = launch(tmp_path / 'run', override)
  assert done.returncode == 2
  assert said in done.stderr and 'Traceback' not in done.stderr
  assert not (tmp_path / 'run').exists()
