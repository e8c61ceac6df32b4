"""A stage compiles its step for all lengths of its batches before the first."""

import logging

import jax
import pytest
import toyrun as run
from test_resume import from_run

from perl.jobs import preference, pretrain, reward, sft

STAGES = {'sft': sft, 'reward': reward, 'preference': preference, 'pretrain': pretrain}


@pytest.mark.parametrize('stage', STAGES)
def test_every_length_is_compiled_before_the_first_step(stage, toyrun, tmp_path, caplog):
  more = {f'{stage}__evaluate_every_steps': 0, f'{stage}__checkpoint_every_steps': 0}
  config = from_run(
    toyrun, data__buckets=(4,), data__auto_buckets=2, data__max_prompt_tokens=64, **more)
  with run.small_world() as patch, run.counted_compilations(patch) as counts:
    jax.clear_caches()
    with caplog.at_level(logging.INFO):
      STAGES[stage].run(config, str(tmp_path / stage))
  assert 'compiled the step for 2 lengths' in caplog.text
  assert counts == {}
