"""What is compared: rows of configs that differ in the method and its options, over seeds."""

import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from experiments import sweep
from experiments.statistics import Estimate, estimate
from perl import choices
from perl.config import runs
from perl.config.fields import ConfigError, flatten
from perl.jobs import ADAPTED

Found = Sequence[dict[str, Any]]
"""Rows of `collect`."""

GRID_TARGETS = {'q': ('attn/q',), 'q,v': ('attn/(q|v)',), 'q,k,v,o': ('attn/(q|k|v|o)',)}
"""Hu et al.'s sets of matrices, Table 6."""
GRID_RANKS = (1, 2, 4, 8, 64)
STAGES = ('sft', 'reward')
FIGURES = (
  ('SFT loss', 'sft', 'test_loss'), ('perplexity', 'sft', 'test_perplexity'),
  ('exact match', 'sft', 'test_exact_match'), ('RM AUC', 'reward', 'auc'),
  ('RM pair accuracy', 'reward', 'pair_accuracy'),
)
"""What methods are compared by, on the test split: (title, stage, field of its summary)."""


class Row(NamedTuple):
  """One line of a table: a method, with fields that differ from the config file's."""

  name: str  # of its folder
  peft: str
  fields: dict[str, Any] = {}
  factor: float = 1.0  # of the file's learning rates


UNTOUCHED = Row(
  'untouched', 'lora',
  {f'{stage}.{name}': value for stage in STAGES
   for name, value in (('steps', 1), ('optim.warmup_steps', 0))}, 1e-9)
"""What all methods start from: LoRA is the identity then, and one step of nothing leaves it so."""
ANCHOR = Row('anchor', sweep.ANCHOR_METHOD)
"""Under the reward models of a seed."""


def methods(text: str) -> list[Row]:
  """A row a method, of a list with commas; 'all' adds what they start from."""
  known = choices.names('perl.peft.methods')
  if text == 'all':
    return [UNTOUCHED, *(Row(name, name) for name in known)]
  names = sweep.methods_of(text)
  if unknown := [name for name in names if name not in known]:
    raise ConfigError(f'expected methods among {", ".join(known)}, found {unknown[0]!r}')
  return [Row(name, name) for name in names]


def grid(ranks: Sequence[int] = GRID_RANKS) -> list[Row]:
  """LoRA by rank and matrices, at one scale alpha / r, as Hu et al. have it."""
  return [
    Row(grid_name(targets, rank), 'lora',
        {'peft.targets': patterns, 'peft.rank': rank, 'peft.alpha': 2.0 * rank})
    for targets, patterns in GRID_TARGETS.items() for rank in ranks]


def grid_name(targets: str, rank: int) -> str:
  """The row of the grid for a set of GRID_TARGETS: 'qv_r4'."""
  return f'{targets.replace(",", "")}_r{rank}'


def rates(text: str, factors: Sequence[float]) -> list[Row]:
  """Every method at several times its learning rates."""
  return [Row(f'{row.name}_x{factor:g}', row.peft, {}, factor)
          for row in methods(text) if row is not UNTOUCHED for factor in factors]


def config(made: sweep.Sweep, row: Row, seed: int, *, test: bool) -> ConfigDict:
  """The row's config over the tokenizer and base of all, and the anchor of its seed.

  Args:
    made: the comparison's files and folders.
    row: what it is.
    seed: of its stages.
    test: measure sft on the test split.
  """
  found = made.config(peft=row.peft, seed=seed)
  found.update_from_flattened_dict(row.fields)
  for stage in ADAPTED:
    found[stage].optim.learning_rate *= row.factor
  found.sft.test = test
  base = made.workdir / 'base'
  found.inputs.update(tokenizer=str(base / 'tokenizer'), base=str(base / 'pretrain'))
  return found


def collect(workdir: str | pathlib.Path, rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
  """What is finished of all rows and seeds.

  Yields:
    {'name', 'peft', 'seed', 'times': the row's factor, 'learning_rate': of its SFT, as it was
    run, stage: its summary}.
  """
  for row in rows:
    for folder in sorted(pathlib.Path(workdir).glob(f'seed*/{row.name}')):
      found = {stage: summary for stage in STAGES
               if (summary := runs.summary(folder / stage))}
      if found:
        config = flatten(runs.read_json(folder / 'sft' / 'config.json', {}))
        yield {
          'name': row.name, 'peft': row.peft, 'seed': int(folder.parent.name.removeprefix('seed')),
          'times': row.factor, 'learning_rate': config.get('sft.optim.learning_rate'), **found}


def values(found: Found, stage: str, field: str, **which: Any) -> list[float]:
  """A figure of the rows that have it, and the values of `which`: name, peft, seed or times."""
  return [row[stage][field] for row in found
          if field in row.get(stage, {}) and all(row[k] == v for k, v in which.items())]


def over_seeds(found: Found, stage: str, field: str, **which: Any) -> Estimate | None:
  """The mean of `values` with its interval; None if there are none."""
  return estimate(values(found, stage, field, **which))


def by_loss(found: Found) -> list[str]:
  """Names of rows from the least test loss; those without one come last."""
  loss = {name: over_seeds(found, 'sft', 'test_loss', name=name)
          for name in dict.fromkeys(row['name'] for row in found)}
  return sorted(loss, key=lambda name: loss[name].mean if loss[name] else float('inf'))
