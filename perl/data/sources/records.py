"""Datasets whose records are rows in the usual layouts; kinds of example follow from these."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from perl.data.examples import Example, check_parts, check_request
from perl.data.sources import layouts, tfds
from perl.data.text import dialogue

Load = Callable[..., list[Example]]


def loader(source: tfds.Source, kinds: Mapping[str, Sequence[str]]) -> Load:
  """The `load` of a dataset, for which its data are given: no seed changes them.

  It gives the examples of one split and kind, part after part.

  Args of `load`:
    split: 'train', 'dev' or 'test'.
    kind: see `examples.KINDS`.
    mirror: a folder laid out like the home; '' downloads.
    data_dir: where prepared data is kept; '' is $TFDS_DATA_DIR or ~/tensorflow_datasets.
    parts: those that are read; () is all.

  Args:
    source: the dataset.
    kinds: {kind: the parts that it is made of}.

  Raises:
    ValueError: an unknown split, kind or part, an empty split, a malformed file.
    OSError: the files cannot be had.
  """
  def load(split, kind, *, mirror='', data_dir='', seed=0, parts=()):
    del seed
    check_request(source.name, split, kind, kinds)
    check_parts(source.name, parts, source.parts)
    return [example for part in kinds[kind] if not parts or part in parts
            for number, row in enumerate(tfds.records(source, part, split, mirror, data_dir))
            for example in layouts.examples(row, kind, f'{source.name}/{part}, {split} {number}')]

  return load


def held_out(group: str, split: str) -> str:
  """'dev' for a tenth of a train split that was published without one, by its groups."""
  return 'dev' if split == 'train' and dialogue.split_of(group) == 'dev' else split


def turn(role: str, content: str) -> dict[str, Any]:
  """A message of a chat."""
  return {'role': role, 'content': content}
