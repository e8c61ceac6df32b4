"""Provenance is JSON, and true where it can be checked."""

import contextlib
import json
import pathlib
import subprocess
import types

import jax
import numpy as np
import pytest

from perl.train import provenance


def test_commit_of_a_tracked_file(tmp_path):
  def git(*arguments):
    identity = ('-c', 'user.name=t', '-c', 'user.email=t@t')
    command = ['git', '-C', tmp_path, *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

  code = tmp_path / 'code.py'
  code.write_text('x = 1\n')
  assert provenance.commit(code) == 'unknown'  # no repository
  git('init', '-q')
  assert provenance.commit(code) == 'unknown'  # not tracked
  git('add', 'code.py')
  git('commit', '-q', '-m', 'first')
  head = git('rev-parse', 'HEAD')
  (tmp_path / 'run.log').write_text('untracked files are no change of the code')
  assert provenance.commit(code) == head
  code.write_text('x = 2\n')
  assert provenance.commit(code) == f'{head}+dirty'


def test_all_is_json():
  report = [provenance.commit(), provenance.versions(), provenance.hardware()]
  assert json.loads(json.dumps(report)) == report
  assert report[1]['jax'] == jax.__version__
  assert report[2]['cores'] >= 1 and report[2]['device_count'] == jax.device_count()


@pytest.mark.skipif(jax.default_backend() != 'cpu', reason='a device counts its own memory')
def test_peak_memory_grows_with_what_is_held():
  with contextlib.suppress(OSError):
    pathlib.Path('/proc/self/clear_refs').write_text('5')  # man 5 proc: resets VmHWM
  before = provenance.peak_memory_bytes()
  held = np.ones(1 << 24)  # 128 MiB, touched
  assert provenance.peak_memory_bytes() - before > held.nbytes // 2


def test_peak_memory_is_that_of_the_fullest_device(monkeypatch):
  device = lambda peak: types.SimpleNamespace(memory_stats=lambda: {'peak_bytes_in_use': peak})
  monkeypatch.setattr(jax, 'local_devices', lambda: [device(3), device(5)])
  assert provenance.peak_memory_bytes() == 5
