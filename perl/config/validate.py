"""The checks that a config passes before anything is computed."""

import datetime
from collections.abc import Iterable, Iterator
from typing import Any

from ml_collections import ConfigDict

from perl import choices, paths, patterns
from perl.config import checks, schema
from perl.config.fields import ConfigError, flatten, kind, nearest, pick
from perl.config.rates import COPIES
from perl.hub import pretrained
from perl.jobs import ADAPTED, STAGES, TRAINED
from perl.models.config import SIZES
from perl.train import optim

FULL_TUNING_RATE = 5e-5
"""Adapters hardly move below this rate: the paper's are 1e-4 and more, its full ones 1e-5."""


def validate(config: ConfigDict) -> list[str]:
  """Checks every value and how values fit together.

  Returns:
    warnings, one sentence each: what may be meant but seldom is.

  Raises:
    ConfigError: with everything that is wrong, each as expected, found, remedy.
  """
  flat = flatten(config)
  if problems := [wrong for path, value in flat.items() for wrong in _kind(path, value)]:
    raise ConfigError('\n'.join(problems))  # the others take the kinds for granted
  problems = [problem for path, value in flat.items() for problem in _value(path, value)]
  for check in (_stages, _batches, _optimizers, _sampling, *checks.CHECKS, _targets, _mesh, _parts,
                _folds, _buckets, _date, _starts, _checkpoint, _quantized):
    problems.extend(check(config))
  if problems:
    raise ConfigError('\n'.join(problems))
  return [*_slow_adapters(config), *_long_warmups(config), *_narrow_samplers(config)]


def _date(config: ConfigDict) -> Iterator[str]:
  """The day of a template's clock."""
  try:
    datetime.date.fromisoformat(config.data.date or '2026-03-31')
  except ValueError:
    yield f"expected data.date to be a day as '2026-03-31', found {config.data.date!r}; write it so"


def _kind(path: str, value: Any) -> Iterator[str]:
  """One field: that it is declared, and of its type."""
  if path not in schema.FIELDS:
    yield (f'expected fields of perl/config/schema.py, found {path!r}'
           f'{nearest(path, schema.FIELDS)}; '
           'declare it there or remove it')
  elif not (known := kind(schema.FIELDS[path])).fits(value):
    yield (f'expected {path} to be {known.expected}, found {value!r:.60}; write for example '
           f'--config.{path}="{schema.FIELDS[path].default}"')


def _value(path: str, value: Any) -> Iterator[str]:
  """One field against its own bounds and choices."""
  field = schema.FIELDS[path]
  if value is None:
    return
  for one in value if isinstance(value, (tuple, list)) else [value]:
    if field.choices:
      yield from _among(one, field.choices, f'{path} to be one of {_listed(field.choices)}')
    if field.package:  # names resolve by file: perl/choices.py
      yield from _among(one, choices.names(field.package),
                        f'{path} to name a file of {choices.folder(field.package)}')
  if field.unit == 'path' and value:
    try:
      paths.of(value)
    except ValueError as error:
      yield f'{path}: {error}'
  if path == 'model.size':
    yield from _among(value, SIZES, f'model.size to be one of {_listed(SIZES)}')
  if field.low is not None and not value >= field.low:
    yield f'expected {path} to be at least {field.low}, found {value}; raise it'
  if field.high is not None and not value <= field.high:
    yield f'expected {path} to be at most {field.high}, found {value}; lower it'


def _among(value: Any, names: Iterable, expected: str) -> Iterator[str]:
  if value not in names:
    yield f'expected {expected}, found {value!r}{pick(value, list(map(str, names)))}'


def _listed(names: Iterable) -> str:
  return ', '.join(map(str, names))


def _stages(config: ConfigDict) -> Iterator[str]:
  stages = list(config.stages)
  unknown = [s for s in stages if s not in STAGES]
  for stage in unknown:
    yield (f'expected stages among {", ".join(STAGES)}, found {stage!r}'
           f'{pick(stage, list(STAGES))}; '
           'as a flag: --config.stages="(\'sft\', \'reward\')"')
  ordered = [s for s in STAGES if s in stages]
  if not unknown and stages != ordered:
    yield f'expected each stage once, in order, found {stages}; write {tuple(ordered)}'
  if not stages:
    yield 'expected at least one stage, found none; set stages'


def _batches(config: ConfigDict) -> Iterator[str]:
  for stage in TRAINED:
    section = config[stage]
    if section.microbatches > 0 and section.batch_size % section.microbatches:
      yield (f'expected {stage}.microbatches to divide {stage}.batch_size, found '
             f'{section.microbatches} and {section.batch_size}; change either')
    if section.optim.learning_rate <= 0:
      yield (f'expected {stage}.optim.learning_rate to be positive, found '
             f'{section.optim.learning_rate}; raise it')


def _optimizers(config: ConfigDict) -> Iterator[str]:
  for stage in TRAINED:
    name = config[stage].optim.name
    for option in sorted({*optim.OPTIONS['adamw']} - {*optim.OPTIONS.get(name, ())}):
      value, usual = config[stage].optim[option], schema.FIELDS[f'{stage}.optim.{option}'].default
      if name in optim.OPTIONS and value != usual:
        yield (f'expected {stage}.optim.{option}={usual} for {stage}.optim.name={name}, found '
               f'{value}: it would not be read; leave it, or set {stage}.optim.name=adamw')


def _sampling(config: ConfigDict) -> Iterator[str]:
  if config.rl.top_k or config.rl.top_p != 1:
    yield (f'expected rl.top_k=0 and rl.top_p=1, found {config.rl.top_k} and {config.rl.top_p}; '
           'log-probs of training are of the whole distribution, so sample from it; '
           'rl.temperature applies to both')


def _targets(config: ConfigDict) -> Iterator[str]:
  if not config.peft.targets:
    yield 'expected a pattern in peft.targets, found none; the paper\'s is \'attn/(q|k|v|o)\''
  for pattern in config.peft.targets:
    try:
      patterns.check(pattern, 'peft.targets')
    except ValueError as error:
      yield f'{error}, for example attn/(q|v)'


def _mesh(config: ConfigDict) -> Iterator[str]:
  sizes = {axis: config.mesh[axis] for axis in ('data', 'fsdp', 'tensor')}
  if 0 in sizes.values() or list(sizes.values()).count(-1) > 1:
    yield (f'expected axes of the mesh of at least 1, and at most one of them -1 (all that is '
           f'left), found {sizes}; use data=-1, fsdp=1, tensor=1 for plain data parallelism')


def _parts(config: ConfigDict) -> Iterator[str]:
  if not config.data.parts or config.data.name not in choices.names('perl.data.sets'):
    return
  known = getattr(choices.find('perl.data.sets', config.data.name), 'PARTS', ())
  for part in config.data.parts:
    if part not in known:
      yield (f'expected data.parts among {", ".join(known) or "none"} for data.name='
             f'{config.data.name}, found {part!r}{pick(part, list(known)) if known else ""}')


def _folds(config: ConfigDict) -> Iterator[str]:
  folds, fold = config.data.folds, config.data.fold
  if folds == 1:
    yield 'expected data.folds to be 0 or at least 2, found 1; use 0 for the fixed split'
  if fold and fold >= folds:
    yield (f'expected data.fold below data.folds, found {fold} and {folds}; '
           'count folds from 0, or raise data.folds')


def _buckets(config: ConfigDict) -> Iterator[str]:
  lengths = list(config.data.buckets)
  whole = all(isinstance(n, int) and n > 0 for n in lengths)
  if not whole or lengths != sorted(set(lengths)):
    yield (f'expected data.buckets to be positive lengths that rise, found {tuple(lengths)}; '
           'write for example (128, 256)')


def _starts(config: ConfigDict) -> Iterator[str]:
  for stage in ADAPTED:
    if config[stage].adapter and config.peft.name != 'lora':
      yield (f'expected peft.name=lora to start {stage} from {config[stage].adapter}, found '
             f'{config.peft.name!r}; set peft.name=lora, or {stage}.adapter=\'\'')


def _checkpoint(config: ConfigDict) -> Iterator[str]:
  if config.model.checkpoint:
    try:
      pretrained.read_config(config.model.checkpoint)
    except (ValueError, OSError) as error:
      yield f'model.checkpoint: {error}'


def _quantized(config: ConfigDict) -> Iterator[str]:
  if config.model.quantize and config.peft.name in COPIES:
    yield (f'expected model.quantize=\'\' for peft.name={config.peft.name}, found '
           f'{config.model.quantize!r}: only frozen matrices are quantized; set peft.name=lora, '
           "or model.quantize=''")
  if config.model.quantize and config.rl.decode == 'merged':
    yield (f'expected rl.decode=adapter or auto for model.quantize={config.model.quantize}, found '
           "'merged': merged matrices are dense; set rl.decode=auto")


def _slow_adapters(config: ConfigDict) -> Iterator[str]:
  if config.peft.name in COPIES:
    return
  rates = {f'{s}.optim.learning_rate': config[s].optim.learning_rate
           for s in ADAPTED if s in config.stages}
  for path, rate in rates.items():
    if rate < FULL_TUNING_RATE:
      yield (f'{path} is {rate:g}, a rate for full tuning; {config.peft.name} hardly learns below '
             f'{FULL_TUNING_RATE:g}: 1e-4 to 1e-3 is usual')


def _narrow_samplers(config: ConfigDict) -> Iterator[str]:
  narrow = {'model.dtype': config.model.dtype, 'rl.cache': config.rl.cache}
  for path, value in narrow.items():
    if config.rl.behaviour == 'sampler' and value not in ('float32', 'model'):
      yield (f'rl.behaviour is sampler with {path}={value}: the ratio to what was sampled is not 1 '
             'before any update; auto takes the log-probs of the trainer')


def _long_warmups(config: ConfigDict) -> Iterator[str]:
  for stage in TRAINED:
    section = config[stage]
    if stage in config.stages and section.optim.warmup_steps >= section.steps:
      yield (f'{stage}.optim.warmup_steps is {section.optim.warmup_steps}, of {section.steps} '
             'steps: the learning rate never reaches its peak')
