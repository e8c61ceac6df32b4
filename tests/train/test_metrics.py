"""Metrics on disk survive kills, resumes and NaN."""

import io
import json
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from perl.train import metrics


def test_rows_and_prefix(tmp_path):
  with metrics.Writer(tmp_path) as writer:
    writer.write(1, {'loss': jnp.float32(2.5)})
    writer.write(2, {'auc': .5}, prefix='evaluate')
  first, second = metrics.read_jsonl(tmp_path / 'metrics.jsonl')
  assert first['step'] == 1 and first['loss'] == 2.5 and first['time'] > 1e9
  assert second['evaluate/auc'] == .5
  assert list((tmp_path / 'tensorboard').glob('events*'))


def test_nan_is_null_in_valid_json(tmp_path):
  with metrics.Writer(tmp_path) as writer:
    writer.write(1, {'a': float('nan'), 'b': float('-inf'), 'c': 1})
  forbid = lambda name: pytest.fail(f'{name} is no JSON')
  row = json.loads((tmp_path / 'metrics.jsonl').read_text(), parse_constant=forbid)
  assert row['a'] is None and row['b'] is None and row['c'] == 1.


@pytest.mark.parametrize('resumed, steps', [(None, [1, 2, 3]), (2, [1, 2]), (-1, [])])
def test_resume_drops_later_rows_and_appends(tmp_path, resumed, steps):
  with metrics.Writer(tmp_path) as writer:
    for step in (1, 2, 3):
      writer.write(step, {'loss': step})
  with metrics.Writer(tmp_path, resumed_step=resumed) as writer:
    writer.write(9, {'loss': 9})
  rows = metrics.read_jsonl(tmp_path / 'metrics.jsonl')
  assert [row['step'] for row in rows] == [*steps, 9]


def test_a_half_written_last_line_is_repaired(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  path.write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "lo')
  assert [row['step'] for row in metrics.read_jsonl(path)] == [1]
  with metrics.Writer(tmp_path) as writer:
    writer.write(2, {'loss': 2})
  assert [json.loads(line)['step'] for line in path.read_text().splitlines()] == [1, 2]


def test_a_broken_row_is_named(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  path.write_text('{"step": 1}\n{"step": \n{"step": 3}\n')
  with pytest.raises(ValueError, match='JSON object in .*metrics.jsonl, line 2, found.*repair'):
    metrics.read_jsonl(path)


def test_write_json_takes_arrays_and_keeps_the_old_file_on_failure(tmp_path):
  path = tmp_path / 'deep' / 'x.json'
  value = {'a': np.float32(.5), 'b': jnp.arange(2), 'c': float('nan'), 'd': pathlib.Path('p')}
  metrics.write_json(path, value)
  expected = {'a': .5, 'b': [0, 1], 'c': None, 'd': 'p'}
  assert json.loads(path.read_text()) == expected
  with pytest.raises(TypeError, match='remedy'):
    metrics.write_json(path, {'a': object()})
  assert json.loads(path.read_text()) == expected
  assert [p.name for p in path.parent.iterdir()] == ['x.json']


def test_summary(tmp_path):
  metrics.summary(tmp_path, {'loss': np.float64(1.)})
  assert json.loads((tmp_path / 'summary.json').read_text()) == {'loss': 1.}


def test_progress_without_a_terminal_is_a_few_lines():
  out = io.StringIO()
  with metrics.progress(1000, initial=10, desc='sft', file=out) as bar:
    for _ in range(990):
      bar.update()
  lines = out.getvalue().splitlines()
  assert lines[0].startswith('sft: 10/1000') and lines[-1].startswith('sft: 1000/1000')
  assert '\r' not in out.getvalue() and len(lines) <= 4


def test_what_takes_long_is_counted_and_what_does_not_is_silent(capsys, monkeypatch):
  assert list(metrics.watched([1, 2, 3], 'rows')) == [1, 2, 3]
  assert capsys.readouterr().err == ''
  monkeypatch.setattr(metrics, 'LINE_SECONDS', 0.0)
  assert list(metrics.watched([1, 2, 3], 'rows')) == [1, 2, 3]
  assert '3/3' in capsys.readouterr().err
