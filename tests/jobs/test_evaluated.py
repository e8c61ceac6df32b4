"""Every stage that measures a split reads evaluate.max_examples of it, spread evenly."""

import pytest
import toyrun as run
from test_resume import from_run

from perl.jobs import STAGES, TRAINED, pretrain, reward
from perl.jobs._data import Data


@pytest.mark.parametrize('stage', [pretrain, reward])
def test_a_stage_measures_as_many_examples_as_it_is_asked_to(stage, toyrun, tmp_path, monkeypatch):
  name = stage.__name__.rpartition('.')[2]
  read, encode = {}, Data.rows

  def rows(data, examples, kind, **more):
    read.setdefault(len(examples), kind)
    return encode(data, examples, kind, **more)

  monkeypatch.setattr(Data, 'rows', rows)
  config = from_run(toyrun, evaluate__max_examples=5, **{f'{name}__steps': 1})
  with run.small_world():
    result = stage.run(config, str(tmp_path / name))
  assert set(read) <= {5, run.ROWS['train'], run.ROWS['dev']}  # the step's memory reads dev
  assert 5 in read
  if name == 'reward':
    assert result['examples'] <= 5


@pytest.mark.parametrize('stage', TRAINED)
def test_what_is_measured_is_part_of_the_stages_identity(stage):
  assert 'evaluate.max_examples' in STAGES[stage].also
