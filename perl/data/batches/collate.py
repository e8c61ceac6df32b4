"""Rows to one batch of numpy arrays; the fields are listed in pipeline.py."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from perl.data.batches.encoding import Row
from perl.data.examples import KINDS

TOKEN_FIELDS = dict.fromkeys(KINDS, ('tokens',)) | {'preference': ('chosen', 'rejected')}
"""Kind -> the sequences of a row; those of a ranking are one list, see `sequences`."""

PAIR_MULTIPLE = 16
"""Lengths of prompts and responses are multiples of it where a pair shares its prompt."""


def sequences(row: Row, kind: str) -> list[np.ndarray]:
  """The token ids of a row: one sequence, two of a pair, K of a ranking."""
  return row['responses'] if kind == 'ranked' else [row[name] for name in TOKEN_FIELDS[kind]]


def padded(rows: Sequence[Row], kind: str, length: int, pad_id: int) -> dict[str, np.ndarray]:
  """Each sequence in a row of its own, padded to `length`: prompts on the left, others right."""
  left = kind == 'prompt'
  if kind == 'ranked':
    return _ranked(rows, length, pad_id)
  batch = {}
  for name in TOKEN_FIELDS[kind]:
    mask_name = 'mask' if name == 'tokens' else f'{name}_mask'
    batch[name], batch[mask_name] = _pad([row[name] for row in rows], length, pad_id, left)
  if 'loss_mask' in rows[0]:
    batch['loss_mask'] = _pad([row['loss_mask'] for row in rows], length, False)[0]
    batch['loss_mask'][:, 0] = False  # nothing comes before it that could predict it
  return batch | _facts(rows)


def _ranked(rows: Sequence[Row], length: int, pad_id: int) -> dict[str, np.ndarray]:
  """The K responses of a prompt in one element, [B, K, length]."""
  flat = [sequence for row in rows for sequence in row['responses']]
  tokens, mask = (x.reshape(len(rows), -1, length) for x in _pad(flat, length, pad_id))
  present = np.stack([row['present'] for row in rows])
  return {'tokens': tokens, 'mask': mask, 'present': present} | _facts(rows)


def packed(packs: Sequence[Sequence[Row]], length: int, pad_id: int) -> dict[str, np.ndarray]:
  """Several rows one after another in each row of `length` tokens, told apart by `segments`."""
  shape = (len(packs), length)
  batch = {
    'tokens': np.full(shape, pad_id, np.int32), 'segments': np.zeros(shape, np.int32),
    'loss_mask': np.zeros(shape, bool), 'index': np.full(shape, -1, np.int32),
  }
  for place, rows in enumerate(packs):
    start = 0
    for segment, row in enumerate(rows, 1):
      end = start + len(row['tokens'])
      here = place, slice(start, end)
      batch['tokens'][here], batch['loss_mask'][here] = row['tokens'], row['loss_mask']
      batch['segments'][here], batch['index'][here] = segment, row['index']
      batch['loss_mask'][place, start] = False  # what comes before it is of another row
      start = end
  batch['mask'] = batch['segments'] > 0
  return batch | {'weight': np.ones(len(packs), np.float32)}


def pairs(rows: Sequence[Row], prompt_length: int, response_length: int,
          pad_id: int) -> dict[str, np.ndarray]:
  """Each prompt once, padded on the left, then the chosen and the rejected response."""
  starts = [row['prompt_tokens'] for row in rows]
  prompts = [row['chosen'][:start] for row, start in zip(rows, starts)]
  parts = [_pad(prompts, prompt_length, pad_id, left=True)]
  for name in TOKEN_FIELDS['preference']:
    responses = [row[name][start:] for row, start in zip(rows, starts)]
    parts.append(_pad(responses, response_length, pad_id))
  tokens, masks = zip(*parts)
  batch = {'tokens': np.concatenate(tokens, 1), 'mask': np.concatenate(masks, 1)}
  return batch | {'chosen_mask': masks[1], 'rejected_mask': masks[2]} | _facts(rows)


def pair_lengths(rows: Sequence[Row], edges: Sequence[int],
                 numbers: np.ndarray) -> dict[int, tuple[int, int]]:
  """{T: (P, R)}: lengths that hold every prompt and response of the bucket T and of shorter ones.

  Rows go up a bucket when they would be left over, hence the shorter ones. A function of all rows,
  so that hosts agree and a bucket is one shape.

  Args:
    rows: of kind preference.
    edges: bucket lengths T, rising.
    numbers: the bucket number of every row.

  Raises:
    ValueError: a pair whose two sequences do not open with the same prompt, or end with it.
  """
  needed = np.zeros((len(edges), 2), np.int64)
  for number, row in zip(numbers, rows):
    start = _shared_prompt(row)
    response = max(len(row[name]) for name in TOKEN_FIELDS['preference']) - start
    needed[number] = np.maximum(needed[number], (start, response))
  whole = -(-np.maximum.accumulate(needed) // PAIR_MULTIPLE) * PAIR_MULTIPLE
  return {edge: (int(p), int(r)) for edge, (p, r) in zip(edges, whole)}


def _shared_prompt(row: Row) -> int:
  """The prompt's tokens, checked to be those of both sequences, with a response after them."""
  start, (chosen, rejected) = row.get('prompt_tokens', 0), (row['chosen'], row['rejected'])
  if not 0 < start < min(len(chosen), len(rejected)):
    raise ValueError(
      'batches: expected prompt_tokens of at least 1 and a response after them in both sequences, '
      f'for shared_prompt; found {start} of {len(chosen)} and {len(rejected)} tokens at example '
      f'{row["index"]}; make the rows with encode, or set shared_prompt=False')
  differ = np.flatnonzero(chosen[:start] != rejected[:start])
  if len(differ):
    raise ValueError(
      f'batches: expected chosen and rejected to open with the same {start} prompt_tokens, for '
      f'shared_prompt; found {chosen[differ[0]]} and {rejected[differ[0]]} at token {differ[0]} of '
      f'example {row["index"]}; make the rows with encode, or set shared_prompt=False')
  return start


def _facts(rows: Sequence[Row]) -> dict[str, np.ndarray]:
  """What is one number a row; those that the kind has."""
  facts = {name: np.array([row[name] for row in rows], dtype)
           for name, dtype in (('margin', np.float32), ('label', np.float32),
                               ('rating', np.float32),
                               ('prompt_tokens', np.int32), ('index', np.int32))
           if name in rows[0]}
  return facts | {'weight': np.ones(len(rows), np.float32)}


def _pad(sequences: Sequence[np.ndarray], length: int, fill: Any,
         left: bool = False) -> tuple[np.ndarray, np.ndarray]:
  """(values, mask bool) [B, length]: each sequence at its left end, or right if left-padded."""
  values = np.full((len(sequences), length), fill, sequences[0].dtype)
  mask = np.zeros(values.shape, bool)
  for row, real, sequence in zip(values, mask, sequences):
    here = slice(length - len(sequence), length) if left else slice(len(sequence))
    row[here], real[here] = sequence, True
  return values, mask
