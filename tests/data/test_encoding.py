"""Rows: where bos and eos go, what is learnt, and what happens to the overlong."""

import dataclasses

import numpy as np
import pytest

from perl.data.encoding import encode
from perl.data.examples import Demonstration, Document, Labelled, Preference, Prompt

BOS, EOS = 1, 2


@dataclasses.dataclass
class Letters:
  """a is 10, b is 11, ...; '.' is eos."""

  bos_id: int = BOS
  eos_id: int = EOS
  pad_id: int = EOS

  def encode_batch(self, texts):
    return [[EOS if c == '.' else ord(c) - ord('a') + 10 for c in text] for text in texts]


def rows_of(kind, *examples, prompt=4, response=3, overlong='filter'):
  return encode(examples, Letters(), kind=kind, max_prompt_tokens=prompt,
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
