"""The test files of hh-rlhf, split anew: enough pairs for a small experiment, in a small download.

Rows, parts and what is left out are those of `hh_rlhf`. By the first thing that the human says,
60 % are train, 10 % dev and 30 % test: of so few pairs, the larger test keeps intervals narrow.
Nothing trained here may be tested on the published test split.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from perl.data.sets import hh_rlhf
from perl.data.sources import records, tfds
from perl.data.text import dialogue

PARTS = hh_rlhf.PARTS
DEV, TEST = 60, 70
"""Percentiles at which these splits begin."""


def _read(files: Mapping[str, list]) -> Iterator[tuple[str, dict[str, Any]]]:
  for record in tfds.each(files, hh_rlhf.comparison):
    if not isinstance(record, str):
      yield dialogue.split_at(record['group'], DEV, TEST), record


SOURCE = hh_rlhf.SOURCE._replace(
  name='hh_rlhf_test',
  parts={part: tfds.Part((f'{part}/test.jsonl.gz',), _read) for part in PARTS})
KINDS = hh_rlhf.KINDS
load = records.loader(SOURCE, KINDS)
