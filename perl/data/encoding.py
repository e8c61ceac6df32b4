"""Examples to rows of token ids: [bos] + prompt, response + [eos], within stated lengths.

A prompt opens with bos if the tokenizer puts it there (`adds_bos`) or its text has it, once; eos
ends what does not end in it yet.

A row is a dict of numpy arrays of one example, not yet padded, with `index`, the position of the
example in its list:
  document, demonstration  tokens i32[n], loss_mask bool[n]
  preference               chosen i32[n], rejected i32[m], margin float
  labelled                 tokens i32[n], label float
  prompt                   tokens i32[n]
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from perl.data import chat
from perl.data.examples import KINDS, Document, Example
from perl.data.tokenizer import Tokenizer

Row = dict[str, Any]


class _Limits:
  """Cuts prompts and responses to length, or refuses them, and counts what it did."""

  def __init__(self, tokenizer: Tokenizer, prompt_tokens: int, response_tokens: int, overlong: str):
    if prompt_tokens < 2 or response_tokens < 1:
      raise ValueError(
        'encode: expected max_prompt_tokens >= 2 (bos and a token) and max_response_tokens >= 1 '
        f'(eos); found {prompt_tokens} and {response_tokens}; raise them')
    if overlong not in ('filter', 'truncate'):
      raise ValueError(f"encode: expected overlong to be 'filter' or 'truncate'; found "
                       f"{overlong!r}; set data.overlong to one of these")
    self._bos, self._eos = [tokenizer.bos_id], [tokenizer.eos_id]
    self._adds_bos = tokenizer.adds_bos
    self._prompt_tokens, self._response_tokens = prompt_tokens, response_tokens
    self.window = prompt_tokens + response_tokens
    self._filter = overlong == 'filter'
    self.counts = {'examples': 0, 'rows': 0, 'filtered': 0, 'truncated_prompts': 0,
                   'truncated_responses': 0, 'identical_pairs': 0}

  def prompt(self, ids: list[int]) -> list[int]:
    """[bos] + ids; of an overlong prompt bos and the last tokens: the latest turns matter most."""
    opening, ids = self._opened(ids)
    room = self._prompt_tokens - len(opening)
    if len(ids) > room:
      self._count('truncated_prompts')
      ids = ids[-room:]
    return opening + ids

  def response(self, ids: list[int]) -> list[int]:
    """The ids and eos; an overlong response keeps its start, without eos: it did not end there."""
    ids = self._ended(ids)
    if len(ids) > self._response_tokens:
      self._count('truncated_responses')
      ids = ids[:self._response_tokens]
    return ids

  def windows(self, ids: list[int]) -> list[list[int]]:
    """A document cut into pieces, each opened by one token of context.

    That is bos, and the pieces together hold every other token once. Of a tokenizer that adds none
    it is the token before the piece, so that every token but the first is learnt once.
    """
    opening, ids = self._opened(self._ended(ids), least=2)
    if not self._adds_bos:
      opening, ids = [], opening + ids
    room = self.window - 1
    first = 1 - len(opening)
    return [(opening or ids[start - 1:start]) + ids[start:start + room]
            for start in range(first, len(ids), room)]

  def _opened(self, ids: list[int], least: int = 1) -> tuple[list[int], list[int]]:
    """(bos or nothing, the other ids); bos stands in where there are fewer ids than `least`."""
    has_bos = ids[:1] == self._bos and len(ids) >= least
    opens = has_bos or self._adds_bos or len(ids) < least
    return self._bos if opens else [], ids[1:] if has_bos else ids

  def _ended(self, ids: list[int]) -> list[int]:
    return ids if ids[-1:] == self._eos else ids + self._eos

  def _count(self, what: str) -> None:
    if self._filter:
      raise _Overlong
    self.counts[what] += 1


class _Overlong(Exception):
  """The example is to be left out."""


def _language_row(prompt: list[int], response: list[int]) -> Row:
  loss_mask = np.arange(len(prompt) + len(response)) >= len(prompt)
  return {'tokens': np.array(prompt + response, np.int32), 'loss_mask': loss_mask}


def _rows(kind: str, example: Example, ids: dict[str, list[int]], limits: _Limits) -> list[Row]:
  """The rows of one example: several for a long document, none for a pair that says nothing."""
  if kind == 'document':
    return [_language_row(window[:1], window[1:]) for window in limits.windows(ids['text'])]
  prompt = limits.prompt(ids['prompt'])
  if kind == 'demonstration':
    return [_language_row(prompt, limits.response(ids['response']))]
  if kind == 'labelled':
    tokens = np.array(prompt + limits.response(ids['response']), np.int32)
    return [{'tokens': tokens, 'label': float(example.label), 'prompt_tokens': len(prompt)}]
  if kind == 'prompt':
    return [{'tokens': np.array(prompt, np.int32)}]
  chosen, rejected = limits.response(ids['chosen']), limits.response(ids['rejected'])
  if chosen == rejected:
    limits.counts['identical_pairs'] += 1
    return []
  return [{'chosen': np.array(prompt + chosen, np.int32),
           'rejected': np.array(prompt + rejected, np.int32), 'margin': float(example.margin),
           'prompt_tokens': len(prompt)}]


_TEXTS = {
  'document': ('text',),
  'demonstration': ('prompt', 'response'),
  'preference': ('prompt', 'chosen', 'rejected'),
  'labelled': ('prompt', 'response'),
  'prompt': ('prompt',),
}


def encode(examples: Sequence[Example], tokenizer: Tokenizer, *, kind: str, max_prompt_tokens: int,
           max_response_tokens: int, overlong: str = 'filter') -> tuple[list[Row], dict[str, int]]:
  """Encodes examples of one kind.

  Args:
    kind: 'document', 'demonstration', 'preference', 'labelled' or 'prompt'.
    max_prompt_tokens: longest prompt, bos included.
    max_response_tokens: longest response, eos included. Documents are cut into windows of the sum.
    overlong: 'filter' leaves an example with an overlong prompt or response out; 'truncate' keeps
      the last tokens of the prompt and the first ones of the response. No document is overlong.

  Returns:
    rows, and counts: examples, rows, filtered, truncated_prompts, truncated_responses,
    identical_pairs (left out: chosen and rejected have the same ids, perhaps after truncation).

  Raises:
    ValueError: an example of another kind, impossible lengths, an unknown policy, or no rows left.
  """
  limits = _Limits(tokenizer, max_prompt_tokens, max_response_tokens, overlong)
  _check_kind(examples, kind)
  columns = [tokenizer.encode_batch([getattr(example, name) for example in examples])
             for name in _TEXTS[kind]]
  rows = []
  for index, (example, *ids) in enumerate(zip(examples, *columns)):
    before = dict(limits.counts)
    try:
      found = _rows(kind, example, dict(zip(_TEXTS[kind], ids)), limits)
    except _Overlong:
      limits.counts.update(before, filtered=before['filtered'] + 1)
      continue
    rows += [{'index': index, **row} for row in found]
  limits.counts.update(examples=len(examples), rows=len(rows))
  if not rows:
    raise ValueError(f'encode: expected rows of kind {kind}; found none left of {len(examples)} '
                     f'examples ({limits.counts}); raise data.max_prompt_tokens and '
                     "data.max_response_tokens, or set data.overlong to 'truncate'")
  return rows, limits.counts


def encode_chats(documents: Sequence[Document], tokenizer: Tokenizer, template: chat.Template, *,
                 max_tokens: int, overlong: str = 'filter') -> tuple[list[Row], dict[str, int]]:
  """Whole chats as demonstrations: a row a chat, in which every turn of the assistant is learnt.

  Args:
    documents: chats (`messages`, or our markup in `text`).
    tokenizer, template: see chat.of.
    max_tokens: the longest row.
    overlong: 'filter' leaves a longer chat out; 'truncate' keeps its first tokens.

  Returns:
    rows of kind demonstration (tokens, loss_mask, index), and counts: examples, rows, filtered,
    truncated, silent (left out: no turn of the assistant is left to learn).

  Raises:
    ValueError: the template refuses a chat, or no rows are left.
  """
  counts = {'examples': len(documents), 'rows': 0, 'filtered': 0, 'truncated': 0, 'silent': 0}
  rows = []
  for index, document in enumerate(documents):
    ids, said = chat.encode_document(tokenizer, template, document)
    if len(ids) > max_tokens:
      counts['filtered' if overlong == 'filter' else 'truncated'] += 1
      if overlong == 'filter':
        continue
    tokens, loss_mask = np.array(ids[:max_tokens], np.int32), np.array(said[:max_tokens], bool)
    loss_mask[:1] = False  # nothing comes before it
    if not loss_mask.any():
      counts['silent'] += 1
      continue
    rows.append({'index': index, 'tokens': tokens, 'loss_mask': loss_mask})
  counts['rows'] = len(rows)
  if not rows:
    raise ValueError(f'encode: expected chats with turns of the assistant; found none left '
                     f'({counts}); raise data.max_prompt_tokens and data.max_response_tokens, or '
                     'set sft.whole_chats to false')
  return rows, counts


def _check_kind(examples: Sequence[Example], kind: str) -> None:
  if kind not in KINDS:
    raise ValueError(f'encode: expected a kind among {", ".join(KINDS)}; found {kind!r}; '
                     'ask for one of these')
  for index, example in enumerate(examples):
    if not isinstance(example, KINDS[kind]):
      raise ValueError(f'encode: expected examples of kind {kind}; found a '
                       f'{type(example).__name__} at {index}; load them with kind={kind!r}')
