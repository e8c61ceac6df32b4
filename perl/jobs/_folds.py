"""A fold of a grouped cross-validation in place of the fixed split.

A group is foreign to a fold in every kind of example: what a base or an anchor learnt from the
documents of a fold's groups could otherwise tell its reward model the answers.
"""

from collections.abc import Callable

import numpy as np

from perl.data.examples import SPLITS, Example
from perl.evaluate import baseline

DEV_SHARE = 10
"""One in so many of the groups that are not held out picks the checkpoint."""


def splits(labelled: list[Example], n: int, fold: int) -> dict[str, str]:
  """{group: 'train', 'dev' or 'test'} of fold `fold` of n, as `baseline.folds` draws them."""
  labels = np.array([e.label for e in labelled])
  groups = np.array([e.group for e in labelled])
  inside, outside = baseline.folds(labels, groups, n)[fold]
  _, dev = baseline.folds(labels[inside], groups[inside], DEV_SHARE)[0]
  assigned = dict.fromkeys(groups[inside].tolist(), 'train')
  assigned.update(dict.fromkeys(groups[inside][dev].tolist(), 'dev'))
  return assigned | dict.fromkeys(groups[outside].tolist(), 'test')


def everything(load: Callable[[str, str], list[Example]], kind: str) -> list[Example]:
  """load(split, kind) of all splits, in order."""
  return [example for split in SPLITS for example in load(split, kind)]


def examples(
  load: Callable[[str, str], list[Example]], split: str, kind: str, assigned: dict[str, str]
) -> list[Example]:
  """The examples that the fold assigns to `split`.

  Groups that no labelled example has stay where the fixed split has them.

  Args:
    load: (split, kind) -> the examples of the fixed split.
    split, kind: what is asked for.
    assigned: of `splits`.
  """
  return [
    example for fixed in SPLITS for example in load(fixed, kind)
    if assigned.get(example.group, fixed) == split]
