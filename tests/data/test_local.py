"""The user's own files: layouts, splits, and errors that name the file and the line."""

import gzip
import json

import pytest

from perl.data.examples import KINDS, SPLITS, Demonstration, Document, Labelled, Preference, Prompt
from perl.data.sets import local
from perl.data.text import dialogue

PAIR = {'prompt': 'p', 'chosen': 'c', 'rejected': 'r'}
THUMB = {'prompt': 'p', 'response': 'r', 'label': 1}
CHAT = {'messages': [
  {'role': 'user', 'content': 'tea'}, {'role': 'assistant', 'content': 'green?'},
  {'role': 'user', 'content': 'yes'}, {'role': 'assistant', 'content': 'done'}]}
ASKED, GREEN, YES, DONE = CHAT['messages']
BLACK = {'role': 'assistant', 'content': 'black?'}
TEXT = '<|user|>tea<|agent|>'
LATER = '<|user|>tea<|agent|>green?<|eos|><|user|>yes<|agent|>'


def write(path, *rows):
  path.parent.mkdir(parents=True, exist_ok=True)
  data = '\n'.join(row if isinstance(row, str) else json.dumps(row) for row in rows).encode()
  path.write_bytes(gzip.compress(data) if path.name.endswith('.gz') else data)
  return path


def load(folder, kind, *rows, name='train.jsonl'):
  write(folder / name, *rows)
  return local.load('train', kind, mirror=str(folder))


def bare(example):
  about = ('group', 'meta', 'messages')
  return type(example)(**{k: v for k, v in vars(example).items() if k not in about})


@pytest.mark.parametrize('kind, row, expected', [
  ('document', {'text': 't'}, [Document('t')]),
  ('document', {'prompt': 'p', 'response': 'r'}, [Document('pr')]),
  ('document', PAIR, [Document('pc')]),
  ('document', CHAT, [
    Document('<|user|>tea<|agent|>green?<|eos|><|user|>yes<|agent|>done<|eos|>')]),
  ('demonstration', {'prompt': 'p', 'response': 'r'}, [Demonstration('p', 'r')]),
  ('demonstration', PAIR, [Demonstration('p', 'c')]),
  ('demonstration', THUMB, [Demonstration('p', 'r')]),
  ('demonstration', CHAT, [
    Demonstration('<|user|>tea<|agent|>', 'green?'),
    Demonstration('<|user|>tea<|agent|>green?<|eos|><|user|>yes<|agent|>', 'done')]),
  ('preference', PAIR, [Preference('p', 'c', 'r')]),
  ('preference', PAIR | {'margin': 2}, [Preference('p', 'c', 'r', 2.0)]),
  ('labelled', THUMB, [Labelled('p', 'r', 1.0)]),
  ('labelled', THUMB | {'label': False}, [Labelled('p', 'r', 0.0)]),
  ('prompt', {'prompt': 'p'}, [Prompt('p')]),
  ('prompt', PAIR, [Prompt('p')]),
  ('prompt', CHAT, [Prompt('<|user|>tea<|agent|>green?<|eos|><|user|>yes<|agent|>')])])
def test_layouts(kind, row, expected, tmp_path):
  assert list(map(bare, load(tmp_path, kind, row))) == expected


# (row, its prompt as text): the layouts of published preference data.
PAIRS = [
  ({'prompt': [ASKED], 'chosen': [GREEN], 'rejected': [BLACK]}, TEXT),
  ({'prompt': [ASKED], 'chosen': [ASKED, GREEN], 'rejected': [ASKED, BLACK]}, TEXT),
  ({'chosen': [ASKED, GREEN], 'rejected': [ASKED, BLACK]}, TEXT),
  ({'prompt': 'tea', 'chosen': [ASKED, GREEN], 'rejected': [ASKED, BLACK]}, TEXT),
  ({'prompt': 'Tea, in other words', 'chosen': [ASKED, GREEN], 'rejected': [ASKED, BLACK]}, TEXT),
  ({'prompt': 'tea', 'chosen': [GREEN], 'rejected': [BLACK]}, TEXT),
  ({'prompt': [ASKED], 'chosen': 'green?', 'rejected': 'black?'}, TEXT)]


@pytest.mark.parametrize('row, prompt', PAIRS)
def test_pairs_of_chats(row, prompt, tmp_path):
  kinds = {kind: load(tmp_path / kind, kind, row)
           for kind in ('preference', 'demonstration', 'prompt', 'document')}
  (pair,), (shown,), (asked,), (document,) = kinds.values()
  assert bare(pair) == Preference(prompt, 'green?', 'black?')
  assert pair.messages == (ASKED, GREEN, BLACK) and pair.group == 'tea'
  assert bare(shown) == Demonstration(prompt, 'green?') and shown.messages == (ASKED, GREEN)
  assert bare(asked) == Prompt(prompt) and asked.messages == (ASKED,)
  assert bare(document) == Document(f'{prompt}green?<|eos|>')
  assert document.messages == (ASKED, GREEN)


def test_a_pair_may_stand_beside_a_chat(tmp_path):
  row = {'prompt': 'tea', 'chosen': [ASKED, GREEN], 'rejected': [ASKED, BLACK], **CHAT}
  (pair,) = load(tmp_path / 'a', 'preference', row)
  assert pair.messages == (ASKED, GREEN, BLACK)
  shown = load(tmp_path / 'b', 'demonstration', row)  # of the chat, as ever
  assert [example.response for example in shown] == ['green?', 'done']


def test_pairs_share_all_but_their_last_message(tmp_path):
  row = {'chosen': [ASKED, GREEN, YES, DONE], 'rejected': [ASKED, GREEN, YES, BLACK], 'margin': 2}
  (pair,) = load(tmp_path, 'preference', row)
  assert bare(pair) == Preference(LATER, 'done', 'black?', 2.0)
  assert pair.messages == (ASKED, GREEN, YES, DONE, BLACK)


@pytest.mark.parametrize('row', [
  {'prompt': [ASKED], 'completion': [GREEN]}, {'prompt': [ASKED], 'response': [GREEN]},
  {'prompt': [ASKED], 'completion': 'green?'}, {'prompt': 'tea', 'response': [GREEN]}])
def test_labelled_chats(row, tmp_path):
  (example,) = load(tmp_path / 'a', 'labelled', row | {'label': False})
  assert bare(example) == Labelled(TEXT, 'green?', 0.0) and example.messages == (ASKED, GREEN)
  (example,) = load(tmp_path / 'b', 'demonstration', row, row | {'label': 0})
  assert bare(example) == Demonstration(TEXT, 'green?') and example.messages == (ASKED, GREEN)


def test_completion_is_another_name_of_response(tmp_path):
  row = {'prompt': 'p', 'completion': 'r', 'label': True}
  (example,) = load(tmp_path / 'a', 'labelled', row)
  assert bare(example) == Labelled('p', 'r', 1.0) and example.messages == ()
  assert [bare(e) for e in load(tmp_path / 'b', 'document', row)] == [Document('pr')]


def test_messages_stay_as_they_are(tmp_path):
  chat = [{'role': 'system', 'content': 'Be\n  brief.'},
          {'role': 'user', 'content': 'a\n\nb', 'name': 'Ann'},
          {'role': 'agent', 'content': '', 'tool_calls': [{'function': {'name': 'f'}}]},
          {'role': 'tool', 'content': '{"x": 1}'}, {'role': 'assistant', 'content': ' 2\n'}]
  row = {'messages': chat, 'tools': [{'name': 'f'}]}
  first, second = load(tmp_path / 'a', 'demonstration', row)
  assert first.messages == tuple(chat[:3]) and second.messages == tuple(chat)
  assert second.response == '2' and first.meta['tools'] == second.meta['tools'] == [{'name': 'f'}]
  (prompt,) = load(tmp_path / 'b', 'prompt', row)
  (document,) = load(tmp_path / 'c', 'document', {'messages': chat})
  assert prompt.messages == tuple(chat[:-1]) and document.messages == tuple(chat)
  assert 'tools' not in document.meta


def test_a_chat_is_known_by_what_its_user_says_first(tmp_path):
  system = {'role': 'system', 'content': 'Be brief.'}
  for number, row in enumerate([CHAT, {'messages': [system, *CHAT['messages']]},
                                {'prompt': [system, ASKED], 'completion': [GREEN]}]):
    (example, *_) = load(tmp_path / str(number), 'demonstration', row)
    assert example.group == 'tea'


@pytest.mark.parametrize('kind, row, message', [
  ('preference', {'chosen': [ASKED, GREEN], 'rejected': [YES, BLACK]},
   "expected 'chosen' to end in one message of the assistant .*found 2 messages"),
  ('preference', {'chosen': [GREEN], 'rejected': [BLACK]}, 'expected messages before the answer'),
  ('preference', {'prompt': [ASKED], 'chosen': [YES], 'rejected': [GREEN]},
   "expected 'chosen' to end in one message of the assistant"),
  ('preference', {'prompt': [ASKED], 'chosen': [GREEN]}, r'expected a row with {prompt, chosen'),
  ('labelled', {'prompt': [ASKED], 'response': [GREEN, YES, DONE], 'label': 1},
   "expected 'response' to end in one message"),
  ('labelled', {'prompt': [ASKED], 'response': [GREEN]}, r'expected a row with .*label}'),
  ('prompt', {'prompt': []}, 'expected messages before the answer .*found none'),
  ('prompt', {'prompt': [{'role': 'bot', 'content': 'x'}]}, "expected 'prompt' to be a list of"),
  ('prompt', CHAT | {'tools': '[]'}, "expected 'tools' to be a list .*found '\\[\\]'")])
def test_a_malformed_chat_is_named(kind, row, message, tmp_path):
  with pytest.raises(ValueError, match=message) as error:
    load(tmp_path, kind, row)
  assert 'train.jsonl, line 1' in str(error.value)


def test_chats_in_parquet(tmp_path):
  pyarrow = pytest.importorskip('pyarrow')
  parquet = pytest.importorskip('pyarrow.parquet')
  row = {'chosen': [ASKED, GREEN], 'rejected': [ASKED, BLACK]}
  table = pyarrow.Table.from_pylist([row, row | {'prompt': 'tea'}])
  parquet.write_table(table, tmp_path / 'train.parquet')
  pairs = local.load('train', 'preference', mirror=str(tmp_path))
  assert [bare(pair) for pair in pairs] == [Preference(TEXT, 'green?', 'black?')] * 2
  assert {pair.messages[0]['content'] for pair in pairs} == {'tea'}


def test_a_response_with_label_0_is_no_demonstration(tmp_path):
  found = load(tmp_path, 'demonstration', THUMB | {'label': 0, 'response': 'bad'}, THUMB)
  assert [example.response for example in found] == ['r']


def test_gzip_parquet_and_jsonl_are_the_same(tmp_path):
  pyarrow = pytest.importorskip('pyarrow')
  parquet = pytest.importorskip('pyarrow.parquet')
  rows = [PAIR, PAIR | {'margin': 0.5}]
  plain = load(tmp_path / 'a', 'preference', *rows)
  zipped = load(tmp_path / 'b', 'preference', *rows, name='train.jsonl.gz')
  (tmp_path / 'c').mkdir()
  table = pyarrow.Table.from_pylist([PAIR | {'margin': None}, rows[1]])
  parquet.write_table(table, tmp_path / 'c/train.parquet')
  columns = local.load('train', 'preference', mirror=str(tmp_path / 'c'))
  assert list(map(bare, plain)) == list(map(bare, zipped)) == list(map(bare, columns))


def test_a_folder_for_a_kind_comes_first(tmp_path):
  write(tmp_path / 'train.jsonl', {'prompt': 'top'})
  write(tmp_path / 'prompt/train.jsonl', {'prompt': 'own'})
  (example,) = local.load('train', 'prompt', mirror=str(tmp_path))
  assert example.prompt == 'own'


def test_one_file_is_split_by_prompt(tmp_path):
  rows = [{'prompt': f'P {i // 2}', 'response': str(i)} for i in range(200)]
  file = write(tmp_path / 'all.jsonl', *rows)
  found = {split: local.load(split, 'demonstration', mirror=str(file)) for split in SPLITS}
  assert sum(map(len, found.values())) == 200
  for split, examples in found.items():
    assert all(dialogue.split_of(example.group) == split for example in examples)
  assert not {e.prompt for e in found['train']} & {e.prompt for e in found['test']}


def test_groups_and_meta_of_the_user_are_kept(tmp_path):
  (example,) = load(tmp_path, 'prompt', {'prompt': 'p', 'group': 'g', 'meta': {'answer': '4'}})
  assert example.meta['answer'] == '4'
  assert example.group == 'g' and example.meta['source'].endswith('train.jsonl, line 1')


@pytest.mark.parametrize('kind, row, message', [
  ('prompt', '{"prompt": ', 'expected a JSON object .*line 3, found .*repair or delete'),
  ('prompt', '[1]', 'expected a JSON object .*line 3, found .1'),
  ('prompt', {'prompt': 'p', 'meta': 3}, "expected 'meta' to be an object .*line 3; found 3"),
  ('prompt', {'prompt': 3}, "expected 'prompt' to be a string .*line 3; found 3"),
  ('prompt', {'text': 't'}, r"expected a row with {prompt} .*line 3; found the fields \['text'\]"),
  ('preference', THUMB, 'expected a row with {prompt, chosen, rejected} .*line 3; found'),
  ('preference', PAIR | {'margin': -1}, "expected 'margin' to be >= 0 .*line 3; found -1"),
  ('preference', CHAT, 'expected a row with {prompt, chosen, rejected} .*line 3'),
  ('labelled', THUMB | {'label': 'up'}, "expected 'label' to be 0, 1, .*line 3; found 'up'"),
  ('labelled', THUMB | {'label': 0.5}, "expected 'label' .*line 3; found 0.5"),
  ('document', {'messages': [{'role': 'bot', 'content': 'x'}]}, "expected 'messages' .*line 3"),
  ('document', {'messages': 'hello'}, "expected 'messages' .*line 3")])
def test_a_malformed_row_is_named(kind, row, message, tmp_path):
  good = {'prompt': PAIR, 'preference': PAIR, 'labelled': THUMB, 'document': CHAT}[kind]
  with pytest.raises(ValueError, match=message) as error:
    load(tmp_path, kind, good, '', row)  # the empty line counts
  assert str(tmp_path / 'train.jsonl') in str(error.value)


def test_bytes_that_are_no_text(tmp_path):
  (tmp_path / 'train.jsonl').write_bytes(b'{"prompt": "\xff"}')
  with pytest.raises(ValueError, match=r'train.jsonl, line 1.*utf-8'):
    local.load('train', 'prompt', mirror=str(tmp_path))


def test_broken_files(tmp_path):
  whole = write(tmp_path / 'train.jsonl.gz', *[PAIR] * 50).read_bytes()
  (tmp_path / 'train.jsonl.gz').write_bytes(whole[:-12])
  with pytest.raises(ValueError, match='whole gzip file .*train.jsonl.gz'):
    local.load('train', 'prompt', mirror=str(tmp_path))
  (tmp_path / 'all.parquet').write_bytes(b'no parquet')
  with pytest.raises(ValueError, match='Parquet file in .*all.parquet'):
    local.load('train', 'prompt', mirror=str(tmp_path / 'all.parquet'))


@pytest.mark.parametrize('kind', list(KINDS))
def test_an_empty_split(kind, tmp_path):
  with pytest.raises(ValueError, match=f"kind '{kind}' in split 'train'; found none .*train.jsonl"):
    load(tmp_path, kind, '')


def test_paths_that_hold_nothing(tmp_path):
  with pytest.raises(ValueError, match='set data.mirror'):
    local.load('train', 'prompt')
  write(tmp_path / 'train.jsonl', PAIR)
  with pytest.raises(FileNotFoundError, match=r'expected dev.jsonl.*found train.jsonl; add'):
    local.load('dev', 'prompt', mirror=str(tmp_path))
  with pytest.raises(FileNotFoundError, match='found no such file'):
    local.load('dev', 'prompt', mirror=str(tmp_path / 'nowhere'))
  with pytest.raises(ValueError, match='expected a file that ends in .jsonl'):
    local.load('dev', 'prompt', mirror=str(write(tmp_path / 'data.csv', 'a,b')))
