"""A killed stage goes on to the bit; broken checkpoints and NaN are told by name."""

import logging
import os
import pathlib
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import toyrun as run

from perl.jobs import reward, rl, sft
from perl.train import checkpoint, loop

JOBS = {'sft': sft, 'reward': reward, 'rl': rl}
INPUTS = {'tokenizer': 'tokenizer', 'base': 'pretrain', 'anchor': 'sft', 'reward': 'reward'}
KILLED = 5
"""The step in which the signal comes: off the grid of checkpoints, which are of 2, 4 and 6."""


def from_run(toyrun, **overrides):
  """The pipeline's config with its finished stages as inputs."""
  inputs = {f'inputs__{name}': str(toyrun / stage) for name, stage in INPUTS.items()}
  return run.config(**inputs, **overrides)


def same_result(stage, folder, toyrun):
  """Adapter, metrics and summary are those of the run that nothing interrupted."""
  ours, _ = checkpoint.load_tree(folder / 'adapter')
  theirs, _ = checkpoint.load_tree(toyrun / stage / 'adapter')
  tiny.equal(ours, theirs)
  assert run.rows(folder) == run.rows(toyrun / stage)
  clock = {'wall_seconds', 'step_seconds', 'peak_memory_bytes', 'hardware', 'commit'}
  summaries = [run.read(f / 'summary.json') for f in (folder, toyrun / stage)]
  ours, theirs = ({k: v for k, v in s.items() if k not in clock} for s in summaries)
  assert ours == theirs


def send_sigterm(state):
  os.kill(os.getpid(), signal.SIGTERM)
  return state


def poison(state):
  """NaN in every number that is learnt."""
  spoil = lambda x: x * jnp.nan if jnp.issubdtype(x.dtype, jnp.floating) else x
  return state.replace(adapters=jax.tree.map(spoil, state.adapters))


@pytest.fixture(scope='module', params=list(JOBS))
def interrupted(request, toyrun, tmp_path_factory) -> tuple[str, pathlib.Path]:
  """(stage, its folder) after a SIGTERM within step 5; to be copied, not written."""
  stage = request.param
  folder = tmp_path_factory.mktemp(f'interrupted_{stage}') / stage
  with run.small_world() as patch:
    run.in_step(patch, KILLED, send_sigterm)
    with pytest.raises(loop.Interrupted) as stopped:
      JOBS[stage].run(from_run(toyrun), str(folder))
  assert stopped.value.code == 143 and f'step {KILLED}' in stopped.value.message
  assert not (folder / 'summary.json').exists() and not (folder / 'adapter').exists()
  assert checkpoint.Checkpoints(folder / 'checkpoints').all_steps()[-1] == KILLED
  return stage, folder


def again(interrupted, toyrun, tmp_path, **overrides):
  """(stage, folder) after the interrupted stage was run once more, in a copy."""
  stage, folder = interrupted
  mine = tmp_path / stage
  if not mine.exists():
    shutil.copytree(folder, mine)
  with run.small_world():
    JOBS[stage].run(from_run(toyrun, **overrides), str(mine))
  return stage, mine


def test_a_resumed_run_is_the_run_that_was_never_interrupted(interrupted, toyrun, tmp_path):
  stage, _ = interrupted
  free = {f'{stage}__keep_last': 3, f'{stage}__log_every_steps': 1, 'evaluate__batch_size': 16}
  stage, folder = again(interrupted, toyrun, tmp_path, **free)
  same_result(stage, folder, toyrun)


def test_a_truncated_checkpoint_is_passed_over_with_a_warning(
  interrupted, toyrun, tmp_path, caplog
):
  stage, folder = interrupted
  mine = tmp_path / stage
  shutil.copytree(folder, mine)
  newest = mine / 'checkpoints' / str(KILLED)
  largest = max((p for p in newest.rglob('*') if p.is_file()), key=lambda p: p.stat().st_size)
  os.truncate(largest, largest.stat().st_size // 2)
  with caplog.at_level(logging.WARNING):
    again(interrupted, toyrun, tmp_path)
  assert f'passing over the checkpoint of step {KILLED}' in caplog.text
  assert largest.name in caplog.text
  same_result(stage, mine, toyrun)


def test_nan_stops_the_run_and_names_the_last_good_checkpoint(interrupted, toyrun, tmp_path):
  stage, folder = interrupted
  with pytest.MonkeyPatch.context() as patch:
    run.in_step(patch, 1, poison)
    with pytest.raises(FloatingPointError) as error:
      again(interrupted, toyrun, tmp_path)
  kept = tmp_path / stage / 'checkpoints'
  assert f'step {KILLED} in {kept}' in str(error.value)
  assert 'Lower the learning rate' in str(error.value)
  tree = checkpoint.Checkpoints(kept).restore().tree
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(tree['adapters']))
  assert not (tmp_path / stage / 'summary.json').exists()


def test_a_checkpoint_of_another_config_is_refused(interrupted, toyrun, tmp_path):
  with pytest.raises(checkpoint.MismatchError) as error:
    again(interrupted, toyrun, tmp_path, peft__rank=4)
  assert 'rank: expected 4, found 2' in str(error.value) and 'remedy' in str(error.value)
