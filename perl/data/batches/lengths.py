"""Longest prompts and responses: what `encode` does with those beyond, and how often."""

import numpy as np

from perl.data.text import special_text
from perl.data.text.tokenizer import Tokenizer


class Limits:
  """Cuts prompts and responses to length, or refuses them, and counts what it did.

  Attributes:
    window: the longest row.
    responses: K, of a ranking.
    counts: what `encode` returns.
  """

  def __init__(self, tokenizer: Tokenizer, prompt_tokens: int, response_tokens: int, overlong: str,
               responses: int | None = None):
    if prompt_tokens < 2 or response_tokens < 1:
      raise ValueError(
        'encode: expected max_prompt_tokens >= 2 (bos and a token) and max_response_tokens >= 1 '
        f'(eos); found {prompt_tokens} and {response_tokens}; raise them')
    if overlong not in ('filter', 'truncate'):
      raise ValueError(f"encode: expected overlong to be 'filter' or 'truncate'; found "
                       f"{overlong!r}; set data.overlong to one of these")
    self._tokenizer = tokenizer
    self._bos, self._eos = [tokenizer.bos_id], [tokenizer.eos_id]
    self._stops = tokenizer.stop_ids
    self._adds_bos = tokenizer.adds_bos
    self._prompt_tokens, self._response_tokens = prompt_tokens, response_tokens
    self.window = prompt_tokens + response_tokens
    self._filter = overlong == 'filter'
    self.counts = {'examples': 0, 'rows': 0, 'filtered': 0, 'truncated_prompts': 0,
                   'truncated_responses': 0, 'identical_pairs': 0}
    if responses is not None:
      if responses < 2:
        raise ValueError(f'encode: expected responses >= 2 of a ranking; found {responses}; '
                         'raise reward.responses')
      self.counts['surplus_responses'] = 0
    self.responses = responses

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

  def inner_ends(self, ids: list[int]) -> list[int]:
    """Where a response holds what would end it, and goes on; counted, where there are some."""
    ends = special_text.inner_ends(ids, self._tokenizer)
    if ends:
      self.counts['inner_ends'] = self.counts.get('inner_ends', 0) + len(ends)
    return ends

  def spread(self, responses: list[list[int]]) -> list[list[int]]:
    """K of a ranking: the best, the worst, and the others evenly between them."""
    if len(responses) <= self.responses:
      return responses
    self.counts['surplus_responses'] += len(responses) - self.responses
    kept = np.linspace(0, len(responses) - 1, self.responses).round().astype(int)
    return [responses[i] for i in kept]

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
    """The ids and eos; what ends in another token that ends a response stays as it is."""
    return ids if ids and ids[-1] in self._stops else ids + self._eos

  def _count(self, what: str) -> None:
    if self._filter:
      raise Overlong
    self.counts[what] += 1


class Overlong(Exception):
  """The example is to be left out."""
