"""What of a config determines a stage's result. Without jax, as programs ask before they load it.

A config is flat here: {'peft.rank': 8, ...}. The fields in perl/jobs FREE determine nothing.
What lies behind a path counts by its content: _reading.py.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from perl import paths
from perl.jobs import FREE, PRODUCER, PUBLISHED, STAGES

Flat = Mapping[str, Any]


def flatten(tree: Mapping | ConfigDict, prefix: str = '') -> dict[str, Any]:
  """{'peft': {'rank': 8}} -> {'peft.rank': 8}."""
  out = {}
  for name, value in tree.items():
    if isinstance(value, (Mapping, ConfigDict)):
      out.update(flatten(value, f'{prefix}{name}.'))
    else:
      out[f'{prefix}{name}'] = value
  return out


def from_checkpoint(config: Flat, name: str) -> bool:
  """Whether an input is a published checkpoint's: no folder is named, and no stage makes it.

  No stage makes a tokenizer beside a checkpoint: its ids are those that the base knows.
  """
  made = PRODUCER[name] in config['stages'] and name != 'tokenizer'
  elsewhere = config[f'inputs.{name}'] or made
  return name in PUBLISHED and bool(config['model.checkpoint']) and not elsewhere


def inputs(config: Flat, stage: str) -> tuple[str, ...]:
  """The inputs that a stage reads: no reward model where rules alone reward."""
  ruled = STAGES[stage].ruled and not config['rl.reward_weight']
  return tuple(name for name in STAGES[stage].reads if not (ruled and name == 'reward'))


def own(config: Flat, stage: str) -> dict[str, Any]:
  """The fields that a stage reads itself, as far as they change its result."""
  about = STAGES[stage]
  return {
    path: value for path, value in config.items()
    if (path.split('.')[0] in about.sections or path in about.also) and path not in FREE}


def of(config: Flat, stage: str) -> dict[str, Any]:
  """The fields that determine a stage's result: its own, and those of the stages it builds on.

  An input that is named by path stands for the stages behind it, whose fields then do not count.
  """
  fields = own(config, stage)
  for name in inputs(config, stage):
    fields[f'inputs.{name}'] = str(paths.of(config[f'inputs.{name}']))
    if from_checkpoint(config, name):
      fields['model.checkpoint'] = str(paths.of(config['model.checkpoint']))
      fields['tokenizer.path'] = config['tokenizer.path']
    elif not config[f'inputs.{name}']:
      fields.update(of(config, PRODUCER[name]))
  return fields
