"""Special tokens in the words of a row: '<|im_end|>' in what a user says.

A tokenizer makes one token of them, here as in transformers: who writes them into a chat ends a
turn, or opens one in another's name, and a response that holds one teaches an end in its middle.
"""

import collections
import dataclasses
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from perl.data.examples import Example
from perl.data.text import dialogue
from perl.data.text.templates import Template
from perl.data.text.tokenizer import Tokenizer

_MARKUP = {*dialogue.SPECIAL_TOKENS, dialogue.END}
_MARKER = re.compile(r'<[^<>\s]{1,40}>|\[/?[A-Z_]{2,40}\]')  # what a template may write of turns
_THOUGHTS = ('<think>', '</think>')
_UNSAID = ('role', 'type', 'id', 'tool_call_id', 'weight')  # of a message


def tokens(tokenizer: Tokenizer, template: Template | None) -> tuple[str, ...]:
  """The texts that are special to a vocabulary, and the tokens that its template opens and ends
  turns with (Gemma's are pieces as others, in a SentencePiece model).
  """
  chat = [{'role': 'user', 'content': 'a'}, {'role': 'assistant', 'content': 'b'}]
  written = [text for text in _MARKER.findall(template.render(chat) if template else '')
             if tokenizer.has(text) and text not in _THOUGHTS]
  special = dict.fromkeys((*tokenizer.special, *tokenizer.special_tokens.values(), *written))
  return tuple(text for text in special if len(text) > 2 and not text.strip().isalnum())


def escaped(text: str, pattern: re.Pattern) -> str:
  """The text with a space within each special token: '< |im_end|>', the words and no token."""
  while pattern.search(text):
    text = pattern.sub(lambda match: f'{match[0][0]} {match[0][1:]}', text)
  return text


class Screen:
  """Finds the special tokens in the words of examples, and breaks them if it is to.

  Args:
    tokenizer: the vocabulary.
    template: what writes the examples, if one does: the words are then those of messages, where an
      example has some. Markers of our own markup are none of them.
    escape: break them.

  Attributes:
    counts: {token: how often it was found}.
    rows: examples that hold some.
    first: where the first of these is from, '' if it does not say.
  """

  def __init__(self, tokenizer: Tokenizer, template: Template | None, *, escape: bool):
    special = tokens(tokenizer, template)
    self._all, self._words = _any_of(special), _any_of({*special} - _MARKUP)
    self._stops = tuple(filter(None, map(tokenizer.token, tokenizer.stop_ids)))
    self._templated, self._escape = template is not None, escape
    self.counts: collections.Counter = collections.Counter()
    self.rows, self.first = 0, ''

  def __call__(self, example: Example) -> Example:
    """The example, with its special tokens broken if that is asked for."""
    before = self.counts.total()
    changed = self._screened(example)
    if self.counts.total() == before:
      return example
    self.first = self.first if self.rows else example.meta.get('source', '')
    self.rows += 1
    return dataclasses.replace(example, **changed) if self._escape else example

  def _screened(self, example: Example) -> dict[str, Any]:
    if self._templated and example.messages:
      changed = {'messages': tuple(map(self._message, example.messages))}
    else:
      first, *answers = example.TEXTS
      text = getattr(example, first)
      ours = text.startswith(dialogue.SPECIAL_TOKENS)
      changed = {first: self._text(text, self._words if ours else self._all)}
      changed |= {name: _each(getattr(example, name), self._answer) for name in answers}
    if self._templated and (tools := example.meta.get('tools')):
      changed['meta'] = example.meta | {'tools': _each(tools, self._text)}
    return changed

  def _message(self, message: dict[str, Any]) -> dict[str, Any]:
    return {name: value if name in _UNSAID else _each(value, self._text)
            for name, value in message.items()}

  def _answer(self, text: str) -> str:
    """A response; what ends it may stand there already."""
    bare = text.rstrip()
    end = next((stop for stop in self._stops if bare.endswith(stop)), '')
    if not end:
      return self._text(text)
    return self._text(bare.removesuffix(end)) + text[len(bare) - len(end):]

  def _text(self, text: str, pattern: re.Pattern | None = None) -> str:
    pattern = pattern or self._all
    if not pattern.search(text):
      return text
    self.counts.update(pattern.findall(text))
    return escaped(text, pattern) if self._escape else text


def _each(value: Any, change: Callable[[str], str]) -> Any:
  """The same value with each of its strings changed; names of fields stay."""
  if isinstance(value, str):
    return change(value)
  if isinstance(value, dict):
    return {name: _each(item, change) for name, item in value.items()}
  if isinstance(value, (list, tuple)):
    return type(value)(_each(item, change) for item in value)
  return value


def _any_of(texts: Iterable[str]) -> re.Pattern:
  """Any of these texts, the longest first; of none a pattern that finds nothing."""
  longest_first = sorted(texts, key=len, reverse=True)
  return re.compile('|'.join(map(re.escape, longest_first)) or r'(?!)')


def inner_ends(ids: Sequence[int], tokenizer: Tokenizer) -> list[int]:
  """Where tokens that end a response stand within one: it goes on after them.

  Args:
    ids: of a response, with its end or without.
    tokenizer: whose stop_ids end one.
  """
  at = [i for i, index in enumerate(ids) if index in tokenizer.stop_ids]
  if not at or (at[-1] < len(ids) - 1 and tokenizer.decode(ids[at[-1] + 1:], False).strip()):
    return at
  return at[:-1]
