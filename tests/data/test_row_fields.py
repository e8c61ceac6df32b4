"""Fields of the user's rows: null means absent, weight 0 is not learnt, nothing is lost unsaid."""

import gzip
import json
import logging

import checkpoints
import pytest

from perl.data.batches import encoding
from perl.data.examples import KINDS
from perl.data.sets import local
from perl.data.sources import layouts
from perl.data.text import chat
from perl.data.text import tokenizer as tokenizers

ASKED, YES = ({'role': 'user', 'content': content} for content in ('tea', 'yes'))
GREEN, DONE = ({'role': 'assistant', 'content': content} for content in ('green?', 'done'))
CALL = {'role': 'assistant', 'content': None, 'tool_calls': [
  {'function': {'name': 'find', 'arguments': {'q': 'tea'}}}]}
SILENT = GREEN | {'weight': 0}
ROWS = {
  'prompt': [{'prompt': 'p', 'group': 'g'}, {'prompt': 'q', 'group': None, 'meta': {'a': '1'}}],
  'demonstration': [
    {'prompt': 'p', 'response': 'r', 'label': None, 'answer': '4'},
    {'prompt': 'p', 'completion': None, 'response': 's', 'label': 1, 'answer': None}],
  'labelled': [{'prompt': 'p', 'response': 'r', 'label': 1, 'extra': {'a': None, 'b': [1, None]}}],
  'preference': [{'prompt': 'p', 'chosen': 'c', 'rejected': 'r'},
                 {'prompt': 'p', 'chosen': 'c', 'rejected': 's', 'margin': 2.0}],
  'ranked': [{'prompt': 'p', 'responses': ['c', 'd'], 'rating': None}],
  'rated': [{'prompt': 'p', 'response': 'r', 'rating': 0.5, 'meta': None}],
  'document': [
    {'messages': [ASKED, CALL, {'role': 'tool', 'content': '3'}, DONE]},
    {'messages': [ASKED, SILENT | {'name': None}, YES, DONE], 'tools': [{'name': 'f', 'x': None}]},
    {'text': None, 'messages': [ASKED | {'name': 'ann'}, DONE | {'tool_calls': None}]}],
}


def write(folder, suffix, rows):
  """A file of train in one of the formats."""
  folder.mkdir()
  lines = '\n'.join(map(json.dumps, rows)).encode()
  if suffix == 'parquet':
    pyarrow, parquet = map(pytest.importorskip, ('pyarrow', 'pyarrow.parquet'))
    names = dict.fromkeys(name for row in rows for name in row)  # a table's rows have all columns
    rows = [dict.fromkeys(names) | row for row in rows]
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / 'train.parquet')
  else:
    content = gzip.compress(lines) if suffix.endswith('gz') else lines
    (folder / f'train.{suffix}').write_bytes(content)
  return folder


def without_source(example):
  assert example.meta.pop('source')
  return example


@pytest.mark.parametrize('kind', KINDS)
def test_rows_are_the_same_examples_in_every_format(kind, tmp_path):
  given, known = [], []
  for suffix in ('jsonl', 'jsonl.gz', 'parquet'):
    folder = write(tmp_path / suffix, suffix, ROWS[kind])
    given.append([without_source(e) for e in local.load('train', kind, mirror=str(folder))])
    known.append(local.kinds(str(folder)))
  assert given[0] == given[1] == given[2]
  assert known[0] == known[1] == known[2] and kind in known[0]
  assert 'None' not in str([vars(e) for e in given[0]]).replace('[1, None]', '')


def test_a_null_response_is_none(tmp_path):
  folder = write(tmp_path / 'a', 'jsonl', [{'prompt': 'p', 'response': None}])
  with pytest.raises(ValueError, match=r"found the fields \['prompt'\]"):
    local.load('train', 'demonstration', mirror=str(folder))


# --- What is learnt


@pytest.mark.parametrize('row, learnt', [
  ({'messages': [ASKED, SILENT, YES, DONE]}, ['done']),
  ({'messages': [ASKED, GREEN | {'weight': 1}, YES, DONE | {'weight': 0.0}]}, ['green?']),
  ({'prompt': [ASKED], 'response': [SILENT]}, []),
  ({'prompt': 'tea', 'chosen': [GREEN]}, ['green?'])])
def test_messages_of_weight_0_are_no_demonstrations(row, learnt):
  examples = layouts.examples(row, 'demonstration', 'here')
  assert [example.response for example in examples] == learnt
  if len(learnt) == 1 and learnt != ['green?']:
    assert SILENT in examples[0].messages  # it is in the context


@pytest.mark.parametrize('weight', [0.5, 2, -1, 'no'])
def test_other_weights_are_refused(weight):
  with pytest.raises(ValueError, match="'weight' to be 0 or 1 in here; found .*repair"):
    layouts.examples({'messages': [ASKED, GREEN | {'weight': weight}]}, 'prompt', 'here')


@pytest.mark.parametrize('source', [checkpoints.CHATML, checkpoints.GENERATION['chatml']])
def test_messages_of_weight_0_are_not_learnt_of_a_whole_chat(source, tmp_path):
  loaded = tokenizers.load(checkpoints.qwen2(tmp_path / 'hub', chat_template=source))
  template, loaded = chat.of(loaded)
  row = {'messages': [ASKED, SILENT, YES, DONE]}
  (row,), _ = encoding.encode_chats(
    layouts.examples(row, 'document', 'here'), loaded, template, max_tokens=200)
  assert loaded.decode(row['tokens'][row['loss_mask']], skip_special=False) == 'done<|im_end|>'
  assert 'green?' in loaded.decode(row['tokens'])
  nothing = layouts.examples({'messages': [ASKED, SILENT]}, 'document', 'here')
  with pytest.raises(ValueError, match="'silent': 1"):
    encoding.encode_chats(nothing, loaded, template, max_tokens=200)


def test_weights_need_a_block_a_message():
  source = ("{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}"
            "{% generation %}!{% endgeneration %}{% endfor %}")
  with pytest.raises(ValueError, match='found 4 blocks and 2 messages; .*whole_chats=false'):
    chat.Template(source, {}).spans([GREEN, SILENT])


# --- Fields that no layout has


def test_unknown_fields_stay_in_meta_and_are_named_once_a_file(tmp_path, caplog):
  rows = [{'prompt': 'p', 'answer': '4', 'reward_model': {'ground_truth': '4'}, 'meta': {'a': 1}},
          {'prompt': [ASKED | {'train': True}], 'answer': '5', 'seen': None}]
  folder = write(tmp_path / 'a', 'jsonl', rows)
  with caplog.at_level(logging.WARNING):
    for _ in range(2):
      first, second = local.load('train', 'prompt', mirror=str(folder))
  assert first.meta == {'answer': '4', 'reward_model': {'ground_truth': '4'}, 'a': 1,
                        'source': f'{folder / "train.jsonl"}, line 1'}
  assert second.meta['answer'] == '5' and second.messages[0]['train'] is True
  (said,) = [record.message for record in caplog.records if 'no layout has' in record.message]
  assert 'train.jsonl' in said and 'answer, prompt[].train, reward_model;' in said


def test_known_fields_are_not_named(tmp_path, caplog):
  for kind, rows in ROWS.items():
    unknown = set().union(*map(layouts.unknown, rows))
    assert unknown == {'demonstration': {'answer'}, 'labelled': {'extra'}}.get(kind, set())
  assert layouts.unknown({'responses': [[GREEN | {'a': 1}], [DONE | {'b': 1}]]}) == {
    'responses[][].a', 'responses[][].b'}


def test_two_values_of_one_field_are_refused():
  row = {'prompt': 'p', 'answer': '4', 'meta': {'answer': '5'}}
  with pytest.raises(ValueError, match="expected one 'answer' in here; found '4', and '5' in"):
    layouts.examples(row, 'prompt', 'here')
  assert layouts.examples(row | {'answer': '5'}, 'prompt', 'here')[0].meta['answer'] == '5'


@pytest.mark.parametrize('row', [
  {'prompt': 'a \ud800'}, {'prompt': [{'role': 'user', 'content': '\udfff'}]},
  {'prompt': 'p', 'meta': {'answer': ['\ud800']}}])
def test_text_that_no_tokenizer_reads_names_its_row(row):
  with pytest.raises(ValueError, match='expected text in here; found half of a surrogate pair'):
    layouts.examples(row, 'prompt', 'here')
