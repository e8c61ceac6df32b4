"""Anthropic's hh-rlhf: which of two assistant's replies is more helpful, or less harmful.

From github.com/anthropics/hh-rlhf (MIT; Bai et al. 2022, arXiv 2204.05862). Rows {chosen, rejected}
are whole transcripts, turns opened by '\n\nHuman:' and '\n\nAssistant:'. The text is offensive by
design. Parts, for data.parts: `harmless-base`, and for helpfulness `helpful-base`,
`helpful-online` and `helpful-rejection-sampled`; red-team-attempts are no comparisons.

Splits: as published, with a tenth of train as dev, by the first thing that the human says; a
comparison of train or dev that opens like one of test is left out. So is one whose two transcripts
part before their last reply (5 of the 2,312 of harmless-base's test), which compares more than two
replies, or whose transcripts do not end in a reply.
"""

import collections
import functools
import logging
import re
from collections.abc import Iterator, Mapping
from typing import Any

from perl.data.sources import pins, records, tfds
from perl.data.text import dialogue

HARMLESS = ('harmless-base',)
HELPFUL = ('helpful-base', 'helpful-online', 'helpful-rejection-sampled')
PARTS = (*HARMLESS, *HELPFUL)
_ROLES = {'Human': 'user', 'Assistant': 'assistant'}
_TURN = re.compile(r'\n\n(Human|Assistant):')


def turns_of(transcript: str) -> list[dict[str, Any]]:
  """A transcript as messages; what one speaker says in several turns on end is one message.

  Raises:
    ValueError: it does not open with a turn.
  """
  before, *parts = _TURN.split(transcript)
  if before.strip() or not parts:
    raise ValueError(f"a transcript opens with '\\n\\nHuman:', found {transcript[:40]!r}")
  turns: list[dict[str, Any]] = []
  for speaker, text in zip(parts[::2], parts[1::2]):
    role, content = _ROLES[speaker], text.strip()
    if turns and turns[-1]['role'] == role:
      turns[-1]['content'] = f'{turns[-1]["content"]}\n\n{content}'.strip()
    else:
      turns.append(records.turn(role, content))
  return turns


def comparison(row: Mapping[str, str]) -> dict[str, Any] | str:
  """The comparison of a row {chosen, rejected}, or why it is none."""
  chosen, rejected = (turns_of(row[name]) for name in ('chosen', 'rejected'))
  if chosen[0]['role'] != 'user' or len(chosen) < 2:
    return 'open without a human'
  if any(turns[-1]['role'] != 'assistant' for turns in (chosen, rejected)):
    return 'end without a reply'
  if chosen[:-1] != rejected[:-1]:
    return 'part before the last reply'
  return {'prompt': chosen[:-1], 'chosen': chosen[-1:], 'rejected': rejected[-1:],
          'group': dialogue.normalised(chosen[0]['content'])}


def _read(part: str, files: Mapping[str, list]) -> Iterator[tuple[str, dict[str, Any]]]:
  comparisons, left_out = [], collections.Counter()
  for name, record in tfds.each_by_file(files, comparison):
    if isinstance(record, str):
      left_out[record] += 1
    else:
      split = name.removeprefix(f'{part}/').removesuffix('.jsonl.gz')
      comparisons.append((records.held_out(record['group'], split), record))
  tested = {record['group'] for split, record in comparisons if split == 'test'}
  for split, record in comparisons:
    if split != 'test' and record['group'] in tested:
      left_out['open like one of test'] += 1
    else:
      yield split, record
  if left_out:
    logging.info('hh_rlhf/%s: left out of %d comparisons those that %s', part,
                 sum(map(len, files.values())),
                 ', '.join(f'{why}: {count}' for why, count in left_out.items()))


SOURCE = tfds.Source(
  # Not raw.githubusercontent.com: all but harmless-base is in Git LFS, and it has pointers to that.
  'hh_rlhf', f'https://github.com/anthropics/hh-rlhf/raw/{pins.HH_RLHF}',
  {part: tfds.Part((f'{part}/train.jsonl.gz', f'{part}/test.jsonl.gz'),
                   functools.partial(_read, part)) for part in PARTS},
  """@article{bai2022training, title={Training a Helpful and Harmless Assistant with Reinforcement
  Learning from Human Feedback}, author={Bai et al.}, journal={arXiv:2204.05862}, year={2022}}""",
  pins.CHECKSUMS)
KINDS = dict.fromkeys(('document', 'demonstration', 'preference', 'prompt'), PARTS)
"""Documents and demonstrations are the chosen side."""
load = records.loader(SOURCE, KINDS)
