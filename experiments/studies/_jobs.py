"""What a study runs: configs of rows and seeds, in folders that several processes share.

A folder is held by a lock of the operating system on a file in it, which a process that ends, or is
killed, lets go of; what it left unfinished is then another's to resume.
"""

import argparse
import contextlib
import fcntl
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from perl import choices
from perl.cli import launch
from perl.config import arguments, command_line
from perl.config.fields import ConfigError, nearest
from perl.jobs import ADAPTED, STAGES

LOCK = '.taken'
ANCHOR_METHOD = 'full'
"""What every anchor is tuned by, whatever the method of the rows over it."""
SHARED = {stage: STAGES[stage].makes for stage in ('tokenizer', 'pretrain', 'sft')}
"""What rows share: the stage that makes it -> the input that names it."""


class Row(NamedTuple):
  """One line of a table: what differs from the config file."""

  name: str
  peft: str = ''  # the file's argument; '' leaves it as it is
  fields: Mapping[str, Any] = {}
  factor: float = 1.0  # of the file's learning rates

  @property
  def folder(self) -> str:
    """Of its runs, within that of a seed."""
    return self.name.replace('/', '-')


class Job(NamedTuple):
  """Stages of a config that stand in one folder."""

  config: ConfigDict
  stages: Sequence[str]
  folder: pathlib.Path


class Spec:
  """What a study begins with: a config file with arguments, overrides by flag, and a folder.

  The file is read anew for every row, with that row's arguments, so that it sets what belongs to a
  method (learning rates) itself. Overrides apply to every row.
  """

  def __init__(self, config: str, overrides: Sequence[str], workdir: str) -> None:
    self.file, _, self.text = config.partition(':')
    self.overrides = list(overrides)
    self.workdir = pathlib.Path(workdir)

  def config(self, **replaced: Any) -> ConfigDict:
    """The config file's, with these arguments in place of the given ones."""
    text = arguments.merge(self.text, **replaced)
    return command_line.read(f'{self.file}:{text}' if text else self.file, self.overrides)

  def row(self, row: Row, seed: int) -> ConfigDict:
    """The config of a row and seed."""
    config = self.config(**({'peft': row.peft} if row.peft else {}), seed=seed)
    config.update_from_flattened_dict(dict(row.fields))
    for stage in ADAPTED:
      config[stage].optim.learning_rate *= row.factor
    return config

  def reads(self, config: ConfigDict, **folders: str) -> ConfigDict:
    """Sets inputs of the config to folders of the study, such as base='base/pretrain'.

    The last part is the stage. Inputs that the user names stay, and so do those that no stage of
    the config makes: they come with a published checkpoint.
    """
    for name, folder in folders.items():
      if folder.rpartition('/')[2] in config.stages and not config.inputs[name]:
        config.inputs[name] = str(self.workdir / folder)
    return config

  def job(self, config: ConfigDict, stages: Sequence[str], folder: str) -> Job:
    """Those of the stages that the config asks for, in a folder of the study."""
    return Job(config, [stage for stage in stages if stage in config.stages], self.workdir / folder)

  def shared(self, config: ConfigDict, stages: Sequence[str], folder: str) -> Job:
    """`job` of what rows share: less the stages whose result the user names."""
    made = [stage for stage in stages if not config.inputs[STAGES[stage].makes]]
    return self.job(config, made, folder)


def run(phases: Sequence[Sequence[Job]]) -> None:
  """Runs all that is not finished; a phase begins when the one before it is finished.

  Every config is checked before the first stage starts.

  Raises:
    ConfigError: a config is not valid, or a folder holds a stage of another config.
    SystemExit: a signal stopped a stage.
  """
  for config in {id(job.config): job.config for phase in phases for job in phase}.values():
    launch.check(config)
  for phase in phases:
    share([job for job in phase if job.stages])


def share(jobs: Sequence[Job]) -> None:
  """Returns when all are finished, whoever ran them: free ones first, then those held by others."""
  left = [job for job in jobs if not _attempt(job, wait=False)]
  for job in left:
    _attempt(job, wait=True)


def _attempt(job: Job, *, wait: bool) -> bool:
  with hold(job.folder, wait=wait) as mine:
    if mine:
      launch.run_stages(job.config, job.stages, job.folder)
      jax.clear_caches()  # a row's programs serve no other, and there are hundreds of rows
  return mine


@contextlib.contextmanager
def hold(folder: pathlib.Path, *, wait: bool) -> Iterator[bool]:
  """Whether this process holds the folder; with `wait` it does in the end."""
  folder.mkdir(parents=True, exist_ok=True)
  with open(folder / LOCK, 'w', encoding='utf-8') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
      yield False
    else:
      yield True


def add_seeds(parser: argparse.ArgumentParser) -> None:
  """The flag --seeds."""
  parser.add_argument('--seeds', default='0,1,2', help='seeds of each row')


def seeds_of(options: argparse.Namespace) -> tuple[int, ...]:
  """Those of --seeds."""
  return numbers(options.seeds, '--seeds=0,1,2')


def add_methods(parser: argparse.ArgumentParser) -> None:
  """The flag --methods."""
  parser.add_argument('--methods', default='all', help='some, with commas')


def methods(text: str) -> list[str]:
  """The PEFT methods that --methods names."""
  return chosen(text, choices.names('perl.peft.methods'), '--methods')


def words(text: str, example: str) -> tuple[str, ...]:
  """'lora,full' -> ('lora', 'full').

  Args:
    text: of a flag.
    example: the flag as it is right, such as '--peft=lora,full'.

  Raises:
    ConfigError: none, or one twice.
  """
  names = tuple(filter(None, map(str.strip, text.split(','))))
  if not names or len(set(names)) < len(names):
    raise ConfigError(f'expected {example.partition("=")[0]} with commas, each once, found '
                      f'{text!r}; write for example {example}')
  return names


def numbers(text: str, example: str) -> tuple[int, ...]:
  """'0,1,2' -> (0, 1, 2); arguments and errors as of `words`."""
  pieces = words(text, example)
  if not all(map(str.isdecimal, pieces)):
    raise ConfigError(f'expected numbers with commas, each once, found {text!r}; write for example '
                      f'{example}')
  return tuple(map(int, pieces))


def chosen(text: str, known: Sequence[str], flag: str) -> list[str]:
  """Those of the known names that 'all' or 'name,name' names.

  Raises:
    ConfigError: a name is none of them.
  """
  names = list(known) if text == 'all' else list(words(text, f'{flag}={known[0]}'))
  for name in names:
    if name not in known:
      raise ConfigError(f'expected {flag}=all or some of {", ".join(known)}, found {name!r}'
                        f'{nearest(name, known)}')
  return names
