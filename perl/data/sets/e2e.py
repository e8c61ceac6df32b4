"""E2E NLG: a restaurant described in a sentence, from what is to be said of it.

From github.com/tuetschek/e2e-dataset (CC BY-SA 4.0; Novikova et al. 2017, arXiv 1706.09254): rows
{mr, ref}, the meaning 'name[Blue Spice], eatType[coffee shop], area[riverside]' and what somebody
wrote for it; several people wrote for one meaning. Splits are the published ones, whose meanings
differ. Where a mirror lacks trainset.csv, nine tenths of the meanings of devset.csv are train.

meta['references'] of an example has all that was written for its meaning: perl/evaluate/references.
"""

import collections
from collections.abc import Iterator, Mapping
from typing import Any

from perl.data.sources import pins, records, tfds
from perl.data.text import dialogue

_FILES = {'trainset.csv': 'train', 'devset.csv': 'dev', 'testset_w_refs.csv': 'test'}


def _record(row: Mapping[str, str]) -> tuple[str, str]:
  """(meaning, reference)."""
  meaning, reference = row['mr'].strip(), row['ref'].strip()
  if not meaning or not reference:
    raise ValueError('the meaning or the reference is empty')
  return meaning, reference


def _meanings(files: Mapping[str, list]) -> Iterator[tuple[str, str, list[str]]]:
  """(split, meaning, its references) of every meaning of every file."""
  written: dict[str, dict[str, list[str]]] = {}
  for name, (meaning, reference) in tfds.each_by_file(files, _record):
    of_file = written.setdefault(name, collections.defaultdict(list))
    of_file[meaning].append(reference)
  splits = _FILES if 'trainset.csv' in files else _FILES | {'devset.csv': 'train'}
  for name, meanings in written.items():
    for meaning, references in meanings.items():
      split = splits[name]
      if splits is not _FILES:
        split = records.held_out(dialogue.normalised(meaning), split)
      yield split, meaning, references


def _pairs(files: Mapping[str, list]) -> Iterator[tuple[str, dict[str, Any]]]:
  for split, meaning, references in _meanings(files):
    for reference in references:
      yield split, _chat(meaning, references, records.turn('assistant', reference))


def _prompts(files: Mapping[str, list]) -> Iterator[tuple[str, dict[str, Any]]]:
  for split, meaning, references in _meanings(files):
    yield split, _chat(meaning, references)


def _chat(meaning: str, references: list[str], *more: Mapping[str, Any]) -> dict[str, Any]:
  return {'messages': [records.turn('user', meaning), *more],
          'group': dialogue.normalised(meaning), 'meta': {'references': references}}


SOURCE = tfds.Source(
  'e2e', f'https://raw.githubusercontent.com/tuetschek/e2e-dataset/{pins.E2E}',
  {name: tfds.Part(tuple(_FILES), read)
   for name, read in (('pairs', _pairs), ('prompts', _prompts))},
  """@inproceedings{novikova2017e2e, title={The E2E Dataset: New Challenges for End-to-End
  Generation}, author={Novikova et al.}, booktitle={SIGDIAL}, year={2017}}""",
  pins.CHECKSUMS)
KINDS = {'document': ('pairs',), 'demonstration': ('pairs',), 'prompt': ('prompts',)}
load = records.loader(SOURCE, KINDS)
