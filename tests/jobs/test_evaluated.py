"""A stage that measures a split reads evaluate.max_examples of it, spread evenly."""

import pytest
import toyrun as run
from test_resume import from_run

from perl.jobs import ADAPTED, STAGES, reward
from perl.jobs._data import Data


def test_a_reward_model_is_measured_on_as_many_examples_as_asked_for(
  toyrun, tmp_path, monkeypatch
):
  read, encode = set(), Data.rows

  def rows(data, examples, kind, **more):
    read.add(len(examples))
    return encode(data, examples, kind, **more)

  monkeypatch.setattr(Data, 'rows', rows)
  config = from_run(toyrun, evaluate__max_examples=5, reward__steps=1)
  with run.small_world():
    result = reward.run(config, str(tmp_path / 'reward'))
  # The memory of a step is that of the longest of all dev rows.
  assert read == {5, run.ROWS['train'], run.ROWS['dev']} and result['examples'] <= 5


@pytest.mark.parametrize('stage', ADAPTED)
def test_how_many_are_measured_is_part_of_a_stages_identity(stage):
  assert 'evaluate.max_examples' in STAGES[stage].also
