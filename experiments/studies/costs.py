r"""What every PEFT method trains, stores and needs at some size, by shapes alone.

    python -m experiments.studies costs --config=configs/coffee.py:size=tiny --methods=all \
        --targets='q;q,v;q,k,v,o' --ranks=1,2,4,8 --stage=rl --json=methods.json
    python -m experiments.studies costs --config=configs/coffee.py:size=tiny \
        --config.model.size=llama-2-7b --methods=lora,vera --no_forecast

A row for each method, set of targets (patterns with commas, sets with semicolons) and rank:
trainable parameters, bytes of adapter and optimizer, peak memory and operations of the compiled
step; --no_forecast compiles nothing. A method that ignores targets or ranks has one row for all of
them. That is seen from the shapes of its adapters: a new file of perl/peft/methods needs no word
here.
"""

import argparse
import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from experiments.studies import _jobs as jobs
from experiments.studies._engine import Table
from experiments.studies._jobs import Spec, numbers
from perl import trees
from perl.cli import launch
from perl.config.fields import ConfigError, plain
from perl.config.validate import validate
from perl.forecast import measure
from perl.forecast.devices import TERA
from perl.jobs import ADAPTED
from perl.jobs import _programs as programs
from perl.peft import adapters
from perl.train import metrics, provenance
from perl.types import Tree

NEEDS = ('config',)
FAMILIES = (
  'full', 'lora', 'rslora', 'lora_plus', 'lora_fa', 'dora', 'pissa', 'adalora', 'vera', 'mole',
  'intrinsic', 'houlsby', 'pfeiffer', 'prefix', 'prompt', 'bitfit', 'ia3', 'lntuning', 'topk',
)
"""The order of the table: like beside like. Methods that are not named here come last."""

PROBES = {'targets': (('q',), ('q', 'v')), 'rank': (1, 2)}
"""Two values of each field, to see whether a method's shapes follow it."""


HEAD = ('method', 'targets', 'rank or size', 'trainable', '% of the base', 'adapter', 'optimizer')
FORECAST = ('peak memory', 'TFLOP a step')
UNITS = ('B', 'KiB', 'MiB', 'GiB', 'TiB')


@dataclasses.dataclass(frozen=True)
class Choice:
  """A method with what it is asked for; None where it takes no notice."""

  method: str
  targets: tuple[str, ...] | None
  rank: int | None
  sizes: dict[str, int] = dataclasses.field(default_factory=dict)  # see `sizes_of`

  def config(self, config: ConfigDict) -> ConfigDict:
    """The config with this choice."""
    fields = {'targets': self.targets, 'rank': self.rank}
    return measure.copy(config, peft__name=self.method, **{
      f'peft__{name}': value for name, value in fields.items() if value is not None})

  def __str__(self) -> str:
    targets = self.targets and f'targets {", ".join(self.targets)}'
    return ', '.join(x for x in (self.method, targets, self.rank and f'rank {self.rank}') if x)


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Methods x targets x ranks, the stage, and whether it is compiled."""
  jobs.add_methods(parser)
  parser.add_argument('--targets', default='', help='patterns with commas, sets of them with '
                      'semicolons; the config\'s unless given')
  parser.add_argument('--ranks', default='', help='with commas; the config\'s unless given')
  parser.add_argument('--stage', default='sft', choices=ADAPTED)
  parser.add_argument('--no_forecast', '--no-forecast', action='store_true',
                      help='counts alone: compile nothing')


def collect(spec: Spec, options: argparse.Namespace) -> dict[str, Any]:
  """{'title', 'config', 'stage', 'base_parameters', 'notes', 'rows': of `row`, where it ran}."""
  config, stage, forecast = launch.check(spec.config()), options.stage, not options.no_forecast
  rows, wanted = [], candidates(
    config, stage, methods(options.methods), sets(options.targets) or [tuple(config.peft.targets)],
    ranks(options.ranks) or [config.peft.rank])
  with metrics.progress(len(wanted), desc='methods') as bar:
    for choice in wanted:
      rows.append(row(config, stage, choice, forecast=forecast))
      bar.update()
  parameters = trees.count(programs.learner(config, stage)[0])
  return {'title': title(config, stage, parameters), 'config': plain(config), 'stage': stage,
          'base_parameters': parameters, 'notes': notes(config, stage, forecast=forecast),
          'rows': rows, **provenance.record()}


def methods(text: str) -> list[str]:
  """The methods of 'lora,dora', or all that there are for 'all', in the table's order."""
  names = jobs.methods(text)
  place = {name: i for i, name in enumerate(FAMILIES)}
  return sorted(names, key=lambda name: (place.get(name, len(place)), name))


def sets(text: str) -> list[tuple[str, ...]]:
  """'q;q,v' -> [('q',), ('q', 'v')].

  Raises:
    ConfigError: a pattern is empty.
  """
  parts = [tuple(part.split(',')) for part in text.split(';')] if text else []
  if any(not pattern for part in parts for pattern in part):
    raise ConfigError(f'expected --targets like q;q,v;q,k,v,o, found {text!r}; leave no part empty')
  return parts


def ranks(text: str) -> list[int]:
  """'1,2' -> [1, 2].

  Raises:
    ConfigError: something is no positive number.
  """
  values = numbers(text, '--ranks=1,2,4,8') if text else ()
  if 0 in values:
    raise ConfigError(f'expected --ranks like 1,2,4,8, found {text!r}; give positive numbers')
  return list(values)


def candidates(
  config: ConfigDict, stage: str, names: Sequence[str], targets: Sequence[tuple[str, ...]],
  ranks: Sequence[int],
) -> list[Choice]:
  """The rows that there will be: methods x targets x ranks, without what a method ignores.

  Args:
    config: valid.
    stage: one of perl.jobs.TRAINED.
    names: methods.
    targets: sets of patterns, as peft.targets.
    ranks: as peft.rank.
  """
  base, rows = programs.learner(config, stage)[0], []
  for name in names:
    shapes = functools.partial(_shapes, config, base, name)
    follows = {field: shapes(**{field: one}) != shapes(**{field: other})
               for field, (one, other) in PROBES.items()}
    sizes = sizes_of(config, shapes)
    rows += [Choice(name, *choice, sizes) for choice in itertools.product(
      targets if follows['targets'] else [None], ranks if follows['rank'] else [None])]
  return rows


def sizes_of(config: ConfigDict, shapes: Callable[..., Any]) -> dict[str, int]:
  """The whole numbers of config.peft, but for the rank, that say how much a method trains.

  `shapes` is what it trains with some fields changed. Where 0 is the method's own choice, it says
  nothing and is left out.
  """
  fields = {n: v for n, v in config.peft.items() if type(v) is int and v > 0 and n not in PROBES}
  usual = shapes() if fields else None
  return {name: value for name, value in fields.items() if shapes(**{name: value + 1}) != usual}


def _shapes(config: ConfigDict, base: Tree, method: str, **changed: Any) -> Any:
  """What the method trains by path, as shapes, or why nothing is."""
  options = {**config.peft.to_dict(), **changed}
  del options['name']
  make = lambda base: adapters.init(jax.random.key(0), base, method, **options)
  try:
    return trees.flat(jax.eval_shape(make, base))
  except ValueError as error:
    return str(error)


def row(config: ConfigDict, stage: str, choice: Choice, *, forecast: bool) -> dict[str, Any]:
  """Everything that the table says of one choice, by shapes alone.

  Args:
    config: valid.
    stage: one of perl.jobs.TRAINED.
    choice: replaces the config's method, targets and rank.
    forecast: compile the stage's programs for peak memory and operations, too.

  Returns:
    {'method', 'targets', 'rank', 'sizes'} of the choice, and {'refused': why}, or {'trainable'
    (elements), 'share' (of the base's), 'adapter_bytes', 'optimizer_bytes'} summed over what learns
    (in rl policy and critic), and with a forecast {'peak_bytes', 'held_bytes', 'flops'} per device.
  """
  config, about = choice.config(config), dataclasses.asdict(choice)
  try:
    validate(config)
    base, state = programs.learner(config, stage)
    built = measure.build(config, stage) if forecast else None
  except (ValueError, FileNotFoundError) as error:  # of the config's checks, or of the jobs
    return {**about, 'refused': str(error)}
  figures = sizes(base, state, roles=stage == 'rl')
  if forecast:
    compiled = measure.stage(built, stage)
    figures |= {name: compiled[name] for name in ('peak_bytes', 'held_bytes', 'flops')}
  return {**about, **figures}


def sizes(base: Tree, state: Any, *, roles: bool) -> dict[str, int | float]:
  """What learns, in elements and bytes; `roles` tells adapters by role from one alone."""
  learning = list(state.adapters.values()) if roles else [state.adapters]
  trainable = sum(adapters.count(adapter) for adapter in learning)
  optimizer = [leaf for leaf in jax.tree.leaves(state.opt_state) if hasattr(leaf, 'dtype')]
  return {
    'trainable': trainable,
    'share': trainable / trees.count(base),
    'adapter_bytes': sum(adapters.size_bytes(adapter) for adapter in learning),
    'optimizer_bytes': trees.size_bytes(optimizer),
  }


def size(count: float) -> str:
  """Bytes in the largest unit of which there is at least one: '3.42 MiB'."""
  power = 0
  while count >= 1024 and power < len(UNITS) - 1:
    count, power = count / 1024, power + 1
  return f'{count:,.{min(2, 2 * power)}f} {UNITS[power]}'


def table(results: Mapping[str, Any]) -> Table:
  """A line for each row; what was refused has its reason below."""
  rows = results['rows']
  head = [*HEAD, *(FORECAST if any('flops' in row for row in rows) else ())]
  refusals = dict.fromkeys(
    f'{row["method"]} is refused: {row["refused"]}' for row in rows if 'refused' in row)
  return head, [_cells(row, len(head)) for row in rows], [*refusals, *results['notes']]


def _cells(row: Mapping[str, Any], width: int) -> list[str]:
  size_of = [str(row['rank'])] if row['rank'] else []
  size_of += [f'{name} {value}' for name, value in row['sizes'].items()]
  first = [row['method'], ', '.join(row['targets'] or ()) or 'its own', ', '.join(size_of) or '–']
  if 'refused' in row:
    return [*first, 'refused', *[''] * (width - 4)]
  cells = [*first, f'{row["trainable"]:,}', f'{row["share"]:.4%}'.rstrip('%'),
           size(row['adapter_bytes']), size(row['optimizer_bytes'])]
  if 'flops' in row:
    cells += [size(row['peak_bytes']), f'{row["flops"] / TERA:,.4g}']
  return cells


def title(config: ConfigDict, stage: str, parameters: int) -> str:
  """What the table is of."""
  c = config.model
  return (f'{stage} of {c.checkpoint or c.size}, {parameters:,} parameters in '
          f'{c.quantize or c.param_dtype}, '
          f'batch {config[stage].batch_size}, remat {c.remat}')


def notes(config: ConfigDict, stage: str, *, forecast: bool) -> list[str]:
  """How to read the figures."""
  lines = ['By shapes alone: nothing was allocated or run. Adapter: bytes of its checkpoint, fixed '
           'data included. Targets and rank are left out where a method ignores them.']
  if stage == 'reward':
    lines += ['The reward head is counted with its adapter.']
  if stage == 'rl':
    lines += ['Policy and, with a value baseline, critic and its head are summed.']
  if forecast:
    lines += ['Peak memory: what the stage holds throughout (the base included) and the most that '
              'one of its programs adds, as XLA for CPU compiles it at the longest batch; while it '
              'updates what is trained, it holds up to two more copies of that. TFLOP: matrix '
              'products of all programs of a step, recomputation included.']
  if forecast and 'bfloat16' in (config.model.dtype, config.model.param_dtype):
    lines += ['bfloat16 is compiled as float16, of the same size, without the float32 copies that '
              'CPUs make.']
  return lines
