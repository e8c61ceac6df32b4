"""Datasets whose records are rows in the usual layouts; kinds of example follow from these."""

from collections.abc import Mapping, Sequence
from typing import Any

from perl.data.examples import Example, check_parts, check_request
from perl.data.sources import layouts, tfds
from perl.data.text import dialogue


def examples(source: tfds.Source, kinds: Mapping[str, Sequence[str]], split: str, kind: str, *,
             mirror: str, data_dir: str, parts: Sequence[str] = ()) -> list[Example]:
  """The examples of one split and kind, part after part.

  Args:
    source: the dataset.
    kinds: {kind: the parts that it is made of}.
    split: 'train', 'dev' or 'test'.
    kind: see `examples.KINDS`.
    mirror: a folder laid out like the home; '' downloads.
    data_dir: where prepared data is kept; '' is $TFDS_DATA_DIR or ~/tensorflow_datasets.
    parts: those that are read; () is all.

  Raises:
    ValueError: an unknown split, kind or part, an empty split, a malformed file.
    OSError: the files cannot be had.
  """
  check_request(source.name, split, kind, kinds)
  check_parts(source.name, parts, source.parts)
  return [example for part in kinds[kind] if not parts or part in parts
          for number, row in enumerate(tfds.records(source, part, split, mirror, data_dir))
          for example in layouts.examples(row, kind, f'{source.name}/{part}, {split} {number}')]


def held_out(group: str, split: str) -> str:
  """'dev' for a tenth of a train split that was published without one, by its groups."""
  return 'dev' if split == 'train' and dialogue.split_of(group) == 'dev' else split


def turn(role: str, content: str) -> dict[str, Any]:
  """A message of a chat."""
  return {'role': role, 'content': content}
