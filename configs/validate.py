"""The checks that a config passes before anything is computed."""

import importlib
import importlib.util
import math
import pathlib
import re
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from configs import base
from configs.fields import ConfigError, Field, flatten, nearest

COPIES = ('full', 'topk')
"""Methods that train copies of kernels: at full tuning's rates, and over no quantized base."""

FULL_TUNING_RATE = 5e-5
"""Adapters hardly move below this rate: the paper's are 1e-4 and more, its full ones 1e-5."""


def validate(config: ConfigDict) -> list[str]:
  """Checks every value and how values fit together.

  Returns:
    warnings, one sentence each: what may be meant but seldom is.

  Raises:
    ConfigError: with everything that is wrong, each as expected, found, remedy.
  """
  problems = [
    problem for path, value in flatten(config).items() for problem in _value(path, value)
  ]
  for check in (_stages, _batches, _sampling, _algorithm, _rules, _targets, _mesh, _parts, _folds,
                _buckets, _reward, _ensemble, _preferences, _starts, _checkpoint, _quantized):
    problems.extend(check(config))
  if problems:
    raise ConfigError('\n'.join(problems))
  return [*_slow_adapters(config), *_long_warmups(config)]


def _value(path: str, value: Any) -> Iterator[str]:
  """One field against its own bounds and choices."""
  if path not in base.FIELDS:
    yield (f'expected fields of configs/base.py, found {path!r}{nearest(path, base.FIELDS)}; '
           'declare it there or remove it')
    return
  field = base.FIELDS[path]
  if value is None and field.default is None:
    return
  for one in value if isinstance(value, (tuple, list)) else [value]:
    if field.choices and one not in field.choices:
      names = [str(choice) for choice in field.choices]
      yield f'expected {path} to be one of {", ".join(names)}, found {one!r}{_pick(one, names)}'
    if field.folder:
      yield from _file(path, one, field)
  if path == 'model.size':
    yield from _size(value)
  if field.low is not None and not value >= field.low:
    yield f'expected {path} to be at least {field.low}, found {value}; raise it'
  if field.high is not None and not value <= field.high:
    yield f'expected {path} to be at most {field.high}, found {value}; lower it'


def _pick(value: Any, names: list[str]) -> str:
  return nearest(str(value), names) or '; choose one'


def package() -> pathlib.Path:
  """The folder of the package perl, found without importing it."""
  return pathlib.Path(importlib.util.find_spec('perl').submodule_search_locations[0])


def _file(path: str, value: str, field: Field) -> Iterator[str]:
  """Names resolve by file: perl/<folder>/<value>.py, or a package of that name."""
  names = list(names_in(field.folder, field.defines))
  if value not in names:
    yield (f'expected {path} to name a file of perl/{field.folder}, found {value!r}'
           f'{_pick(value, names)}')


def names_in(folder: str, defines: str = '') -> tuple[str, ...]:
  """The modules of perl/<folder>, or those that define or import a name."""
  return tuple(sorted(
    p.stem for p in (package() / folder).glob('*')
    if p.stem != '__init__' and (p.suffix == '.py' or (p / '__init__.py').exists())
    and (not defines or _defines(p, defines))
  ))


def _defines(file: pathlib.Path, name: str) -> bool:
  """Whether a module has that name, as its text says; nothing is imported."""
  text = file.read_text('utf-8') if file.is_file() else ''
  return re.search(rf'^(def {name}\(|class {name}\b|from .*\b{name}\b)', text, re.M) is not None


def _size(value: str) -> Iterator[str]:
  from perl.models.config import SIZES  # imports jax, which must follow experiments.platform.tune

  if value not in SIZES:
    yield (f'expected model.size to be one of {", ".join(SIZES)}, found {value!r}'
           f'{_pick(value, list(SIZES))}')


def _stages(config: ConfigDict) -> Iterator[str]:
  stages = list(config.stages)
  unknown = [s for s in stages if s not in base.STAGES]
  for stage in unknown:
    yield (f'expected stages among {", ".join(base.STAGES)}, found {stage!r}'
           f'{_pick(stage, list(base.STAGES))}; as a flag: --config.stages="(\'sft\', \'reward\')"')
  ordered = [s for s in base.STAGES if s in stages]
  if not unknown and stages != ordered:
    yield f'expected each stage once, in order, found {stages}; write {tuple(ordered)}'
  if not stages:
    yield 'expected at least one stage, found none; set stages'


def _batches(config: ConfigDict) -> Iterator[str]:
  for stage in base.TRAINED:
    section = config[stage]
    if section.microbatches > 0 and section.batch_size % section.microbatches:
      yield (f'expected {stage}.microbatches to divide {stage}.batch_size, found '
             f'{section.microbatches} and {section.batch_size}; change either')
    if section.optim.learning_rate <= 0:
      yield (f'expected {stage}.optim.learning_rate to be positive, found '
             f'{section.optim.learning_rate}; raise it')


def _sampling(config: ConfigDict) -> Iterator[str]:
  if config.rl.top_k or config.rl.top_p != 1:
    yield (f'expected rl.top_k=0 and rl.top_p=1, found {config.rl.top_k} and {config.rl.top_p}; '
           'log-probs of training are of the whole distribution, so sample from it; '
           'rl.temperature applies to both')


def _algorithm(config: ConfigDict) -> Iterator[str]:
  if config.rl.algorithm not in names_in('rl', 'policy_loss'):
    return  # said of the field itself
  from perl.rl import options  # imports jax, as _size does

  rl = options.resolve(config.rl.algorithm, config.rl.to_dict())
  yield from options.problems(rl)
  parts = [rl[name] for name in ('samples', 'minibatches', 'microbatches')]
  if min(parts) > 0 and rl['batch_size'] % math.prod(parts):
    yield (f'expected rl.samples times rl.minibatches times rl.microbatches to divide '
           f'rl.batch_size, found {parts[0]}, {parts[1]}, {parts[2]} and {rl["batch_size"]}; '
           'change one')


def _rules(config: ConfigDict) -> Iterator[str]:
  known = names_in('rl/rules')
  for name in config.rl.rules:
    if name not in known and ':' not in name:
      yield (f"expected rl.rules to name files of perl/rl/rules or 'module:function', found "
             f'{name!r}{_pick(name, list(known))}')
  if config.rl.rule_weights and len(config.rl.rule_weights) != len(config.rl.rules):
    yield (f'expected a weight for each of rl.rules, found {len(config.rl.rule_weights)} for '
           f'{len(config.rl.rules)}; set rl.rule_weights')
  if not config.rl.reward_weight and not config.rl.rules:
    yield ('expected a reward model or rules, found rl.reward_weight=0 and no rl.rules: nothing '
           'would be rewarded; set either')


def _targets(config: ConfigDict) -> Iterator[str]:
  if not config.peft.targets:
    yield 'expected a pattern in peft.targets, found none; the paper\'s is \'attn/(q|k|v|o)\''
  for pattern in config.peft.targets:
    try:
      re.compile(pattern)
    except (re.error, TypeError) as error:
      yield (f'expected regular expressions in peft.targets, found {pattern!r} ({error}); '
             'write for example attn/(q|v)')


def _mesh(config: ConfigDict) -> Iterator[str]:
  sizes = {axis: config.mesh[axis] for axis in ('data', 'fsdp', 'tensor')}
  if 0 in sizes.values() or list(sizes.values()).count(-1) > 1:
    yield (f'expected axes of the mesh of at least 1, and at most one of them -1 (all that is '
           f'left), found {sizes}; use data=-1, fsdp=1, tensor=1 for plain data parallelism')


def _parts(config: ConfigDict) -> Iterator[str]:
  if not config.data.parts or config.data.name not in names_in('data'):
    return
  known = getattr(importlib.import_module(f'perl.data.{config.data.name}'), 'PARTS', ())
  for part in config.data.parts:
    if part not in known:
      yield (f'expected data.parts among {", ".join(known) or "none"} for data.name='
             f'{config.data.name}, found {part!r}{_pick(part, list(known)) if known else ""}')


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
  if lengths and config.data.auto_buckets:
    yield (f'expected data.buckets or data.auto_buckets, found both, {tuple(lengths)} and '
           f'{config.data.auto_buckets}; set data.auto_buckets=0 or data.buckets=()')


def _reward(config: ConfigDict) -> Iterator[str]:
  reward = config.reward
  kinds = {
    'share_prompt': (('pairwise',), 'only a pair is laid out so'),
    'margin': (('pairwise',), 'only pairs have margins'),
    'centre': (('pairwise', 'ranking'), 'other scores have a zero already'),
    'probe': (('pairwise', 'pointwise'), 'a logistic regression is of pairs or thumbs'),
  }
  for name, (allowed, why) in kinds.items():
    if reward[name] and reward.kind not in allowed:
      yield (f'expected reward.kind={" or ".join(allowed)} for reward.{name}, found '
             f'{reward.kind!r}: {why}; set reward.{name}={type(reward[name])()}')
  for name in ('probe', 'adapter'):
    if reward[name] and reward.members > 1:
      yield (f'expected reward.members=1 for reward.{name}, found {reward.members}: all members '
             f'would start alike; set reward.{name}={type(reward[name])()!r}')


def _ensemble(config: ConfigDict) -> Iterator[str]:
  rl = config.rl
  ours = 'reward' in config.stages and 'rl' in config.stages and not config.inputs.reward
  if rl.ensemble != 'mean' and ours and config.reward.members < 2:
    yield (f'expected reward.members of at least 2 for rl.ensemble={rl.ensemble}, found '
           f'{config.reward.members}; set reward.members=4, or rl.ensemble=mean')
  if rl.ensemble_penalty and rl.ensemble != 'uncertainty':
    yield (f'expected rl.ensemble=uncertainty for rl.ensemble_penalty, found {rl.ensemble!r}: only '
           'it weighs the variance; set rl.ensemble_penalty=0.0')


def _preferences(config: ConfigDict) -> Iterator[str]:
  section = config.preference
  if section.method not in names_in('rl/preference', 'Method'):
    return
  from perl.rl import preference  # imports jax, as _size does

  method = preference.find(section.method)
  if method.drift and section.microbatches != 1:
    yield (f'expected preference.microbatches=1 for preference.method={section.method}, found '
           f'{section.microbatches}: its drift is of the whole batch; lower preference.batch_size')
  if method.drift and section.batch_size < 2:
    yield (f'expected preference.batch_size of at least 2 for preference.method={section.method}, '
           f'found {section.batch_size}: there must be another prompt; raise it')
  if section.share_prompt and method.examples != 'preference':
    yield (f'expected a method of pairs for preference.share_prompt, found {section.method!r}: a '
           'thumb has one response; set preference.share_prompt=False')


def _starts(config: ConfigDict) -> Iterator[str]:
  for stage in base.TRAINED[1:]:
    if config[stage].adapter and config.peft.name != 'lora':
      yield (f'expected peft.name=lora to start {stage} from {config[stage].adapter}, found '
             f'{config.peft.name!r}; set peft.name=lora, or {stage}.adapter=\'\'')


def _checkpoint(config: ConfigDict) -> Iterator[str]:
  if config.model.checkpoint:
    from perl.models import pretrained  # imports jax, as _size does

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
           for s in base.TRAINED[1:] if s in config.stages}
  for path, rate in rates.items():
    if rate < FULL_TUNING_RATE:
      yield (f'{path} is {rate:g}, a rate for full tuning; {config.peft.name} hardly learns below '
             f'{FULL_TUNING_RATE:g}: 1e-4 to 1e-3 is usual')


def _long_warmups(config: ConfigDict) -> Iterator[str]:
  for stage in base.TRAINED:
    section = config[stage]
    if stage in config.stages and section.optim.warmup_steps >= section.steps:
      yield (f'{stage}.optim.warmup_steps is {section.optim.warmup_steps}, of {section.steps} '
             'steps: the learning rate never reaches its peak')
