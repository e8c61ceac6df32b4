"""What would stop a stage after minutes of those before it, looked for in seconds before the first.

Each check gives problems, as expected, found, remedy, and touches no more than it must: shapes in
place of arrays, a first row in place of a dataset, the meta of an adapter in place of its weights.
"""

import contextlib
import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from perl import choices, paths, trees
from perl.hub import adapters as peft_format
from perl.hub import reading, tensors
from perl.jobs import PRODUCER, STAGES, TRAINED, _chat_rows, _overlap
from perl.jobs._artefacts import Artefacts
from perl.jobs._data import Data
from perl.jobs._plan import Plan
from perl.jobs._run import Run
from perl.rl import rules
from perl.train import sharding, storage

KEPT = 2
"""Checkpoints beside keep_last that lie there for a while: the best, and the one being written."""


def check(config: ConfigDict, stages: Sequence[str], workdir: epath.Path) -> None:
  """Looks at everything that these stages will need.

  Args:
    config: valid (perl/config/validate.py).
    stages: those that are to run, in order.
    workdir: stage s will work in workdir/s.

  Raises:
    ValueError: with all problems there are.
  """
  data = {stage: Data(Run(config, str(workdir / stage), stage), None) for stage in stages}
  plans = {stage: Plan(config, stage) for stage in stages if stage in TRAINED}
  found = [*rows(data), *templates(data), *rewards(config, stages, data),
           *judges(config, stages, workdir)]
  found = found or [*overlap(config, data)]
  sizes: dict[str, int] = {}
  found += [*learners(plans, sizes), *batches(plans), *disk(config, sizes, workdir)]
  if found:
    raise ValueError('\n'.join(dict.fromkeys(found)))


def _job(stage: str) -> ModuleType:
  return choices.find('perl.jobs', stage)


def _said(where: str, look: Callable[[], Any]) -> Iterator[str]:
  """What is wrong, if looking raises what is written for the user."""
  try:
    look()
  except (ValueError, OSError) as error:
    yield f'{where}: {error}'


# --- Data


def rows(data: dict[str, Data]) -> Iterator[str]:
  """One row of every kind and split that the stages read."""
  first = functools.cache(lambda kind, split: next(iter(data.values())).first(split, kind))
  for stage, own in data.items():
    try:
      for kind, split in needs(own):
        yield from _said(f'stage {stage}, data', lambda pair=(kind, split): first(*pair))
    except (ValueError, OSError) as error:  # of what kinds there are
      yield f'stage {stage}, data: {error}'


def overlap(config: ConfigDict, data: dict[str, Data]) -> Iterator[str]:
  """Rows of what the stages read that stand in two splits."""
  needed: set[tuple[str, str]] = set()
  for own in data.values():
    with contextlib.suppress(ValueError, OSError):  # `rows` has said so
      needed |= {*needs(own)}
  yield from _overlap.check(config, needed)


def needs(data: Data) -> list[tuple[str, str]]:
  """(kind, split) of what a stage reads; [] of a job that does not say."""
  return getattr(_job(data.run.stage), 'needs', lambda data: [])(data)


def templates(data: dict[str, Data]) -> Iterator[str]:
  """Rows of what stages read, through the tokenizer and its template, where these are there."""
  reading = [own for stage, own in data.items() if stage != PRODUCER['tokenizer']]
  if not reading or not _is_there(reading[0].run, 'tokenizer'):
    return
  read = Artefacts(reading[0].run)  # of one tokenizer, whatever the stage
  known: set[tuple] = set()
  for own in reading:
    found: list[str] = []
    yield from _said('tokenizer and chat template', lambda own=own, found=found: found.extend(
      _unwritten(own, read, known)))
    yield from (f'tokenizer and chat template: {text}' for text in found)


def _unwritten(data: Data, read: Artefacts, known: set[tuple]) -> Iterator[str]:
  """What the template does not write of what a stage reads and `known` does not hold yet."""
  if read.data.template is None:
    return
  whole = data.run.stage == 'sft' and data.run.config.sft.whole_chats
  pairs = [pair for pair in needs(data) if (*pair, whole) not in known]
  known.update((*pair, whole) for pair in pairs)
  data = dataclasses.replace(data, tokenizer=read.tokenizer, template=read.data.template)
  yield from _chat_rows.check(data, pairs, whole=whole)


def _is_there(run: Run, name: str) -> bool:
  """Whether an input lies ready, and no stage before makes it anew."""
  if run.from_checkpoint(name):
    return True
  try:
    return bool(run.input(name))
  except FileNotFoundError:
    return False


# --- Rewards


def rewards(config: ConfigDict, stages: Sequence[str], data: dict[str, Data]) -> Iterator[str]:
  """Rules are imported, and called once on a prompt of the data with two responses."""
  rewarded = [stage for stage in stages if 'reward' in STAGES[stage].reads]
  if not rewarded or not config.rl.rules:
    return
  own = data[rewarded[0]]
  for name in config.rl.rules:
    yield from _said('rl.rules', lambda name=name: _called(name, config, own))


def _called(name: str, config: ConfigDict, data: Data) -> None:
  """Raises ValueError where a rule cannot be called, or gives no finite numbers."""
  rule, example = rules.load(name), data.first('train', 'prompt')
  parameters = list(inspect.signature(rule).parameters)
  if parameters != ['tokens', 'mask'] and not _takes(rule, 3):
    raise ValueError(
      f"expected a rule of (examples, responses, dataset) or of (tokens, mask), found {name!r} of "
      f'({", ".join(parameters)}); change its arguments: perl/rl/rules/__init__.py')
  texts = ['yes', '']  # a response may end at once
  tokens = np.zeros((len(texts), config.rl.max_new_tokens), np.int32)
  try:
    rules.Rules([name], (), data.dataset).each(
      [example] * len(texts), texts, tokens, tokens == 0)
  except Exception as error:  # the user's own code may raise anything
    raise ValueError(
      f'expected the rule {name} to reward the responses {texts} to a prompt of '
      f'{data.run.config.data.name}, found {type(error).__name__}: {error}; repair the rule, or '
      'name another one') from error


def _takes(function: Callable, count: int) -> bool:
  try:
    inspect.signature(function).bind(*range(count))
  except TypeError:
    return False
  return True


def judges(config: ConfigDict, stages: Sequence[str], workdir: epath.Path) -> Iterator[str]:
  """Reward models that lie ready: that they are ones, and are what config.rl wants of them."""
  for stage in stages:
    run = Run(config, str(workdir / stage), stage)
    reads = 'reward' in STAGES[stage].reads and config.rl.reward_weight
    if reads and (PRODUCER['reward'] not in stages or config.inputs.reward):
      yield from _said(f'stage {stage}, inputs.reward', lambda run=run: _judge(run))


def _judge(run: Run) -> None:
  """Raises ValueError of a reward model that would not do."""
  config, folder = run.config, run.input('reward')
  if (paths.of(folder) / peft_format.CONFIG).exists():
    _published_judge(config, folder)
    return
  meta = storage.read_about(paths.absolute(paths.of(folder) / 'adapter'))['meta']
  if not meta['head']:
    raise ValueError(f'expected a reward model in {folder}, found an adapter without a head; give '
                     'the folder of a reward stage')
  if config.rl.ensemble != 'mean' and not meta.get('members'):
    raise ValueError(
      f'expected an ensemble in {folder} for rl.ensemble={config.rl.ensemble}, found one reward '
      'model; train it with reward.members, or set rl.ensemble=mean')
  if run.stage == 'rl' and config.rl.critic_from == 'reward' and (apart := _apart(config, meta)):
    raise ValueError(
      f"expected a reward model of the critic's method, ranks and modules in {folder} for "
      f'rl.critic_from=reward, found {", ".join(apart)}; train it with this config.peft, or set '
      'rl.critic_from=zero')


def _apart(config: ConfigDict, meta: dict[str, Any]) -> list[str]:
  """What an adapter of some meta has otherwise than config.peft asks for."""
  wanted = {'method': config.peft.name}
  if config.peft.name == 'lora':  # others may not read them
    wanted |= {'rank': config.peft.rank, 'targets': list(config.peft.targets)}
  return [f'{name}={meta.get(name)!r}' for name, value in wanted.items() if meta.get(name) != value]


def _published_judge(config: ConfigDict, folder: str) -> None:
  if config.inputs.anchor != 'base':
    raise ValueError(
      f'expected inputs.anchor=base, for {folder} was trained over the checkpoint itself, found '
      f'{config.inputs.anchor or "the sft stage"!r}; set inputs.anchor=base')
  names = tensors.find(folder, peft_format.WEIGHTS)
  if not any(reading.SCORE in name for name in names):
    raise ValueError(
      f'expected a reward model with {reading.SCORE} in {folder}, found an adapter without a head; '
      'save one that was trained for sequence classification')


# --- What learns, by shapes


def learners(plans: dict[str, Plan], sizes: dict[str, int]) -> Iterator[str]:
  """Adapters on abstract shapes: targets that match, starts that fit, a mesh that there is.

  `sizes` gets the bytes of a checkpoint of each stage.
  """
  for stage, plan in plans.items():
    yield from _said(f'stage {stage}', lambda stage=stage, plan=plan: sizes.update(
      {stage: _checkpoint_bytes(stage, plan)}))


def _checkpoint_bytes(stage: str, plan: Plan) -> int:
  if not hasattr(_job(stage), 'learns'):
    return 0
  learning, tx = _job(stage).learns(plan)
  state, _ = plan.first_state(learning, tx)
  return trees.size_bytes({'adapters': state.adapters, 'opt_state': state.opt_state})


def batches(plans: dict[str, Plan]) -> Iterator[str]:
  """Batches, of updates and of evaluations, that divide over the devices of the mesh."""
  for stage, plan in plans.items():
    section, size = plan.run.section, plan.run.config.evaluate.batch_size * jax.process_count()
    rows = section.batch_size // section.get('samples', 1)
    for name, count in ((stage, rows), ('evaluate', size)):
      yield from _said(f'{name}.batch_size', lambda plan=plan, count=count: (
        sharding.check_rows(count, plan.run.mesh)))


def disk(config: ConfigDict, sizes: dict[str, int], workdir: epath.Path) -> Iterator[str]:
  """Room for the checkpoints that are to come; what a stage leaves is smaller than one of them."""
  free = paths.free_bytes(workdir)
  needed = 0
  for stage, size in sizes.items():
    place, section = workdir / stage / 'checkpoints', config[stage]
    there = len(list(place.iterdir())) if place.is_dir() else 0
    every = section.checkpoint_every_steps or section.evaluate_every_steps or section.steps
    saves = 1 + section.steps // every
    needed += size * (1 + max(1, min(saves, section.keep_last + KEPT) - there))
  if free is not None and needed > free:
    yield (f'expected {needed / 2**30:.3g} GiB free under {workdir} for checkpoints of '
           f'{", ".join(sizes)}, found {free / 2**30:.3g} GiB; free space there, lower '
           '<stage>.keep_last, or choose another --workdir')
