"""What a published checkpoint brings (model.checkpoint), and what then has no effect."""

import functools
import sys
from collections.abc import Iterable, Sequence

from ml_collections import ConfigDict

from perl.config.fields import ConfigError
from perl.config.schema import FIELDS
from perl.jobs import PRODUCER, PUBLISHED

READ = ('tokenizer.path', 'tokenizer.foreign')
"""Fields of the tokenizer that count beside a checkpoint."""


def left(config: ConfigDict, stages: Sequence[str], *, asked: bool) -> tuple[str, ...]:
  """The stages without those that make what the checkpoint brings; one line says so.

  Args:
    config: with a model.checkpoint, or without one: then all stages are left.
    stages: of it.
    asked: they are named by whoever runs them, not by a config file: then pretraining stays, and
      goes on from the checkpoint.

  Raises:
    ConfigError: no stage is left of those that were asked for.
  """
  if not config.model.checkpoint:
    return tuple(stages)
  makers = [PRODUCER[name] for name in PUBLISHED if not (asked and name == 'base')]
  away = [stage for stage in stages if stage in makers]
  if away:
    _say(f'{" and ".join(away)} left out: {config.model.checkpoint} brings what '
         f'{"they make" if len(away) > 1 else "it makes"}')
  if asked and away and len(away) == len(stages):
    raise ConfigError(
      f'expected a stage to run beside model.checkpoint={config.model.checkpoint}, found '
      f'{", ".join(away)} alone, which makes what it brings; name others')
  return tuple(stage for stage in stages if stage not in makers)


@functools.cache
def _say(line: str) -> None:
  print(line, file=sys.stderr)


def check_idle(config: ConfigDict, paths: Iterable[str | None], stages: Sequence[str]) -> None:
  """Refuses fields that a flag sets and nothing reads, for the checkpoint brings what they make.

  A config file may hold them: they are those of a run without a checkpoint.

  Args:
    config: of the run.
    paths: fields that flags set.
    stages: those that run.

  Raises:
    ConfigError: which names them.
  """
  if not config.model.checkpoint:
    return
  sections = [PRODUCER['tokenizer']] + [s for s in [PRODUCER['base']] if s not in stages]
  idle = [path for path in FIELDS if path.split('.')[0] in sections and path not in READ]
  named = sorted({'model.size', *idle}.intersection(paths))
  if named:
    raise ConfigError(
      f'expected no {", ".join(named)} beside model.checkpoint={config.model.checkpoint}, which '
      f'brings what {"they are" if len(named) > 1 else "it is"} of: nothing would read '
      f'{"them" if len(named) > 1 else "it"}; leave the flag out')
