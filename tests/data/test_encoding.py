"""Rows: where bos and eos go, what is learnt, and what happens to the overlong."""

import checkpoints
import numpy as np
import pytest
from letters import BOS, EOS, Letters

from perl.data.batches import encoding
from perl.data.batches.encoding import encode
from perl.data.examples import Demonstration, Document, Labelled, Preference, Prompt
from perl.data.text import chat
from perl.data.text import tokenizer as tokenizers

NO_BOS = Letters(bos_id=EOS, adds_bos=False)
UNUSED_BOS = Letters(adds_bos=False)


def rows_of(kind, *examples, prompt=4, response=3, overlong='filter', tokenizer=Letters()):  # noqa: B008
  return encode(examples, tokenizer, kind=kind, max_prompt_tokens=prompt,
                max_response_tokens=response, overlong=overlong)


def test_demonstration_learns_response_and_eos_only():
  (row,), counts = rows_of('demonstration', Demonstration('abc', 'de'))
  np.testing.assert_array_equal(row['tokens'], [BOS, 10, 11, 12, 13, 14, EOS])
  np.testing.assert_array_equal(row['loss_mask'], [0, 0, 0, 0, 1, 1, 1])
  assert row['tokens'].dtype == np.int32 and row['loss_mask'].dtype == bool and row['index'] == 0
  assert counts == {'examples': 1, 'rows': 1, 'filtered': 0, 'truncated_prompts': 0,
                    'truncated_responses': 0, 'identical_pairs': 0}


def test_document_learns_everything_but_bos():
  (row,), _ = rows_of('document', Document('ab'))
  np.testing.assert_array_equal(row['tokens'], [BOS, 10, 11, EOS])
  np.testing.assert_array_equal(row['loss_mask'], [0, 1, 1, 1])


def test_a_document_that_ends_in_eos_gets_no_second():
  (row,), _ = rows_of('document', Document('ab.'))
  np.testing.assert_array_equal(row['tokens'], [BOS, 10, 11, EOS])


def test_windows_hold_every_token_of_a_document_once():
  text = 'abcdefghijklmnop'
  rows, counts = rows_of('document', Document('a'), Document(text))
  assert counts['rows'] == 4 and counts['examples'] == 2
  assert [row['index'] for row in rows] == [0, 1, 1, 1]
  windows = [row['tokens'] for row in rows[1:]]
  assert all(len(window) <= 7 and window[0] == BOS for window in windows)
  np.testing.assert_array_equal(np.concatenate([window[1:] for window in windows]),
                                [*range(10, 26), EOS])


def test_truncation_keeps_the_last_of_the_prompt_and_the_first_of_the_response():
  rows, counts = rows_of('labelled', Labelled('abcde', 'fghi', 1.0), Labelled('a', 'bc', 0.0),
                         overlong='truncate')
  np.testing.assert_array_equal(rows[0]['tokens'], [BOS, 12, 13, 14, 15, 16, 17])  # no eos
  np.testing.assert_array_equal(rows[1]['tokens'], [BOS, 10, 11, 12, EOS])
  assert [row['label'] for row in rows] == [1.0, 0.0]
  assert (counts['truncated_prompts'], counts['truncated_responses']) == (1, 1)


def test_filter_counts_and_keeps_the_index():
  rows, counts = rows_of('labelled', Labelled('abcd', 'e', 1.0), Labelled('a', 'bcd', 1.0),
                         Labelled('a', 'b', 0.0))
  assert [row['index'] for row in rows] == [2]
  assert counts['filtered'] == 2 and counts['truncated_prompts'] == 0 and counts['rows'] == 1


def test_preference_and_prompt():
  (pair,), _ = rows_of('preference', Preference('a', 'b', 'cd', margin=0.5))
  np.testing.assert_array_equal(pair['chosen'], [BOS, 10, 11, EOS])
  np.testing.assert_array_equal(pair['rejected'], [BOS, 10, 12, 13, EOS])
  assert pair['margin'] == 0.5
  (prompt,), _ = rows_of('prompt', Prompt('ab'))
  np.testing.assert_array_equal(prompt['tokens'], [BOS, 10, 11])


def test_pairs_that_truncation_makes_equal_are_left_out_and_counted():
  rows, counts = rows_of('preference', Preference('a', 'bcde', 'bcdf'), Preference('a', 'b', 'c'),
                         overlong='truncate')
  assert [row['index'] for row in rows] == [1] and counts['identical_pairs'] == 1


def test_a_prompt_that_begins_with_bos_gets_no_second():
  (row,), _ = rows_of('demonstration', Demonstration('^ab', 'c'))
  np.testing.assert_array_equal(row['tokens'], [BOS, 10, 11, 12, EOS])
  np.testing.assert_array_equal(row['loss_mask'], [0, 0, 0, 1, 1])
  (row,), _ = rows_of('document', Document('^ab'))
  np.testing.assert_array_equal(row['tokens'], [BOS, 10, 11, EOS])
  (row,), _ = rows_of('prompt', Prompt('^a^'))  # only what opens it is one too many
  np.testing.assert_array_equal(row['tokens'], [BOS, 10, BOS])


def test_a_response_that_ends_in_eos_gets_no_second():
  (row,), counts = rows_of('demonstration', Demonstration('a', 'bc.'))
  np.testing.assert_array_equal(row['tokens'], [BOS, 10, 11, 12, EOS])
  assert counts['truncated_responses'] == 0
  pairs, counts = rows_of('preference', Preference('a', 'b', 'b.'), Preference('a', 'b', 'c'))
  assert counts['identical_pairs'] == 1 and [pair['index'] for pair in pairs] == [1]


@pytest.mark.parametrize('tokenizer', [NO_BOS, UNUSED_BOS])
def test_a_tokenizer_without_bos_gives_its_tokens_alone(tokenizer):
  (row,), _ = rows_of('demonstration', Demonstration('abcd', 'de'), tokenizer=tokenizer)
  np.testing.assert_array_equal(row['tokens'], [10, 11, 12, 13, 13, 14, EOS])
  np.testing.assert_array_equal(row['loss_mask'], [0, 0, 0, 0, 1, 1, 1])
  (pair,), _ = rows_of('preference', Preference('a', 'b', 'cd'), tokenizer=tokenizer)
  np.testing.assert_array_equal(pair['rejected'], [10, 12, 13, EOS])
  assert pair['prompt_tokens'] == 1
  (row,), counts = rows_of('prompt', Prompt('abcdef'), tokenizer=tokenizer, overlong='truncate')
  np.testing.assert_array_equal(row['tokens'], [12, 13, 14, 15])
  assert counts['truncated_prompts'] == 1


@pytest.mark.parametrize('tokenizer', [Letters(), UNUSED_BOS])
def test_truncation_keeps_the_bos_of_the_text(tokenizer):
  (row,), _ = rows_of('prompt', Prompt('^abcdef'), tokenizer=tokenizer, overlong='truncate')
  np.testing.assert_array_equal(row['tokens'], [BOS, 13, 14, 15])


@pytest.mark.parametrize('tokenizer', [Letters(), NO_BOS, UNUSED_BOS])
def test_there_is_always_a_token_before_what_is_learnt(tokenizer):
  # Where there is no bos, the id that stands in for it is before what has nothing else before it.
  (row,), _ = rows_of('demonstration', Demonstration('', 'a'), tokenizer=tokenizer)
  np.testing.assert_array_equal(row['tokens'], [tokenizer.bos_id, 10, EOS])
  np.testing.assert_array_equal(row['loss_mask'], [0, 1, 1])
  (row,), _ = rows_of('document', Document(''), tokenizer=tokenizer)
  np.testing.assert_array_equal(row['tokens'], [tokenizer.bos_id, EOS])
  np.testing.assert_array_equal(row['loss_mask'], [0, 1])


@pytest.mark.parametrize('tokenizer', [NO_BOS, UNUSED_BOS])
@pytest.mark.parametrize('length', [1, 5, 6, 7, 12, 13, 26])
def test_without_bos_every_token_but_the_first_is_learnt_once(tokenizer, length):
  text = 'abcdefghijklmnopqrstuvwxyz'[:length]
  rows, _ = rows_of('document', Document(text), tokenizer=tokenizer)
  ids = [*range(10, 10 + length), EOS]
  assert all(2 <= len(row['tokens']) <= 7 for row in rows)
  learnt = np.concatenate([row['tokens'][row['loss_mask']] for row in rows])
  np.testing.assert_array_equal(learnt, ids[1:])
  before = [row['tokens'][0] for row in rows]
  assert before == ids[0:-1:6]  # the token of the text that stands before each window
  assert all(row['loss_mask'].tolist() == [False] + [True] * (len(row['tokens']) - 1)
             for row in rows)


def test_errors():
  with pytest.raises(ValueError, match=r'expected rows .*found none left of 1.*raise'):
    rows_of('prompt', Prompt('abcdefg'))
  with pytest.raises(ValueError, match="'filter' or 'truncate'; found 'drop'"):
    rows_of('prompt', Prompt('a'), overlong='drop')
  with pytest.raises(ValueError, match='expected examples of kind prompt; found a Document at 1'):
    rows_of('prompt', Prompt('a'), Document('b'))
  with pytest.raises(ValueError, match="expected a kind .*found 'pairs'"):
    rows_of('pairs', Prompt('a'))
  with pytest.raises(ValueError, match='max_prompt_tokens >= 2'):
    rows_of('prompt', Prompt('a'), prompt=1)


# --- Whole chats


def chats(tmp_path):
  """(a ChatML tokenizer, its template, two chats of two turns each)."""
  made = tokenizers.load(checkpoints.qwen2(tmp_path / 'hub', chat_template=checkpoints.CHATML))
  template, stopping = chat.of(made)
  talk = [('user', 'an oat latte please'), ('assistant', 'hot or iced?'), ('user', 'hot'),
          ('assistant', 'done')]
  messages = tuple({'role': role, 'content': content} for role, content in talk)
  ours = '<|user|>one more tea<|agent|>with milk?<|eos|><|user|>yes<|agent|>ok<|eos|>'
  return stopping, template, [Document('', messages=messages), Document(ours)]


def test_a_whole_chat_is_learnt_where_the_assistant_speaks(tmp_path):
  """The learnt tokens are those of the rows that have a turn each, and none twice."""
  tokenizer, template, documents = chats(tmp_path)
  rows, counts = encoding.encode_chats(documents, tokenizer, template, max_tokens=500)
  assert counts == {'examples': 2, 'rows': 2, 'filtered': 0, 'truncated': 0, 'silent': 0}
  said = [tokenizer.decode(row['tokens'][row['loss_mask']], skip_special=False) for row in rows]
  assert said == ['hot or iced?<|im_end|>done<|im_end|>', 'with milk?<|im_end|>ok<|im_end|>']
  messages = documents[0].messages
  turns = [chat.apply(template, Demonstration('', '', messages=messages[:n])) for n in (2, 4)]
  each, _ = encode(turns, tokenizer, kind='demonstration', max_prompt_tokens=300,
                   max_response_tokens=200)
  assert rows[0]['tokens'][: len(each[-1]['tokens'])].tolist() == each[-1]['tokens'].tolist()
  learnt = np.zeros(len(rows[0]['tokens']), bool)
  for row in each:
    learnt[: len(row['tokens'])] |= row['loss_mask']
  np.testing.assert_array_equal(learnt, rows[0]['loss_mask'])


def test_chats_that_are_too_long_or_say_nothing(tmp_path):
  tokenizer, template, documents = chats(tmp_path)
  silent = Document('', messages=({'role': 'user', 'content': 'hello?'},))
  documents = [*documents, silent, Document('plain text')]
  length = len(encoding.encode_chats(
    documents, tokenizer, template, max_tokens=500)[0][1]['tokens'])
  rows, counts = encoding.encode_chats(documents, tokenizer, template, max_tokens=length)
  assert [row['index'] for row in rows] == [1] and counts['filtered'] == 1
  assert counts['silent'] == 2
  rows, counts = encoding.encode_chats(
    documents, tokenizer, template, max_tokens=length, overlong='truncate')
  assert [len(row['tokens']) for row in rows] == [length, length] and counts['truncated'] == 1
  with pytest.raises(ValueError, match='sft.whole_chats'):
    encoding.encode_chats([silent], tokenizer, template, max_tokens=length)
