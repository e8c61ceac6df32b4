"""Taskmaster: splits without leaks, the kinds of example, the cache, bad input, the metrics."""

import bisect
import functools
import http.server
import json
import logging
import os
import pathlib
import subprocess
import sys
import threading

import pytest
from etils import epath

from perl.data.examples import KINDS, SPLITS
from perl.data.sets import _taskmaster as taskmaster
from perl.data.sets import taskmaster_coffee, taskmaster_ticketing
from perl.data.sources import pins, tfds
from perl.data.text import dialogue

DATASETS = [taskmaster_coffee, taskmaster_ticketing]
HERE = pathlib.Path(__file__).resolve()
SHARED = HERE.parents[3] / 'shared/data/taskmaster'
MIRROR = os.environ.get('PERL_TASKMASTER_MIRROR') or (str(SHARED) if SHARED.is_dir() else '')
needs_mirror = pytest.mark.skipif(not MIRROR, reason='PERL_TASKMASTER_MIRROR names no mirror')


def load_all(dataset, kind, mirror, tmp_path):
  return {split: dataset.load(split, kind, mirror=str(mirror), data_dir=str(tmp_path / 'prepared'))
          for split in SPLITS}


@pytest.mark.parametrize('dataset', DATASETS)
@pytest.mark.parametrize('kind', list(taskmaster.MAKERS))
def test_every_kind_is_of_its_split(dataset, kind, mirror, tmp_path):
  groups = {}
  for split, examples in load_all(dataset, kind, mirror, tmp_path).items():
    assert all(isinstance(example, KINDS[kind]) for example in examples)
    assert all(dialogue.split_of(example.group) == split for example in examples)
    assert all(example.meta['conversation_id'] for example in examples)
    groups[split] = {example.group for example in examples}
  assert not groups['train'] & groups['test'] and not groups['train'] & groups['dev']


@pytest.mark.parametrize('dataset', DATASETS)
def test_no_context_of_one_split_is_a_prefix_of_one_in_another(dataset, mirror, tmp_path):
  splits = load_all(dataset, 'labelled', mirror, tmp_path)
  assert_no_shared_prefix({split: {e.prompt for e in found} for split, found in splits.items()})


def assert_no_shared_prefix(prompts):
  """Compares turn by turn: only a marker may follow the shared turns. No context: in all others."""
  for split, own in prompts.items():
    others = sorted(set().union(*(found for other, found in prompts.items() if other != split)))
    for prompt in own - {'<|agent|>'}:
      context = prompt.removesuffix('<|agent|>') + '<|'
      nearest = others[bisect.bisect_left(others, context):][:1]
      assert not any(other.startswith(context) for other in nearest), context


def test_pairs_are_opposite_labels_of_one_context(mirror, tmp_path):
  pairs = [pair for found in load_all(taskmaster_ticketing, 'preference', mirror, tmp_path).values()
           for pair in found]
  assert len(pairs) == 60  # one for each order: the repeated rejection gives no second pair
  for pair in pairs:
    assert pair.chosen.startswith('{"find_movies"') and pair.rejected == 'no'
    assert pair.prompt.endswith('<|agent|>') and pair.margin == 0.0


def test_a_turn_with_both_labels_gives_no_pair(mirror, tmp_path):
  file = mirror / 'TM-3-2020/reward/reward_00.json'
  rows = json.loads(file.read_text())
  file.write_text(json.dumps([*rows, rows[0] | {'reward': 0.0}]))
  found = load_all(taskmaster_ticketing, 'preference', mirror, tmp_path)
  assert all(pair.chosen != pair.rejected for pairs in found.values() for pair in pairs)
  assert sum(map(len, found.values())) == 60


def test_dialogues_that_open_like_a_judged_one_are_left_out(mirror, tmp_path):
  found = load_all(taskmaster_coffee, 'document', mirror, tmp_path)
  judged = load_all(taskmaster_coffee, 'labelled', mirror, tmp_path)
  groups = lambda examples: {e.group for split in SPLITS for e in examples[split]}
  assert len(groups(found)) == 60
  assert not groups(found) & groups(judged)


def test_demonstrations_are_every_agent_turn(mirror, tmp_path):
  found = load_all(taskmaster_coffee, 'demonstration', mirror, tmp_path)
  examples = [example for split in SPLITS for example in found[split]]
  assert len(examples) == 2 * 60  # the call and the question
  call, question = found['train'][:2]
  assert question.prompt.startswith(call.prompt + call.response)
  assert call.response.startswith('{"get_menu_items"') and question.response == 'which size?'
  assert [call.meta['turn'], question.meta['turn']] == [1, 3]


def test_ticketing_dialogues_are_the_longest_contexts(mirror, tmp_path):
  found = load_all(taskmaster_ticketing, 'document', mirror, tmp_path)
  documents = [document for split in SPLITS for document in found[split]]
  assert len(documents) == 60
  # The rejected generation is no part of a dialogue.
  assert all(document.text.endswith('["Nope"]}') for document in documents)


def test_prompts_are_distinct_contexts(mirror, tmp_path):
  prompts = [p.prompt for ps in load_all(taskmaster_coffee, 'prompt', mirror, tmp_path).values()
             for p in ps]
  assert len(prompts) == len(set(prompts)) == 120


def test_same_files_give_same_examples_and_other_files_a_new_preparation(mirror, tmp_path):
  read = functools.partial(taskmaster_coffee.load, 'train', 'labelled', mirror=str(mirror),
                           data_dir=str(tmp_path / 'prepared'))
  first = read()
  assert read() == first
  (mirror / 'TM-4-2024/reward/reward_01.json').unlink()
  fewer = read()
  assert 0 < len(fewer) < len(first)
  assert first[:len(fewer)] == fewer  # in the order of the files


def test_two_processes_may_prepare_at_once(mirror, tmp_path, monkeypatch):
  read = functools.partial(taskmaster_coffee.load, 'train', 'labelled', mirror=str(mirror),
                           data_dir=str(tmp_path / 'prepared'))
  others = []

  def read_rows(path, name, original=tfds.read_rows):
    if not others:
      others.append('under way')
      others[:] = [read()]  # the other one starts later and is done earlier
    return original(path, name)

  monkeypatch.setattr(tfds, 'read_rows', read_rows)
  assert [read()] == others


def test_missing_files_are_named(mirror, tmp_path, caplog):
  with caplog.at_level(logging.WARNING):
    taskmaster_ticketing.load('train', 'labelled', mirror=str(mirror), data_dir=str(tmp_path / 'p'))
  assert 'holds 2 of 8 files' in caplog.text and 'reward_07.json' in caplog.text


def test_a_folder_without_the_files(tmp_path):
  with pytest.raises(FileNotFoundError, match='expected TM-4-2024/reward/reward_00.*found none'):
    taskmaster_coffee.load('train', 'labelled', mirror=str(tmp_path))


def test_unknown_kind_and_split(mirror):
  with pytest.raises(ValueError, match="expected a kind among .*; found 'pair'"):
    taskmaster_coffee.load('train', 'pair', mirror=str(mirror))
  with pytest.raises(ValueError, match="expected a split among .*; found 'valid'"):
    taskmaster_coffee.load('valid', 'labelled', mirror=str(mirror))


def test_an_empty_split_is_an_error(mirror, tmp_path):
  file = mirror / 'TM-4-2024/reward/reward_00.json'
  (mirror / 'TM-4-2024/reward/reward_01.json').unlink()
  file.write_text(json.dumps(json.loads(file.read_text())[:1]))
  only = dialogue.split_of('latte number 0 please')
  empty = next(split for split in SPLITS if split != only)
  with pytest.raises(ValueError, match=f"expected rows in split '{empty}'"):
    taskmaster_coffee.load(empty, 'labelled', mirror=str(mirror), data_dir=str(tmp_path / 'p'))


@pytest.mark.parametrize('damage', [
  lambda row: row | {'context': '[{'}, lambda row: row | {'reward': 0.5},
  lambda row: {k: v for k, v in row.items() if k != 'generation'}, lambda row: 'text'])
def test_a_malformed_row_is_named(damage, mirror, tmp_path):
  file = mirror / 'TM-4-2024/reward/reward_01.json'
  rows = json.loads(file.read_text())
  rows[3] = damage(rows[3])
  file.write_text(json.dumps(rows))
  with pytest.raises(ValueError, match=r'(?s)reward_01.json, row 3.*repair'):
    taskmaster_coffee.load('train', 'labelled', mirror=str(mirror), data_dir=str(tmp_path / 'p'))


def test_a_truncated_file_is_named(mirror, tmp_path):
  file = mirror / 'TM-4-2024/reward/reward_01.json'
  file.write_text(file.read_text()[:-20])
  with pytest.raises(ValueError, match=r'(?s)a list in .*reward_01.json.*fetch it again'):
    taskmaster_coffee.load('train', 'labelled', mirror=str(mirror), data_dir=str(tmp_path / 'p'))


@pytest.fixture
def checksums():
  """Those that the downloads of `home` are held to."""
  return {}


@pytest.fixture
def home(mirror, monkeypatch, checksums):
  """The public home, served from this machine."""
  class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
      pass

  handler = functools.partial(Handler, directory=str(mirror))
  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  source = taskmaster_coffee.SOURCE._replace(
    home=f'http://127.0.0.1:{server.server_port}', checksums=checksums)
  monkeypatch.setattr(taskmaster_coffee, 'load', taskmaster.loader(source, apart=True))
  yield mirror
  server.shutdown()


def test_downloads_equal_the_mirror(home, tmp_path):
  for index in range(2, 7):
    (home / f'TM-4-2024/reward/reward_{index:02d}.json').write_text('[]')
  read = functools.partial(taskmaster_coffee.load, 'train', 'labelled')
  downloaded = read(data_dir=str(tmp_path / 'a'))
  assert downloaded == read(mirror=str(home), data_dir=str(tmp_path / 'b'))


def test_a_download_is_the_file_that_was_published(home, checksums, tmp_path):
  files = [home / f'TM-4-2024/reward/reward_{index:02d}.json' for index in range(7)]
  for file in files[2:]:
    file.write_text('[]')
  checksums |= {file.relative_to(home).as_posix(): f'sha256:{pins.digest(epath.Path(file))}'
                for file in files}
  read = functools.partial(taskmaster_coffee.load, 'train', 'labelled')
  assert read(data_dir=str(tmp_path / 'a'))
  files[1].write_text(files[1].read_text() + ' ')
  with pytest.raises(OSError, match='(?s)expected .*reward_01.json with sha256 .*, found .*delete'):
    read(data_dir=str(tmp_path / 'b'))


def test_a_failed_download_names_the_remedy(home, tmp_path):
  with pytest.raises(OSError, match=r'(?s)expected to download .*set data.mirror'):
    taskmaster_coffee.load('train', 'labelled', data_dir=str(tmp_path / 'a'))


@pytest.mark.parametrize('response, valid, same_api', [
  ('{"get_addons":{"query":"oat"}}', 1.0, 1.0),
  ('{"add_order_item":{"attributes":{"milk-options":"oat"},"quantity":"1"}}', 1.0, 0.0),
  ('{"add_order_item":{"quantity":1}}', 0.0, 0.0),  # arguments are strings
  ('{"get_addons":{"colour":"red"}}', 0.0, 1.0),  # no such argument
  ('{"brew":{}}', 0.0, 0.0),  # no such API
  ('{"get_addons":{},"show_menu":{}}', 0.0, 0.0),  # two calls
  ('{"get_addons":', 0.0, 0.0),
  ('which size?', 1.0, 0.0),
  (' ', 0.0, 0.0)])
def test_metrics_of_a_response(response, valid, same_api):
  metrics = taskmaster_coffee.response_metrics('', response, '{"get_addons":{"query":"oat milk"}}')
  assert metrics == {'exact_match': 0.0, 'valid_api_call': valid, 'api_accuracy': same_api}


def test_exact_match_ignores_white_space_and_text_has_no_api_accuracy():
  metrics = taskmaster_coffee.response_metrics('', ' Which  size?\n', 'Which size?')
  assert metrics == {'exact_match': 1.0, 'valid_api_call': 1.0}


def test_importing_a_dataset_imports_nothing_heavy():
  code = ('import sys\nfrom perl.data.sets import taskmaster_coffee, taskmaster_ticketing, local\n'
          "print([m for m in ('tensorflow_datasets', 'sentencepiece', 'pyarrow', 'grain', "
          "'tokenizers', 'jax') if m in sys.modules])")
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True,
                        cwd=HERE.parents[2], check=True)
  assert done.stdout.strip() == '[]'


@needs_mirror
def test_published_coffee_counts(tmp_path):
  splits = load_all(taskmaster_coffee, 'labelled', MIRROR, tmp_path)
  assert [len(splits[split]) for split in SPLITS] == [2652, 250, 326]
  assert sum(example.label for found in splits.values() for example in found) == 2775
  assert_no_shared_prefix({split: {e.prompt for e in found} for split, found in splits.items()})
  pairs = load_all(taskmaster_coffee, 'preference', MIRROR, tmp_path)
  assert sum(map(len, pairs.values())) == 617
  assert 'tensorflow' not in sys.modules
