"""Examples to rows of token ids: [bos] + prompt, response + [eos], within stated lengths.

Prompt and response are encoded as one text, so that their ids are tokenizer(prompt + response). A
token that holds the end of the prompt and the beginning of the response is the response's: it is
learnt, and scored. Of several responses to one prompt the prompt is what their ids share before
that. A prompt alone (which a policy answers) is encoded alone, as a server would have it.

A prompt opens with bos if the tokenizer puts it there (`adds_bos`) or its text has it, once; eos
ends what does not end in it, or another token that ends a response (`stop_ids`), yet.

A row is a dict of numpy arrays of one example, not yet padded, with `index`, the position of the
example in its list:
  document, demonstration  tokens i32[n], loss_mask bool[n]: of a demonstration not at tokens that
                           would end its response before the end
  preference               chosen i32[n], rejected i32[m], margin float
  labelled                 tokens i32[n], label float
  ranked                   responses K x i32[n], each after the prompt, best first, and present
                           bool[K]: the last one stands in for those that are not there
  rated                    tokens i32[n], rating float
  prompt                   tokens i32[n]
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from perl.data.batches.lengths import Limits, Overlong
from perl.data.examples import KINDS, Document, Example
from perl.data.text import chat
from perl.data.text.tokenizer import Tokenizer

Row = dict[str, Any]


def _language_row(prompt: list[int], response: list[int]) -> Row:
  loss_mask = np.arange(len(prompt) + len(response)) >= len(prompt)
  return {'tokens': np.array(prompt + response, np.int32), 'loss_mask': loss_mask}


def _rows(kind: str, example: Example, prompt: list[int], responses: list[list[int]],
          limits: Limits) -> list[Row]:
  """The rows of one example: several for a long document, none for a pair that says nothing."""
  if kind == 'document':
    return [_language_row(window[:1], window[1:]) for window in limits.windows(prompt)]
  prompt = limits.prompt(prompt)
  if kind == 'prompt':
    return [{'tokens': np.array(prompt, np.int32)}]
  ends = limits.inner_ends(responses[0]) if kind == 'demonstration' else []
  responses = [limits.response(response) for response in responses]
  if kind == 'demonstration':
    row = _language_row(prompt, *responses)
    row['loss_mask'][[len(prompt) + i for i in ends if i < len(responses[0])]] = False
    return [row]
  if kind in ('labelled', 'rated'):
    name = 'label' if kind == 'labelled' else 'rating'
    return [_scored_row(prompt, *responses) | {name: float(getattr(example, name))}]
  if kind == 'ranked':
    return _ranked_rows(prompt, responses, limits)
  chosen, rejected = responses
  if chosen == rejected:
    limits.counts['identical_pairs'] += 1
    return []
  return [{'chosen': np.array(prompt + chosen, np.int32),
           'rejected': np.array(prompt + rejected, np.int32), 'margin': float(example.margin),
           'prompt_tokens': len(prompt)}]


def _scored_row(prompt: list[int], response: list[int]) -> Row:
  return {'tokens': np.array(prompt + response, np.int32), 'prompt_tokens': len(prompt)}


def _ranked_rows(prompt: list[int], responses: list[list[int]], limits: Limits) -> list[Row]:
  """The row of a ranking, or none; one of two responses with the same ids says nothing."""
  distinct = [ids for i, ids in enumerate(responses) if ids not in responses[:i]]
  limits.counts['identical_pairs'] += len(responses) - len(distinct)
  if len(distinct) < 2:
    return []
  distinct = limits.spread(distinct)
  present = np.arange(limits.responses) < len(distinct)
  distinct += distinct[-1:] * (limits.responses - len(distinct))
  return [{'responses': [np.array(prompt + ids, np.int32) for ids in distinct],
           'present': present, 'prompt_tokens': len(prompt)}]


def _parts(examples: Sequence[Example], kind: str,
           tokenizer: Tokenizer) -> Iterator[tuple[list[int], list[list[int]]]]:
  """(the ids of the text or the prompt, those of each response after it) of every example."""
  if kind in ('document', 'prompt'):
    texts = [getattr(example, *KINDS[kind].TEXTS) for example in examples]
    return ((ids, []) for ids in _ids(tokenizer.encode_batch, texts, examples))
  texts = [(example.prompt, answer) for example in examples for answer in example.answers]
  whose = [example for example in examples for _ in example.answers]
  pairs = iter(_ids(tokenizer.encode_pairs, texts, whose))
  return (_apart([*itertools.islice(pairs, len(example.answers))]) for example in examples)


def _ids(encode: Callable[[list], list], texts: list, examples: Sequence[Example]) -> list:
  """encode(texts).

  Raises:
    ValueError: the tokenizer has no ids for one of the texts; the row of its example is named.
  """
  try:
    return encode(texts)
  except ValueError:  # which does not say at which text
    for text, example in zip(texts, examples):
      _check_readable(encode, text, example)
    raise


def _check_readable(encode: Callable[[list], list], text: Any, example: Example) -> None:
  try:
    encode([text])
  except ValueError as error:
    where = example.meta.get('source', 'an example')
    raise ValueError(f'{where}: {error}, in {text!r:.80}') from error


def _apart(rows: list[tuple[list[int], int]]) -> tuple[list[int], list[list[int]]]:
  """(the prompt's ids, those of each response) of whole texts and how many ids are the prompt's."""
  prompts = [ids[:count] for ids, count in rows]
  shared = next((i for i, column in enumerate(zip(*prompts)) if len(set(column)) > 1),
                min(map(len, prompts)))
  return prompts[0][:shared], [ids[shared:] for ids, _ in rows]


def encode(examples: Sequence[Example], tokenizer: Tokenizer, *, kind: str, max_prompt_tokens: int,
           max_response_tokens: int, overlong: str = 'filter',
           responses: int = 4) -> tuple[list[Row], dict[str, int]]:
  """Encodes examples of one kind.

  Args:
    kind: of examples.KINDS.
    max_prompt_tokens: longest prompt, bos included.
    max_response_tokens: longest response, eos included. Documents are cut into windows of the sum.
    overlong: 'filter' leaves an example with an overlong prompt or response out; 'truncate' keeps
      the last tokens of the prompt and the first ones of the response. No document is overlong.
    responses: K, at most so many of a ranking, at least 2; of more the best, the worst and some
      evenly between them are kept.

  Returns:
    rows, and counts: examples, rows, filtered, truncated_prompts, truncated_responses,
    identical_pairs (left out: chosen and rejected have the same ids, perhaps after truncation; of
    ranked responses those with the ids of a better one); of rankings also surplus_responses.

  Raises:
    ValueError: an example of another kind, impossible lengths, an unknown policy, or no rows left.
  """
  limits = Limits(tokenizer, max_prompt_tokens, max_response_tokens, overlong,
                  responses if kind == 'ranked' else None)
  _check_kind(examples, kind)
  rows = []
  for index, (example, ids) in enumerate(zip(examples, _parts(examples, kind, tokenizer))):
    before = dict(limits.counts)
    try:
      encoded = _rows(kind, example, *ids, limits)
    except Overlong:
      limits.counts.update(before, filtered=before['filtered'] + 1)
      continue
    rows += [{'index': index, **row} for row in encoded]
  limits.counts.update(examples=len(examples), rows=len(rows))
  if not rows:
    raise ValueError(f'encode: expected rows of kind {kind}; found none left of {len(examples)} '
                     f'examples ({limits.counts}); raise data.max_prompt_tokens and '
                     "data.max_response_tokens, or set data.overlong to 'truncate'")
  return rows, limits.counts


def encode_sampled(prompts: Sequence[Example], responses: Sequence[Sequence[int]],
                   tokenizer: Tokenizer, *, max_prompt_tokens: int) -> list[Row]:
  """Rows of responses as a policy sampled them: their ids after those of the prompt alone.

  Nothing is decoded, encoded anew or cut, and no eos is added: a response that did not end stays
  one. Rows are as those of kind labelled, without a label; of an overlong prompt the last tokens
  are kept, as in the rollout.

  Args:
    prompts: by the template, as for `encode`.
    responses: ids of one response to each of them.
    tokenizer, max_prompt_tokens: as in `encode`.

  Raises:
    ValueError: another number of responses than of prompts, or an impossible length.
  """
  limits = Limits(tokenizer, max_prompt_tokens, 1, 'truncate')
  ids = _ids(tokenizer.encode_batch, [example.prompt for example in prompts], prompts)
  return [{'index': index, **_scored_row(limits.prompt(prompt), list(response))}
          for index, (prompt, response) in enumerate(zip(ids, responses, strict=True))]


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
    ids, learnt = chat.encode_document(tokenizer, template, document)
    if len(ids) > max_tokens:
      counts['filtered' if overlong == 'filter' else 'truncated'] += 1
      if overlong == 'filter':
        continue
    tokens, loss_mask = np.array(ids[:max_tokens], np.int32), np.array(learnt[:max_tokens], bool)
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
