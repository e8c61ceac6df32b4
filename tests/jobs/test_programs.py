"""Programs on shapes alone are those that the jobs run, to the letter."""

import functools
import importlib
import re

import jax
import pytest
import toyrun as run
from test_resume import from_run

from perl import trees
from perl.jobs import TRAINED
from perl.jobs import _programs as programs
from perl.rl import step as rl_step
from perl.train import memory
from perl.train import step as steps


class Seen(Exception):
  """The job has run what was wanted of it."""


def recorded(patch, module, name, programs, key, stop=False):
  """Patches module.name, a maker of jitted functions, to keep the StableHLO of the first call."""
  make = getattr(module, name)

  @functools.wraps(make)
  def patched(*args, **kwargs):
    made = make(*args, **kwargs)

    def call(*arguments):
      programs.setdefault(key, made.lower(*arguments).as_text())
      if stop:
        raise Seen
      return made(*arguments)

    return call

  patch.setattr(module, name, patched)


def sampled(patch, programs):
  """Keeps the StableHLO of the last rollout."""
  inner = rl_step.rollout

  def rollout(*arguments, **options):
    programs['rollout'] = inner.lower(*arguments, **options).as_text()
    return inner(*arguments, **options)

  patch.setattr(rl_step, 'rollout', rollout)


def ran(config, stage, folder, devices=1):
  """{program: StableHLO} of a job's first step."""
  found = {}
  with run.small_world(devices) as patch:
    recorded(patch, steps, 'make_train_step', found, 'update', stop=True)
    if stage == 'rl':
      sampled(patch, found)
      recorded(patch, rl_step, 'make_judge', found, 'rewards')
      recorded(patch, rl_step, 'make_experience', found, 'experience')
    with pytest.raises(Seen):
      importlib.import_module(f'perl.jobs.{stage}').run(config, str(folder / stage))
  return found


def planned(config, stage, devices=1):
  """{program: StableHLO} by shapes alone."""
  with run.small_world(devices):
    made = programs.stage(config, stage)
    return {name: program.lower().as_text() for name, program in made.programs.items()}


def essence(text):
  """The functions of a program on one device, without what says nothing there.

  That is placements, the ids of end and padding, and how often XLA is given the same function.
  """
  text = re.sub(r'dense<\d+> : tensor<i32>', 'dense<id> : tensor<i32>', text)
  text = re.sub(r'@(\w+?)_\d+\b', r'@\1', text)
  text = re.sub(r'( \{|, )sdy\.sharding = #sdy\.sharding<@mesh, \[.*?\]>\}?', '', text)
  return {part.rstrip('}\n ') for part in text.split('func.func ')}


@pytest.mark.parametrize('stage', TRAINED)
def test_what_is_compiled_is_what_the_job_runs(toyrun, tmp_path, stage):
  config = from_run(toyrun)
  theirs, ours = ran(config, stage, tmp_path), planned(config, stage)
  assert list(theirs) == list(ours)
  for name, text in theirs.items():
    assert essence(ours[name]) == essence(text), name


def test_on_a_mesh_too(toyrun, tmp_path):
  config = from_run(toyrun, mesh__data=2, mesh__fsdp=2, mesh__tensor=2)
  assert planned(config, 'sft', devices=8) == ran(config, 'sft', tmp_path, devices=8)


@pytest.mark.parametrize('stage', ('reward', 'rl'))
def test_the_peak_is_that_of_the_summary(toyrun, stage):
  with run.small_world():
    made = programs.stage(from_run(toyrun), stage)
    found = memory.analysis(made.programs['update'].compile())
  assert found['total_bytes'] == run.read(toyrun / stage / 'summary.json')['peak_memory_bytes']


def test_nothing_is_allocated_whatever_the_size():
  config = run.config(model__size='llama-2-7b')
  before = {id(x) for x in jax.live_arrays()}
  with run.small_world():
    made = {stage: programs.stage(config, stage) for stage in ('reward', 'rl')}
  new = [x for x in jax.live_arrays() if id(x) not in before]
  assert sum(x.nbytes for x in new) < 2**16, [x.shape for x in new]
  assert trees.count(made['rl'].base) == 6_738_415_616
  assert all(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(made['rl'].state))


def test_roles_are_those_of_the_config():
  with run.small_world():
    both = programs.stage(run.config(), 'rl')
    one = programs.stage(run.config(rl__baseline='batch_mean'), 'rl')
  assert set(both.state.adapters) == {'policy', 'critic'} and set(one.state.adapters) == {'policy'}
  assert set(both.frozen) == {'reference', 'reward'} and 'head' in both.frozen['reward']
  assert list(both.programs) == ['rollout', 'rewards', 'experience', 'update']


@pytest.mark.parametrize('overrides, message', [
  ({'mesh__fsdp': 3, 'mesh__data': 1}, 'product is the 1 devices'),
  ({'peft__rank': 1000}, 'expected a rank from 1 to'),
  ({'model__size': 'llama-2-7b', 'tokenizer__vocab_size': 40_000}, 'at most 32000 tokens'),
])
def test_what_a_job_refuses_is_refused(overrides, message):
  with run.small_world(), pytest.raises(ValueError, match=message):
    programs.stage(run.config(**overrides), 'sft')


def test_rows_that_the_mesh_does_not_divide_are_refused():
  with run.small_world(devices=8), pytest.raises(ValueError, match='the 8 devices'):
    programs.stage(run.config(sft__batch_size=12), 'sft')


def test_an_unknown_stage_is_refused():
  with pytest.raises(ValueError, match='expected a stage among pretrain'):
    programs.stage(run.config(), 'evaluate')
