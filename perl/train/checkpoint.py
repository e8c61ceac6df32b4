"""Checkpoints of a run, and one-off saves: the newest whole one is found again after any kill.

Knows only nested dicts of arrays and JSON. Typed keys are converted by the caller
(jax.random.key_data), dataclasses by flax.serialization.to_state_dict.
"""

import dataclasses
import logging
import math
import os
from collections.abc import Callable
from typing import Literal

from perl import paths
from perl.train import storage
from perl.train.layout import MismatchError, Tree, check_meta, read_tree
from perl.train.storage import CorruptError, DiskFullError, load_tree, save_tree

__all__ = [
  'Checkpoints', 'CorruptError', 'DiskFullError', 'MismatchError', 'Restored', 'check_meta',
  'load_tree', 'save_tree',
]


@dataclasses.dataclass(frozen=True)
class Restored:
  """A checkpoint that was read back."""

  step: int
  tree: Tree
  data_state: dict
  meta: dict
  metrics: dict


class Checkpoints:
  """The checkpoints of a run under one folder, a sub-folder for each step.

  The last `keep_last` are kept, and the `keep_best` with the best finite `best_metric` (the
  earliest among equals). Older ones are removed only after a newer one is whole, so room is needed
  for one more than are kept.

  Usage:
    with Checkpoints(folder) as checkpoints:
      restored = checkpoints.restore(like)
      checkpoints.save(step, tree, data_state=state, meta=meta, metrics={'accuracy': .7})
  """

  def __init__(
    self,
    folder: str | os.PathLike,
    *,
    keep_last: int = 2,
    keep_best: int = 1,
    best_metric: str = '',
    best_mode: Literal['max', 'min'] = 'max',
  ):
    if keep_last < 1 or keep_best < 0 or best_mode not in ('max', 'min'):
      raise ValueError(
        "expected keep_last >= 1, keep_best >= 0 and best_mode 'max' or 'min', "
        f'found {keep_last}, {keep_best}, {best_mode!r}')
    self._folder = paths.absolute(folder)
    self._keep_last, self._keep_best = keep_last, keep_best
    self._best_metric, self._sign = best_metric, 1 if best_mode == 'max' else -1
    self._writer: storage.Writer | None = None  # made at the first save: a reader writes nothing
    self._current: int | None = None  # the step that this object saved or restored last
    self._refused: set[int] = set()
    self._metrics: dict[int, dict] = {}

  def save(
    self,
    step: int,
    tree: Tree,
    *,
    data_state: dict | None = None,
    meta: dict | None = None,
    metrics: dict[str, float] | None = None,
  ) -> bool:
    """Starts an asynchronous save; False if this very step was saved or restored last (no-op).

    On return the tree's buffers may be donated or changed. A failure in the background is raised by
    the next `save`, `wait` or `close`.

    Raises:
      ValueError: the step is not beyond those on disk.
      DiskFullError: no space was left; earlier checkpoints are untouched.
      TypeError: a leaf is no array, or the rest is no JSON.
    """
    self.wait()
    if step == self._current:
      return False
    newest = max(set(self.all_steps()) - self._refused, default=-1)
    if step <= newest:
      raise ValueError(
        f'expected a step beyond {newest}, the newest in {self._folder}, found {step}; '
        'remedy: restore the newest first, or start in an empty folder')
    storage.on_first_host(self._set_refused_aside)
    self._writer = self._writer or storage.Writer()
    metrics = {name: float(value) for name, value in (metrics or {}).items()}
    about = {'data_state': data_state or {}, 'meta': meta or {}, 'metrics': metrics}
    self._writer.start(self._folder / str(step), tree, about)
    self._current, self._metrics[step] = step, metrics
    return True

  def wait(self) -> None:
    """Blocks until the last save is whole on disk, then removes those not to be kept.

    Raises:
      DiskFullError: no space was left; earlier checkpoints are untouched.
    """
    if self._writer is not None:
      try:
        self._writer.wait()
      except BaseException:
        self._current = None
        raise
      storage.on_first_host(self._prune)

  def close(self) -> None:
    """Waits and releases the threads; call it before the process ends."""
    if self._writer is not None:
      try:
        self.wait()
      finally:
        self._writer.close()
        self._writer = None

  def __enter__(self) -> 'Checkpoints':
    return self

  def __exit__(self, *exception) -> None:
    self.close()

  def all_steps(self) -> list[int]:
    """The steps that Orbax has committed, ascending; whether they are whole is not looked at."""
    if not self._folder.exists():
      return []
    return sorted(int(path.name) for path in self._folder.iterdir() if path.name.isdecimal())

  def best_step(self) -> int | None:
    """The step with the best finite `best_metric`; None if none has it."""
    return next(iter(self._by_quality()), None)

  def restore(
    self,
    like: Tree | None = None,
    step: int | None = None,
    check: Callable[[dict], None] | None = None,
  ) -> Restored | None:
    """The checkpoint of `step`, or the newest whole one; None if there are none at all.

    Broken ones are passed over with a warning that names them and says why.

    Args:
      like: as in `layout.read_tree`.
      step: this one and no other.
      check: called with the meta before the tree is read, so that another rank is told as such and
        not as a list of shapes; see `check_meta`.

    Raises:
      FileNotFoundError: no checkpoint of `step`.
      CorruptError: that of `step`, or every one, is broken.
      MismatchError: the tree is not `like` this; the leaves are named.
    """
    self.wait()
    steps = self.all_steps()
    if step is not None and step not in steps:
      raise FileNotFoundError(
        f'expected a checkpoint of step {step} in {self._folder}, found {steps}; '
        'remedy: ask for one of these')
    for candidate in [step] if step is not None else reversed(steps):
      folder = self._folder / str(candidate)
      try:
        storage.verify(folder)
      except CorruptError as error:
        if step is not None:
          raise
        self._refused.add(candidate)
        logging.warning('passing over the checkpoint of step %d: %s', candidate, error)
        continue
      about = storage.read_about(folder)
      if check is not None:
        check(about['meta'])
      tree = read_tree(folder, like)
      self._current = candidate
      return Restored(candidate, tree, **about)
    if steps:
      raise CorruptError(
        f'expected a whole checkpoint in {self._folder}, found only broken ones: {steps}; '
        'remedy: remove the folder to start afresh')
    return None

  def _score(self, step: int) -> float | None:
    """The metric, greater is better; None if it is absent, not finite or not readable."""
    if step not in self._metrics:
      try:
        self._metrics[step] = storage.read_about(self._folder / str(step))['metrics']
      except (OSError, ValueError, KeyError):
        self._metrics[step] = {}
    value = self._metrics[step].get(self._best_metric, math.nan)
    return self._sign * value if math.isfinite(value) else None

  def _by_quality(self) -> list[int]:
    scores = {step: self._score(step) for step in self.all_steps()} if self._best_metric else {}
    return sorted((s for s in scores if scores[s] is not None), key=lambda s: (-scores[s], s))

  def _prune(self) -> None:
    steps = sorted(set(self.all_steps()) - self._refused)
    kept = {*steps[-self._keep_last:], *self._by_quality()[:self._keep_best]}
    for step in set(steps) - kept:
      (self._folder / str(step)).rmtree()

  def _set_refused_aside(self) -> None:
    """Frees the names of broken checkpoints; one is left as <step>.broken to be looked into."""
    for step in self._refused & set(self.all_steps()):
      aside = self._folder / f'{step}.broken'
      storage.remove(aside)
      (self._folder / str(step)).rename(aside)
    self._refused.clear()
