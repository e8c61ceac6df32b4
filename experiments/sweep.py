"""The paper's comparison: PEFT methods x seeds over one base, one anchor a seed, one reward model.

    python -m experiments.sweep --config=configs/coffee.py:size=tiny --workdir=runs/coffee \
        --peft=lora,full --seeds=0,1,2

<workdir>/base/{tokenizer,pretrain}       shared by all rows
<workdir>/seed<k>/sft                     the anchor of seed k, by full tuning
<workdir>/seed<k>/<peft>/reward           a row's own reward model
<workdir>/seed<k>/<peft>/{rl,evaluate}    both against the reward model of --reward_from

The config file is read anew for every row, with that row's peft and seed as arguments, so that it
sets what belongs to a method (learning rates) itself; overrides by flag apply to every row.
Finished stages are skipped. Ends with the table.
"""

import importlib
import pathlib
import sys
from collections.abc import Sequence

from ml_collections import ConfigDict

from configs import arguments
from configs.fields import ConfigError, nearest
from experiments import cli, launch, platform

BASE_STAGES = ('tokenizer', 'pretrain')
ANCHOR_METHOD = 'full'
OWN = ('seed', 'peft.name', 'inputs.tokenizer', 'inputs.base', 'inputs.anchor', 'inputs.reward',
       'inputs.policy')
"""Fields that the sweep sets itself."""


class Sweep:
  """The rows of a comparison, as configs and folders."""

  def __init__(
    self, spec: str, overrides: Sequence[str], workdir: str, *, reward_from: str
  ) -> None:
    self.file, _, self.text = spec.partition(':')
    self.overrides = list(overrides)
    self.workdir = pathlib.Path(workdir)
    self.reward_from = reward_from

  def config(self, **replaced) -> ConfigDict:
    """The config file's, with these arguments in place of the given ones."""
    text = arguments.merge(self.text, **replaced)
    return cli.read(f'{self.file}:{text}' if text else self.file, self.overrides)

  def base(self) -> ConfigDict:
    """Tokenizer and pretraining: the file's own seed, so that more seeds can be added later."""
    return self.config()

  def anchor(self, seed: int) -> ConfigDict:
    """SFT of one seed, whatever the rows' method: the reference is the same for all of them."""
    config = self.config(peft=ANCHOR_METHOD, seed=seed)
    config.inputs.update(self._folders(tokenizer='tokenizer', base='pretrain'))
    return config

  def row(self, peft: str, seed: int) -> ConfigDict:
    """Reward, RL and evaluation of one method and seed; the reward stage makes its own model."""
    config = self.config(peft=peft, seed=seed)
    config.inputs.update(self._folders(tokenizer='tokenizer', base='pretrain'))
    config.inputs.anchor = str(self.workdir / f'seed{seed}' / 'sft')
    if peft != self.reward_from:
      config.inputs.reward = str(self.row_folder(self.reward_from, seed) / 'reward')
    return config

  def row_folder(self, peft: str, seed: int) -> pathlib.Path:
    """The pipeline folder of one row."""
    return self.workdir / f'seed{seed}' / peft

  def _folders(self, **stages: str) -> dict[str, str]:
    return {name: str(self.workdir / 'base' / stage) for name, stage in stages.items()}


def run(sweep: Sweep, methods: Sequence[str], seeds: Sequence[int]) -> None:
  """Runs all that is not finished yet; every config is checked before the first stage starts.

  Raises:
    ConfigError: a config is not valid, or a folder holds a stage of another config.
    launch.Stopped: a signal stopped a stage.
  """
  base = launch.check(sweep.base())
  anchors = {seed: launch.check(sweep.anchor(seed)) for seed in seeds}
  rows = {(seed, peft): launch.check(sweep.row(peft, seed)) for seed in seeds for peft in methods}
  launch.run_stages(base, _among(base, BASE_STAGES), sweep.workdir / 'base')
  for seed in seeds:
    launch.run_stages(anchors[seed], _among(base, ('sft',)), sweep.workdir / f'seed{seed}')
    for stages in (('reward',), ('rl', 'evaluate')):  # all reward models first: rl shares one
      for peft in methods:
        folder = sweep.row_folder(peft, seed)
        launch.run_stages(rows[seed, peft], _among(base, stages), folder)


def _among(config: ConfigDict, stages: Sequence[str]) -> tuple[str, ...]:
  return tuple(stage for stage in stages if stage in config.stages)


def methods_of(text: str) -> tuple[str, ...]:
  """'lora,full' -> ('lora', 'full'); each once."""
  names = tuple(filter(None, (name.strip() for name in text.split(','))))
  if not names or len(set(names)) < len(names):
    raise ConfigError(f'expected --peft=<name>,<name>, each once, found {text!r}; '
                      'write for example --peft=lora,full')
  return names


def seeds_of(text: str) -> tuple[int, ...]:
  """'0,1,2' -> (0, 1, 2); each once."""
  names = methods_or_seeds = [piece.strip() for piece in text.split(',') if piece.strip()]
  if not names or not all(name.isdecimal() for name in names) or len(set(names)) < len(names):
    raise ConfigError(f'expected --seeds=<number>,<number>, each once, found {text!r}; '
                      'write for example --seeds=0,1,2')
  return tuple(int(name) for name in methods_or_seeds)
