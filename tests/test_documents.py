"""JSON of files: within bounds, of the kind that is asked for, or an error that says what is."""

import math

import pytest

from perl import documents, patterns
from perl.documents import FLAG, OBJECT, TEXT, Fields, Malformed, items, mapping, number, whole


def test_json_is_read_as_it_stands(tmp_path):
  (tmp_path / 'a').write_text('{"a": [1, 2.5, null, "\\ud83d\\ude00"], "b": {}}')
  assert documents.read(tmp_path / 'a') == {'a': [1, 2.5, None, '😀'], 'b': {}}
  deep = '[' * documents.MOST_DEPTH + ']' * documents.MOST_DEPTH
  assert documents.parse(deep, 'here')


@pytest.mark.parametrize('content, why', [
  (b'', 'Expecting value'), (b'{"a": 1', 'delimiter'), (b'\xff\xfe', 'utf-8'),
  (b'\xef\xbb\xbf1', 'BOM'),
  (b'[' * 10**6, 'lists in lists'), (b'{"a":' * 10**5, 'lists in lists'),
  (b'[' * 65 + b']' * 65, 'deeper than 64'), (b'"\\ud800"', 'surrogates'),
  (b'{"a\\udc00": 1}', 'surrogates'), (b'1' * 5000, 'digits'),
])
def test_what_is_no_json_is_refused_and_named(content, why):
  with pytest.raises(Malformed, match=f'expected JSON in file.json, found .*{why}.*; repair'):
    documents.parse(content, 'file.json')


def test_a_file_larger_than_any_is_not_read(tmp_path):
  (tmp_path / 'a').write_bytes(b' ' * 100)
  with pytest.raises(Malformed, match='expected at most 99 bytes in .*a, found more'):
    documents.read_bytes(tmp_path / 'a', most=99)


@pytest.mark.parametrize('kind, right, wrong', [
  (whole(1, 8), [1, 8], [0, 9, True, 1.0, '1', None, [1], 10**30]),
  (number(0, 1), [0, 1, 0.5], [-1, 1.5, True, math.nan, math.inf, '0', None]),
  (FLAG, [True, False], [0, 1, 'true', None]), (TEXT, ['', 'a'], [1, None, b'a', ['a']]),
  (items(whole(), 2), [[], [1, 2]], [[1, 2, 3], ['a'], {}, 'ab', None]),
  (mapping(whole(), 2), [{}, {'a': 1}], [{'a': 'b'}, [1], dict(a=1, b=2, c=3)]),
  (documents.one_of(1, 'a', None), [1, 'a', None], [True, 1.0, 'b', 0]),
  (documents.either(TEXT, FLAG), ['a', True], [1, None]),
  (documents.record(a=whole(), b=documents.either(TEXT, documents.NULL)),
   [{'a': 1}, {'a': 1, 'b': 'x', 'c': 3}], [{}, {'a': 'x'}, {'a': 1, 'b': 2}, [1]]),
])
def test_kinds(kind, right, wrong):
  assert all(map(kind.fits, right)) and not any(map(kind.fits, wrong))
  for value in wrong:
    with pytest.raises(Malformed, match='expected x to be .* in f, found .*; repair'):
      documents.check(value, kind, 'x', 'f')


def test_fields():
  fields = Fields({'a': 3, 'b': None}, 'f', remedy='do it again', error=KeyError)
  assert fields.get('a', whole()) == 3 and fields.get('b', TEXT, 'x') == 'x' and fields.has('b')
  for ask in (lambda: fields.get('a', TEXT), lambda: fields.need('b', TEXT),
              lambda: fields.need('c', OBJECT)):
    with pytest.raises(KeyError, match='expected .* in f, found .*; do it again'):
      ask()


# --- Patterns


def test_a_pattern_matches_whole_in_linear_time():
  names = ['model.layers.0.self_attn.q_proj' * 100, 'q_proj', 'a\nb', '\ud800']
  match = lambda pattern, **more: patterns.matching(pattern, names, 'f', **more)
  assert match('([a-z0-9_.]+)+!') == [False] * 4  # 2^n steps for one that backtracks
  assert match('q_proj|q') == [False, True, False, False]
  assert match('q_proj', before=r'(?:.*\.)?') == [True, True, False, False]
  assert match('a.b') == [False] * 4 and match('a.b', flags='s') == [False, False, True, False]


@pytest.mark.parametrize('pattern', [
  '(', 'a)|(b', '(?=a)', r'(a)\1', 'a{1000}{1000}', '((a{999}){999}){999}', 'a' * 10_001, 3, None,
  '\ud800',
])
def test_what_is_no_pattern_is_refused(pattern):
  with pytest.raises(ValueError, match='(?s)expected a regular expression.* in f, found'):
    patterns.check(pattern, 'f')
