"""Regular expressions that come from files, matched in time that grows with the text alone.

A pattern of a stranger, in an adapter's config or in a row, may take Python's `re` longer than
anybody waits: '([a-z0-9_.]+)+!' tries 2^n ways through n letters. RE2 (github.com/google/re2),
which pyarrow brings, tries all at once. It has what `re` has but look-around and back references,
and bounds the memory of a pattern; what it does not take is refused.
"""

from collections.abc import Sequence

from perl import documents

MOST_CHARACTERS = 10_000


def check(pattern: object, where: str) -> str:
  """The pattern, if it is a regular expression.

  Args:
    pattern: as it was read.
    where: what it stands in, for the error.

  Raises:
    ValueError: it is none, or asks for look-around or for back references.
  """
  documents.check(pattern, documents.TEXT, 'a regular expression', where, error=ValueError)
  if len(pattern) > MOST_CHARACTERS:
    raise ValueError(f'expected a regular expression of at most {MOST_CHARACTERS:,} characters in '
                     f'{where}, found {len(pattern):,}; shorten it')
  _matches([''], pattern, pattern, where)
  return pattern


def matching(
  pattern: str, texts: Sequence[str], where: str, *, before: str = '', flags: str = ''
) -> list[bool]:
  """Whether the pattern matches each text whole.

  Args:
    pattern: a regular expression.
    texts: any.
    where: what the pattern stands in, for the error.
    before: a pattern of ours that may stand before a match: '(.*/)?'.
    flags: of RE2: 's' lets '.' be a line break too.

  Raises:
    ValueError: as `check`.
  """
  whole = f'^(?:{before}(?:{check(pattern, where)}))$'
  return _matches(texts, f'(?{flags}:{whole})' if flags else whole, pattern, where)


def _matches(texts: Sequence[str], expression: str, pattern: str, where: str) -> list[bool]:
  import pyarrow
  import pyarrow.compute  # here: heavy

  whole = [text.encode('utf-8', 'replace').decode() for text in texts]  # halves of characters: ?
  try:
    return pyarrow.compute.match_substring_regex(
      pyarrow.array(whole, pyarrow.string()), expression).to_pylist()
  except (pyarrow.ArrowException, UnicodeEncodeError) as error:
    raise ValueError(
      f'expected a regular expression (RE2: no look-around, no back references) in {where}, found '
      f'{documents.shown(pattern)} ({error}); write it in other words') from error
