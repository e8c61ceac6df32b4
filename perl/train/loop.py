"""The loop around every train step: resume, log, evaluate, checkpoint, stop on signals and NaN."""

import collections
import contextlib
import logging
import math
import time
from collections.abc import Callable
from typing import Protocol

import flax.serialization
import jax

from perl import paths
from perl.train import checkpoint, metrics, signals
from perl.train.step import TrainState
from perl.types import Batch

AHEAD = 2
"""Steps that may be queued on the device: enough to keep it busy, and so few that the progress bar
and a signal are never late by more."""


class Stream(Protocol):
  """An iterator of batches whose place can be saved and restored."""

  def __next__(self) -> Batch: ...
  def get_state(self) -> dict: ...
  def set_state(self, state: dict) -> None: ...


class Interrupted(SystemExit):
  """A signal asked the run to stop; everything is saved. The exit status is that of SIGTERM."""

  def __init__(self, step: int, folder: str):
    super().__init__(143)
    self.message = f'stopped by a signal at step {step}, saved in {folder}: run it again to resume'


def to_arrays(state: TrainState) -> dict:
  """Nested dicts of arrays, for the checkpoint."""
  return flax.serialization.to_state_dict(state.replace(key=jax.random.key_data(state.key)))


def from_arrays(state: TrainState, tree: dict) -> TrainState:
  """The state of `to_arrays`, with the structure and the placement of `state`."""
  shell = state.replace(key=jax.random.key_data(state.key))
  restored = flax.serialization.from_state_dict(shell, tree)
  placed = jax.tree.map(lambda like, x: jax.device_put(x, like.sharding), shell, restored)
  return placed.replace(key=jax.random.wrap_key_data(placed.key))


def fit(
  step_fn: Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]],
  state: TrainState,
  stream: Stream,
  *,
  steps: int,
  workdir: str,
  meta: dict,
  name: str,
  renamed: Callable[[dict], dict] = lambda meta: meta,
  evaluate: Callable[[TrainState], dict[str, float]] | None = None,
  evaluate_every_steps: int = 0,
  checkpoint_every_steps: int = 0,
  log_every_steps: int = 10,
  keep_last: int = 2,
  best_metric: str = '',
  best_mode: str = 'max',
  keep_best: bool = True,
  patience: int = 0,
  learning_rate: Callable[[int], float] | None = None,
  watch: Callable[[int, dict[str, float]], None] | None = None,
  show: Callable[[metrics.Writer, int], None] | None = None,
) -> tuple[TrainState, dict[str, float]]:
  """Runs `step_fn` until `steps` updates are done; continues from the newest whole checkpoint.

  A killed run that is started again gives the same bits as one that was never killed: parameters,
  optimizer, PRNG key and the place in the data all come from the checkpoint.

  Args:
    step_fn: (state, batch) -> (state, metrics); the state is donated.
    state: the state before the first step, placed on its devices.
    stream: batches, resumable.
    steps: updates in all.
    workdir: holds checkpoints/, metrics.jsonl and tensorboard/.
    meta: stored in each checkpoint and compared with what a resumed checkpoint says.
    renamed: what an older checkpoint says, in today's names.
    name: shown beside the progress bar.
    evaluate: called on the state before the first step, every so many steps, and at the end.
    checkpoint_every_steps: 0 saves at evaluations and at the end alone.
    log_every_steps: metrics are means over so many steps.
    keep_last, best_metric, best_mode: see checkpoint.Checkpoints; the metric is `evaluate`'s.
    keep_best: the state with the best metric is the result; else the last one.
    patience: evaluations in a row without a better best_metric, after which the run ends; 0 is
      never.
    learning_rate: the rate of update n, from 0; logged.
    watch: called with each stretch of metrics that is written, to warn of what they say.
    show: called after each evaluation, to write more than numbers.

  Returns:
    the last state (or the best, where best_metric is given and kept), and what `evaluate` said of
    it along with `step_seconds`, the median of a step's wall time without compilation.

  Raises:
    Interrupted: SIGTERM or SIGINT; the state was saved first.
    FloatingPointError: a loss or gradient was not finite; the last good checkpoint is named.
  """
  folder, chosen = str(paths.of(workdir) / 'checkpoints'), best_metric if keep_best else ''
  saver = checkpoint.Checkpoints(
    folder, keep_last=keep_last, keep_best=1 if chosen else 0, best_metric=chosen,
    best_mode=best_mode,
  )
  run = _Run(step_fn, stream, saver, meta, renamed, evaluate, log_every_steps, folder,
             learning_rate, watch, show)
  late = lambda: bool(patience) and run.since_best(best_metric, best_mode) >= patience
  with contextlib.ExitStack() as stack:
    stack.enter_context(saver)
    stop = stack.enter_context(signals.stop_on_signal())
    state, first = run.resume(state)
    run.writer = stack.enter_context(metrics.Writer(workdir, resumed_step=first or -1))
    if first == 0 and evaluate is not None:
      run.measure(state, 0)
    with metrics.progress(steps, first, name) as bar:
      for done in () if late() else range(first + 1, steps + 1):
        state = run.advance(state, done, steps)
        bar.update(1)
        stopping = stop()
        evaluated = done == steps or (evaluate_every_steps and done % evaluate_every_steps == 0)
        if evaluated and evaluate is not None:
          bar.set_postfix(run.measure(state, done))
        regular = checkpoint_every_steps and done % checkpoint_every_steps == 0
        if evaluated or regular or stopping:
          run.save(state, done)
        if stopping or (evaluated and late()):
          break
    saver.wait()
    if stop():  # also where it came in the last evaluation: what follows this stage must not begin
      raise Interrupted(int(state.step), folder)
    if chosen and saver.best_step() not in (None, int(state.step)):
      state = run.read(state, saver.best_step())
    result = dict(run.measured(int(state.step)))
  seconds = sorted(run.seconds)
  if seconds:
    result['step_seconds'] = seconds[len(seconds) // 2]
  return state, result


class _Run:
  """What the loop does at a step, apart from deciding when."""

  writer: metrics.Writer

  def __init__(
    self, step_fn, stream, saver, meta, renamed, evaluate, log_every_steps, folder, learning_rate,
    watch, show,
  ):
    self.step_fn, self.stream, self.saver = step_fn, stream, saver
    self.meta, self.renamed, self.evaluate, self.folder = meta, renamed, evaluate, folder
    self.log_every_steps, self.learning_rate = log_every_steps, learning_rate
    self.watch, self.show = watch, show
    self.seconds: list[float] = []  # of the steps between two logs, on average
    self.pending: list[dict[str, jax.Array]] = []  # of the steps since the last log
    self.ahead: collections.deque = collections.deque()  # metrics of steps that may not be done
    self.evaluations: dict[int, dict[str, float]] = {}
    self.since, self.spent = time.perf_counter(), 0.0
    self.last_good: int | None = None
    self.warm = False  # compiled: the first stretch of steps is no measure of speed

  def resume(self, state: TrainState) -> tuple[TrainState, int]:
    same_run = lambda meta: checkpoint.check_meta(
      self.meta, self.renamed(meta.get('run', {})))
    restored = self.saver.restore(to_arrays(state), check=same_run)
    if restored is None:
      return state, 0
    self.stream.set_state(restored.data_state)
    self.evaluations = {int(k): v for k, v in restored.meta.get('evaluations', {}).items()}
    self.pending = restored.meta.get('pending', [])
    self.last_good = restored.step
    logging.info('resumed from step %d in %s', restored.step, self.folder)
    return from_arrays(state, restored.tree), restored.step

  def read(self, state: TrainState, step: int) -> TrainState:
    return from_arrays(state, self.saver.restore(to_arrays(state), step).tree)

  def measured(self, step: int) -> dict[str, float]:
    return self.evaluations.get(step, {})

  def since_best(self, metric: str, mode: str) -> int:
    """Evaluations after the best one of a metric; NaN is never the best."""
    sign = 1 if mode == 'max' else -1
    values = [sign * row.get(metric, math.nan) for _, row in sorted(self.evaluations.items())]
    best = max((v for v in values if math.isfinite(v)), default=None)
    return 0 if best is None else len(values) - 1 - values.index(best)

  def advance(self, state: TrainState, done: int, steps: int) -> TrainState:
    state, values = self.step_fn(state, next(self.stream))
    self.pending.append(values)
    self.ahead.append(values)
    if len(self.ahead) > AHEAD:
      jax.block_until_ready(self.ahead.popleft())
    if done % self.log_every_steps == 0 or done == steps:
      self.log(done)
    return state

  def log(self, done: int) -> None:
    """Closes a stretch of steps and writes it, when the device has ended it: so the clock is of
    these steps, and a loss that is not finite is found here.
    """
    pending, self.pending = self.pending, []
    rows = self.fetch(pending, done)
    mean = {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
    mean.pop('finite', None)
    if self.learning_rate is not None:
      mean['learning_rate'] = float(self.learning_rate(done - 1))
    self.pause()
    # Steps before a resume come as numbers: they took none of this process's time.
    timed = sum(any(isinstance(x, jax.Array) for x in row.values()) for row in pending)
    mean['step_seconds'] = self.spent / max(timed, 1)
    if self.warm:
      self.seconds.append(mean['step_seconds'])
    self.warm, self.spent = True, 0.0
    self.since = time.perf_counter()
    self.writer.write(done, mean, prefix='train')
    if self.watch is not None:
      self.watch(done, mean)

  def fetch(self, pending: list[dict[str, jax.Array]], done: int) -> list[dict[str, float]]:
    """Metrics of the steps up to `done` as numbers; stops the run if a step was not finite."""
    fetched = jax.device_get(pending)
    rows = [{name: float(value) for name, value in row.items()} for row in fetched]
    if not all(row.get('finite', 1.0) for row in rows):
      self.saver.wait()
      good = f'step {self.last_good} in {self.folder}' if self.last_good is not None else 'none yet'
      raise FloatingPointError(
        f'expected a finite loss and gradient, found NaN or infinity within the {len(rows)} steps '
        f'before step {done}; the last good checkpoint is {good}. '
        'Lower the learning rate or clip_norm, or look at the data of those steps')
    return rows

  def measure(self, state: TrainState, done: int) -> dict[str, float]:
    if self.pending:
      self.log(done)
    values = self.evaluate(state)
    self.evaluations[done] = values
    self.writer.write(done, values, prefix='dev')
    if self.show is not None:
      self.show(self.writer, done)
    self.since = time.perf_counter()
    return values

  def pause(self) -> None:
    """Stops the clock of the steps: evaluations and saves are no part of them."""
    self.spent += time.perf_counter() - self.since

  def save(self, state: TrainState, done: int) -> None:
    self.writer.flush()
    # A log that is under way goes along, so that a resumed run writes the very same lines.
    self.pending = self.fetch(self.pending, done)
    self.pause()
    self.saver.save(
      done,
      to_arrays(state),
      data_state=self.stream.get_state(),
      meta={
        'run': self.meta,
        'evaluations': {str(k): v for k, v in self.evaluations.items()},
        'pending': self.pending,
      },
      metrics=self.measured(done),
    )
    self.last_good = done
    self.since = time.perf_counter()
