"""A run of one stage: its config, folder and devices, how it learns, and how it ends.

The first of the three values that every job stands on; the others are its data (_data.py) and what
stages hand to one another (_artefacts.py). Below the jobs a ConfigDict is never seen.
"""

import contextlib
import dataclasses
import functools
import json
import logging
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from perl import paths
from perl.data import sets
from perl.hub import adapters as peft_format
from perl.jobs import ADAPTERS, PRODUCER, STAGES, _identity
from perl.jobs._reading import Reading, of_inputs
from perl.peft import adapters
from perl.rl import algorithms
from perl.train import metrics, optim, paging, population, provenance, sharding
from perl.train import step as steps
from perl.types import Batch, Tree


@dataclasses.dataclass(frozen=True)
class Run:
  """One stage of one experiment.

  Attributes:
    config: the experiment; what its algorithm is to decide is decided (perl/rl/algorithms).
    workdir: the stage's own folder.
    stage: its name, which is also that of its section of the config.
    reading: what it has read, by content.
  """

  config: ConfigDict
  workdir: str
  stage: str
  reading: Reading = dataclasses.field(default_factory=Reading)
  started: float = dataclasses.field(default_factory=time.perf_counter)

  def __post_init__(self):
    object.__setattr__(self, 'config', decided(self.config))

  @property
  def section(self) -> ConfigDict:
    """The stage's own section of the config."""
    return self.config[self.stage]

  @functools.cached_property
  def mesh(self) -> Mesh:
    """The mesh that config.mesh asks for."""
    return sharding.mesh(**{axis: self.config.mesh[axis] for axis in sharding.AXES})

  @property
  def key(self) -> jax.Array:
    """The run's PRNG key, by stage; made anew each time, for a state that holds it is donated."""
    return jax.random.fold_in(jax.random.key(self.config.seed), STAGES[self.stage].key)

  def place(self, batch: Batch) -> Batch:
    """The batch on the mesh."""
    return sharding.place_batch(batch, self.mesh)

  def from_checkpoint(self, name: str) -> bool:
    """Whether 'tokenizer' or 'base' is config.model.checkpoint's: no stage makes it."""
    return _identity.from_checkpoint(_identity.flatten(self.config), name)

  def identity(self) -> dict[str, Any]:
    """The fields that determine the stage's result."""
    return _identity.of(_identity.flatten(self.config), self.stage)

  def input(self, name: str) -> str:
    """The folder of an upstream stage: as the config says, or the sibling of this one.

    Raises:
      FileNotFoundError: it is not there, or is not finished.
    """
    producer = PRODUCER[name]
    folder = paths.of(
      self.config.inputs[name] or paths.absolute(self.workdir).parent / producer)
    published = (peft_format.CONFIG,) if name in ADAPTERS else ()
    if not any((folder / file).exists() for file in ('summary.json', *published)):
      raise FileNotFoundError(
        f'expected a finished {producer} stage in {folder}, found none; run '
        f'--job={producer} first, or set --config.inputs.{name}=<its folder>')
    return str(folder)

  def inputs(self) -> dict[str, str]:
    """{what: digest} of what other stages made, and of published files, that the stage reads.

    Raises:
      FileNotFoundError: an input is not there.
    """
    return of_inputs(_identity.flatten(self.config), self.stage, self.input)

  def optimizer(self, **overrides: Any) -> optax.GradientTransformation:
    """The stage's optax chain."""
    options = {**self.section.optim.to_dict(), **overrides}
    options['schedule_name'] = options.pop('schedule')
    # A schedule runs over batches, whatever is made of them.
    options['warmup_steps'] *= self.updates
    tx = optim.make(steps=self.section.steps * self.updates, **options)
    if self.stage == 'pretrain':  # full tuning, whatever config.peft says
      return tx
    tx = adapters.optimizer(
      self.config.peft.name, tx, steps=self.section.steps * self.updates, **self.peft_options())
    members = self.section.get('members', 1)
    return population.optimizer(tx, members) if members > 1 else tx

  @property
  def updates(self) -> int:
    """Updates of the parameters that a step makes."""
    return algorithms.updates(self.section)

  def peft_options(self) -> dict[str, Any]:
    """What config.peft holds beside the method's name: the arguments of adapters.init."""
    options = self.config.peft.to_dict()
    options.pop('name')
    return options

  def first_state(
    self, base: Tree, learning: Tree, tx: optax.GradientTransformation,
    running: Tree | None = None,
  ) -> tuple[steps.TrainState, Tree]:
    """(the state before the first step, on the mesh; its placements, which the step is to keep).

    Args:
      base: what the adapters lie over.
      learning: the adapters that learn.
      tx: their optimizer.
      running: the statistics that it begins with (perl/rl/statistics.py).

    Raises:
      ValueError: config.mesh.optimizer_memory is one that the platform has not.
    """
    state = steps.init_state(learning, tx, self.key, adapters.split, running)
    places = sharding.state_shardings(state, base, self.mesh)
    places = places.replace(opt_state=paging.page(
      state.opt_state, places.opt_state, self.mesh, self.config.mesh.optimizer_memory))
    return sharding.place(state, places), places

  def compile_ahead(
    self, step: Any, state: steps.TrainState, base: Tree, stream: Any,
    attach: Callable[[Batch], Batch] = lambda batch: batch,
  ) -> None:
    """Compiles a train step for every shape of its batches before the first; says so in the log.

    Args:
      step, state, base: a jitted step, and what it begins with; nothing is run.
      stream: of Data.stream.
      attach: what a batch is given beside.
    """
    batches, started = stream.shapes(self.section.steps), time.perf_counter()
    if len(batches) == 1:  # the first step compiles it
      return
    for batch in batches:
      step.lower(state, base, self.place(attach(batch))).compile()
    logging.info(
      '%s: compiled the step for %d lengths of batches before the first, in %.0f s', self.stage,
      len(batches), time.perf_counter() - started)

  def loop_options(self) -> dict[str, Any]:
    """The arguments of train.loop.fit that are the stage's own fields."""
    section = self.section
    rate = optim.schedule(
      section.optim.schedule, section.optim.learning_rate, steps=section.steps,
      warmup_steps=section.optim.warmup_steps)
    # All of them before the first step: nothing may be compiled after it.
    rates = np.broadcast_to(rate(np.arange(section.steps)), section.steps).tolist()
    names = ('steps', 'evaluate_every_steps', 'checkpoint_every_steps', 'log_every_steps',
             'keep_last', 'patience')
    return {name: section[name] for name in names if name in section} | {
      'workdir': self.workdir, 'name': self.stage, 'learning_rate': rates.__getitem__}

  def finish(self, result: dict) -> dict:
    """Writes summary.json, last: its presence means that the stage is done. Returns it."""
    summary = {
      **result,
      'seed': self.config.seed,
      'peft': self.config.peft.name,
      'wall_seconds': time.perf_counter() - self.started,
      **provenance.record(),
    }
    summary.setdefault('peak_memory_bytes', provenance.peak_memory_bytes())
    metrics.summary(self.workdir, summary)
    return summary


def begin(config: ConfigDict, workdir: str, stage: str) -> Run:
  """Makes the folder, leaves the config in it, and returns the run, with what it builds on noted.

  Raises:
    MismatchError: it goes on from checkpoints that build on something else.
  """
  folder = paths.of(workdir)
  folder.mkdir(parents=True, exist_ok=True)
  plain = json.loads(config.to_json_best_effort())
  metrics.write_json(folder / 'config.json', plain)
  stamp = sets.stamp(config.data.mirror, config.data.data_dir)
  run = Run(config, workdir, stage, Reading(workdir, stamp))
  with contextlib.suppress(FileNotFoundError):  # whoever reads an input says that it is not there
    for what, digest in run.inputs().items():
      run.reading.note(what, digest)
  return run


def decided(config: ConfigDict) -> ConfigDict:
  """The config with the values that config.rl leaves to its algorithm: perl/rl/algorithms."""
  resolved = config.copy_and_resolve_references()
  with resolved.unlocked():
    resolved.rl = ConfigDict(algorithms.resolve(config.rl.algorithm, config.rl.to_dict()))
  return resolved


def training_result(result: dict) -> dict:
  """What the loop says of dev, under names that begin with 'dev_'; seconds keep their name."""
  return {name if name == 'step_seconds' else f'dev_{name}': value
          for name, value in result.items()}
