"""A few inputs of every kind of the fuzz; the long form is `python -m experiments.fuzz`."""

import json
import random

import pytest

from experiments.fuzz import __main__ as program
from experiments.fuzz import _child as child
from experiments.fuzz import _judge as judges
from experiments.fuzz.kinds import config
from perl import bounded, choices
from perl.data.text import templates

FEW = {'adapter': 20, 'templates': 30}
KINDS = choices.names(child.KINDS)


@pytest.mark.parametrize('name', KINDS)
def test_spoilt_inputs_are_accepted_or_refused_as_documented(name, tmp_path, monkeypatch):
  write = bounded.Function(templates._write.name, bounded.Bounds(seconds=0.2))
  monkeypatch.setattr(templates, '_write', write)
  kind, found = choices.find(child.KINDS, name), []
  valid = kind.files()
  child.write(tmp_path, valid)
  for number in range(FEW.get(name, 60)):
    rng = random.Random(f'0/{name}/{number}')
    spoilt = kind.spoil(valid, rng)
    child.write(tmp_path, spoilt)
    verdict = child.judge(kind, tmp_path, rng, list(spoilt))
    found += [(number, verdict)] if verdict['verdict'] not in judges.FINE else []
    child.clear(tmp_path, spoilt, valid)
  write.close()
  assert not found


@pytest.mark.parametrize('error, verdict', [
  (TypeError('expected a, found b in config.json'), 'foreign'), (ValueError('no'), 'foreign'),
  (ValueError('expected a, found b'), 'foreign'), (BaseException('panic'), 'foreign'),
  (AssertionError('another tensor'), 'wrong'), (None, 'accepted'),
  (ValueError('expected a in x/config.json, found b'), 'refused'),
])
def test_what_counts_as_a_finding(error, verdict, tmp_path, monkeypatch):
  def read(folder, rng):
    if error is not None:
      raise error

  monkeypatch.setattr(config, 'read', read)
  assert child.judge(config, tmp_path, random.Random(0), ['config.json'])['verdict'] == verdict


def test_the_end_of_a_process_is_a_finding():
  assert judges._ended(5, -27, '', 0)['verdict'] == 'hang'  # SIGPROF
  assert judges._ended(5, -6, 'abort', 0)['verdict'] == 'died'
  assert judges._ended(5, 1, '', 0)['verdict'] == 'died'
  with pytest.raises(RuntimeError, match='to begin'):
    judges._ended(-1, 1, 'ImportError', 0)


def test_the_program_writes_what_it_found(tmp_path, capsys):
  file = tmp_path / 'fuzz.json'
  assert program.main(['--kinds=safetensors', '--inputs=40', f'--json={file}']) == 0
  result = json.loads(file.read_text())
  counts = result['kinds']['safetensors']
  assert counts['inputs'] == 40 == counts['accepted'] + counts['refused'] and not counts['findings']
  assert result['commit'] and result['versions'] and result['hardware']
  assert 'safetensors' in capsys.readouterr().out


def test_shares_are_of_all_inputs():
  shares = program.shares(KINDS, 100_000)
  assert sum(shares.values()) >= 100_000 and set(shares) == set(KINDS)
