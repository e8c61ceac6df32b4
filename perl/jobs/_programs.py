"""The compiled programs of each trained stage, on shapes alone: each job says which they are."""

from ml_collections import ConfigDict

from perl import choices
from perl.jobs import TRAINED
from perl.jobs._plan import Plan, Stage
from perl.train import step as steps
from perl.types import Tree


def stage(config: ConfigDict, name: str) -> Stage:
  """What stage `name` of a valid config holds and runs on the devices that jax has.

  Raises:
    ValueError: no such stage; what the jobs themselves refuse of mesh, size, batch or adapter.
  """
  return _job(name).programs(Plan(config, name))


def learner(config: ConfigDict, name: str) -> tuple[Tree, steps.TrainState]:
  """(frozen base, what stage `name` learns before its first step), by shapes; without programs.

  Raises:
    ValueError: as `stage`.
  """
  plan = Plan(config, name)
  return plan.anchor.params, plan.first_state(*_job(name).learns(plan))[0]


def _job(name: str):
  if name not in TRAINED:
    raise ValueError(f'expected a stage among {", ".join(TRAINED)}, found {name!r}')
  return choices.find('perl.jobs', name)
