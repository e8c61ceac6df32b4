"""Rows of the table: what a method trains, stores and needs, at some targets and a rank.

A method that ignores targets or ranks has one row for all of them. That is seen from the shapes of
its adapters, so that a new file of perl/peft needs no word here.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from perl import choices, trees
from perl.config.fields import ConfigError, nearest
from perl.config.validate import validate
from perl.forecast import measure
from perl.jobs import _programs as programs
from perl.peft import adapters
from perl.types import Tree

FAMILIES = (
  'full', 'lora', 'rslora', 'lora_plus', 'lora_fa', 'dora', 'pissa', 'adalora', 'vera', 'mole',
  'intrinsic', 'houlsby', 'pfeiffer', 'prefix', 'prompt', 'bitfit', 'ia3', 'lntuning', 'topk',
)
"""The order of the table: like beside like. Methods that are not named here come last."""

PROBES = {'targets': (('q',), ('q', 'v')), 'rank': (1, 2)}
"""Two values of each field, to see whether a method's shapes follow it."""


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


def methods(text: str) -> list[str]:
  """The methods of 'lora,dora', or all that there are for 'all', in the table's order.

  Raises:
    ConfigError: nobody knows one of them.
  """
  known = choices.names('perl.peft.methods')
  names = known if text == 'all' else text.split(',')
  for name in names:
    if name not in known:
      raise ConfigError(f'expected --methods=all or some of {", ".join(known)}, found {name!r}'
                        f'{nearest(name, known) or "; name files of perl/peft"}')
  place = {name: i for i, name in enumerate(FAMILIES)}
  return sorted(names, key=lambda name: (place.get(name, len(place)), name))


def candidates(
  config: ConfigDict, stage: str, names: Sequence[str], targets: Sequence[tuple[str, ...]],
  ranks: Sequence[int],
) -> list[Choice]:
  """The rows that there will be: methods x targets x ranks, without what a method ignores.

  Args:
    config: valid.
    stage: one of perl.jobs._programs.STAGES.
    names: methods.
    targets: sets of patterns, as peft.targets.
    ranks: as peft.rank.
  """
  base, found = programs.learner(config, stage)[0], []
  for name in names:
    shapes = functools.partial(_shapes, config, base, name)
    follows = {field: shapes(**{field: one}) != shapes(**{field: other})
               for field, (one, other) in PROBES.items()}
    sizes = sizes_of(config, shapes)
    found += [Choice(name, *asked, sizes) for asked in itertools.product(
      targets if follows['targets'] else [None], ranks if follows['rank'] else [None])]
  return found


def sizes_of(config: ConfigDict, shapes: Callable[..., Any]) -> dict[str, int]:
  """The whole numbers of config.peft, but for the rank, that say how much a method trains.

  `shapes` is what it trains with some fields changed. Where 0 is the method's own choice, it says
  nothing and is left out.
  """
  numbers = {n: v for n, v in config.peft.items() if type(v) is int and v > 0 and n not in PROBES}
  usual = shapes() if numbers else None
  return {name: value for name, value in numbers.items() if shapes(**{name: value + 1}) != usual}


def _shapes(config: ConfigDict, base: Tree, method: str, **changed: Any) -> Any:
  """What the method trains by path, as shapes, or why nothing is."""
  options = {**config.peft.to_dict(), **changed}
  del options['name']
  make = lambda base: adapters.init(jax.random.key(0), base, method, **options)
  try:
    return trees.flat(jax.eval_shape(make, base))
  except ValueError as error:
    return str(error)


def _learner(config: ConfigDict, stage: str) -> tuple[Tree, Any]:
  """programs.learner; what the config's checks or the jobs refuse is a ConfigError."""
  validate(config)
  try:
    return programs.learner(config, stage)
  except (ValueError, FileNotFoundError) as error:
    raise ConfigError(str(error)) from error


def row(config: ConfigDict, stage: str, choice: Choice, *, forecast: bool) -> dict[str, Any]:
  """Everything that the table says of one choice, by shapes alone.

  Args:
    config: valid.
    stage: one of perl.jobs._programs.STAGES.
    choice: replaces the config's method, targets and rank.
    forecast: compile the stage's programs for peak memory and operations, too.

  Returns:
    {'method', 'targets', 'rank', 'sizes'} of the choice, and {'refused': why}, or {'trainable'
    (elements), 'share' (of the base's), 'adapter_bytes', 'optimizer_bytes'} summed over what learns
    (in rl policy and critic), and with a forecast {'peak_bytes', 'held_bytes', 'flops'} per device.
  """
  config, asked = choice.config(config), dataclasses.asdict(choice)
  try:
    base, state = _learner(config, stage)
    found = sizes(base, state, roles=stage == 'rl')
    if forecast:
      figures = measure.stage(measure.build(config, stage), stage)
      found |= {name: figures[name] for name in ('peak_bytes', 'held_bytes', 'flops')}
  except ConfigError as error:
    return {**asked, 'refused': str(error)}
  return {**asked, **found}


def sizes(base: Tree, state: Any, *, roles: bool) -> dict[str, int | float]:
  """What learns, in elements and bytes; `roles` tells adapters by role from one alone."""
  learning = list(state.adapters.values()) if roles else [state.adapters]
  trainable = sum(adapters.count(adapter) for adapter in learning)
  return {
    'trainable': trainable,
    'share': trainable / trees.count(base),
    'adapter_bytes': sum(adapters.size_bytes(adapter) for adapter in learning),
    'optimizer_bytes': trees.size_bytes(_arrays(state.opt_state)),
  }


def _arrays(tree: Tree) -> list[Any]:
  return [leaf for leaf in jax.tree.leaves(tree) if hasattr(leaf, 'dtype')]


def rows(
  config: ConfigDict, stage: str, chosen: Sequence[Choice], *, forecast: bool = True,
  tick: Callable[[Choice], None] = lambda choice: None,
) -> list[dict[str, Any]]:
  """`row` of every choice; `tick` is called after each."""
  found = []
  for choice in chosen:
    found.append(row(config, stage, choice, forecast=forecast))
    tick(choice)
  return found
