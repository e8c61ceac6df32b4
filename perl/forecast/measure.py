"""Bytes and operations of a stage: what it holds throughout, and what each program adds.

    peak = held + max over programs of (batch + results that are not donated + temporaries)

`held` is every tree that the job keeps on the devices whatever it runs: base, adapters by role,
optimizer state. It is summed from shapes; the rest is the compiler's. All bytes are per device.
"""

import contextlib
import math
from typing import Any

import jax
from ml_collections import ConfigDict

from perl import machine
from perl.config.fields import ConfigError
from perl.forecast import flops
from perl.jobs import ADAPTED
from perl.jobs import _programs as programs
from perl.jobs._plan import Program, Stage
from perl.models import decode
from perl.peft import adapters
from perl.rl.rollout import batch, slots
from perl.train import memory
from perl.types import Tree

HALVES = ('bfloat16', 'float16')


def build(config: ConfigDict, name: str, *, accelerator: bool = True) -> Stage:
  """The stage by shapes.

  XLA's CPU backend multiplies bfloat16 in float32 and keeps float32 copies of what it multiplies:
  of the whole base, for it moves the copying out of the loop over layers. To forecast for an
  accelerator, which has no such copies, bfloat16 is compiled as float16, of the same size (see
  `options`).

  Args:
    config: valid.
    name: the stage.
    accelerator: forecast for another device than the CPU.

  Raises:
    ConfigError: what the jobs would refuse of mesh, batch or adapter.
  """
  config = copy(config)
  if accelerator and jax.default_backend() == 'cpu':
    for field in ('dtype', 'param_dtype'):
      if config.model[field] == 'bfloat16':
        config.model[field] = 'float16'
  try:
    with machine.accelerated() if accelerator else contextlib.nullcontext():
      return programs.stage(config, name)
  except (ValueError, FileNotFoundError) as error:
    raise ConfigError(str(error)) from error


def copy(config: ConfigDict, **fields: Any) -> ConfigDict:
  """The config with other values; `fields` are paths with '__' for '.'."""
  changed = config.copy_and_resolve_references()
  changed.update_from_flattened_dict({k.replace('__', '.'): v for k, v in fields.items()})
  return changed


def options(stage: Stage, *, accelerator: bool = True) -> dict[str, str]:
  """The compiler's: float16 is multiplied as it is, as no CPU does but an accelerator."""
  used = {stage.model.config.dtype, stage.model.config.param_dtype}
  if not accelerator or jax.default_backend() != 'cpu' or not used & set(HALVES):
    return {}
  return {'xla_disable_hlo_passes': 'change-op-data-type'}


def full(config: ConfigDict) -> ConfigDict:
  """The config with full tuning, from fresh copies of the base, which is then dense."""
  starts = {f'{stage}__adapter': '' for stage in ADAPTED}
  return copy(config, peft__name='full', model__quantize='', rl__layout='shared', **starts)


def conventional(stage: Stage) -> Stage:
  """Full tuning as other trainers have it: every role is a whole model, and there is no base.

  Roles that learn are float32, as in mixed-precision training; frozen ones are stored in
  model.param_dtype. (Ours keeps the base beside them, and frozen copies in float32.)
  """
  stored = jax.numpy.dtype(stage.model.config.param_dtype)

  def shrink(adapter: Tree) -> Tree:
    head = {'head': adapter['head']} if 'head' in adapter else {}
    rest = {k: v for k, v in adapter.items() if k != 'head'}
    return jax.tree.map(lambda x: x.update(dtype=stored), rest) | head

  whole = stage._replace(base={}, frozen={r: shrink(a) for r, a in stage.frozen.items()})
  if 'rewards' not in stage.programs:
    return whole
  judging = stage.programs['rewards']
  base, judges, *others = judging.arguments
  judging = judging._replace(arguments=(
    base, {role: whole.frozen.get(role, tree) for role, tree in judges.items()}, *others))
  return whole._replace(programs=stage.programs | {'rewards': judging})


def held(stage: Stage, name: str) -> dict[str, int]:
  """Bytes by role: 'base', the roles' adapters with their heads, 'optimizer'."""
  return {'base': device_bytes(stage.base)} | {
    role: device_bytes(adapter) for role, adapter in roles(stage, name).items()
  } | {'optimizer': device_bytes(stage.state.opt_state)}


def roles(stage: Stage, name: str) -> dict[str, Tree]:
  """Adapters by role; a stage that is not rl has one, of its own name."""
  learning = stage.state.adapters if name == 'rl' else {name: stage.state.adapters}
  return {**learning, **stage.frozen}


def device_bytes(tree: Tree) -> int:
  """Bytes of one device's shards of shapes, summed over the leaves that lie in its memory."""
  def of(leaf):
    if leaf.sharding and leaf.sharding.memory_kind == 'pinned_host':
      return 0
    shape = leaf.sharding.shard_shape(leaf.shape) if leaf.sharding else leaf.shape
    return math.prod(shape) * leaf.dtype.itemsize

  return sum(of(leaf) for leaf in jax.tree.leaves(tree))


def program(stage: Stage, name: str, **how: Any) -> dict[str, int]:
  """Bytes of one compiled program; 'transient_bytes' is what it needs beside what is held."""
  compiled = stage.programs[name]
  parts = memory.analysis(compiled.compile(options(stage, **how)))
  batch = device_bytes(compiled.batch)
  results = parts['outputs_bytes'] - parts['aliases_bytes']
  return parts | {'batch_bytes': batch,
                  'transient_bytes': batch + results + parts['temporaries_bytes']}


def operations(stage: Stage, name: str) -> float:
  """Floating-point operations of one run of a program, per device, if they are evenly split."""
  run = stage.programs[name]
  loops = turns(run) if name == 'rollout' else ()
  return flops.count(run.trace().jaxpr, loops) / devices(stage)


def turns(sampling: Program) -> list[int]:
  """How often the loops of a rollout run if every response is as long as it may be.

  A batch decodes in stages of growing caches, R - 1 tokens in all (the first one is the prompt's).
  In slots there is a loop of two: prompts enter a quarter of the slots at a time, and all slots
  advance.
  """
  new, (rows, at_a_time) = sampling.static['max_new_tokens'], _at_a_time(sampling)
  if at_a_time is None:
    sizes = batch.stages(new)
    ends = [1, *(size + (size != new) for size in sizes)]
    return [end - start for start, end in zip(ends, ends[1:])]
  return [1, -(-rows // slots.entering(at_a_time)), -(-rows // at_a_time) * (new - 1)]


def _at_a_time(sampling: Program) -> tuple[int, int | None]:
  """Responses of a rollout, and how many are made at a time; None: all."""
  rows = sampling.arguments[3].shape[0] * sampling.static.get('samples', 1)
  return rows, slots.fewer(sampling.static.get('slots'), rows)


def devices(stage: Stage) -> int:
  """Devices of the mesh."""
  return stage.state.step.sharding.num_devices


def rows(stage: Stage) -> int:
  """The batch size: rows of the update, in rl several for a prompt."""
  return jax.tree.leaves(stage.programs['update'].batch)[0].shape[0]


def ways(stage: Stage) -> int:
  """Devices over which a batch is spread."""
  leaf = next(iter(stage.batch.values()))
  return leaf.shape[0] // leaf.sharding.shard_shape(leaf.shape)[0]


def cache_bytes(stage: Stage) -> int:
  """Keys and values of a rollout, of all layers: a part of its temporaries; 0 without one.

  Per device, spread as the rows are.
  """
  if 'rollout' not in stage.programs:
    return 0
  sampling = stage.programs['rollout']
  model, base, policy, tokens, mask, _ = sampling.arguments
  options = {'max_new_tokens': 1, 'samples': 1, 'cache': 'model'} | sampling.static
  at_a_time = _at_a_time(sampling)[1]
  rows, count = (len(tokens), options['samples']) if at_a_time is None else (at_a_time, 1)

  def cache(base, policy, tokens, mask):
    parts = decode.parts(model, base, policy, copy=options.get('copy'))
    _, kv = decode.prefill(
      model, parts, tokens[:rows], mask[:rows],
      options['max_new_tokens'], count=count, kind=options['cache'])
    return kv.prompt, kv.own

  return device_bytes(jax.eval_shape(cache, base, policy, tokens, mask)) // ways(stage)


def stage(built: Stage, name: str, **how: Any) -> dict[str, Any]:
  """Everything that a forecast says of a stage, per device; `how` as in `options`."""
  parts = held(built, name)
  trained = {r: a for r, a in roles(built, name).items() if r not in built.frozen}
  ran = {p: program(built, p, **how) | {'flops': operations(built, p)} for p in built.programs}
  total = sum(parts.values())
  for figures in ran.values():
    figures['peak_bytes'] = total + figures['transient_bytes']
  return {
    'batch_size': rows(built),
    'devices': devices(built),
    'ways': ways(built),
    'held': parts,
    'held_bytes': total,
    'gradients_bytes': sum(device_bytes(adapters.split(a)[0]) for a in trained.values()),
    'cache_bytes': cache_bytes(built),
    'programs': ran,
    'peak_bytes': max(figures['peak_bytes'] for figures in ran.values()),
    'flops': sum(figures['flops'] for figures in ran.values()),
    'trainable': {role: adapters.count(adapter) for role, adapter in trained.items()},
  }
