"""The paper's comparison: PEFT methods x seeds; an anchor and a reward model of RL for each seed.

    python -m experiments.sweep --config=configs/coffee.py:size=tiny --workdir=runs/coffee \
        --peft=lora,full --seeds=0,1,2 --bases=own

<workdir>/base/{tokenizer,pretrain}       shared by all rows; with --bases=own the tokenizer alone
<workdir>/seed<k>/pretrain                the base of seed k, with --bases=own
<workdir>/seed<k>/sft                     the anchor of seed k, by full tuning
<workdir>/seed<k>/<peft>/reward           a row's own reward model
<workdir>/seed<k>/<peft>/{rl,evaluate}    both against the reward model of --reward_from

The config file is read anew for every row, with that row's peft and seed as arguments, so that it
sets what belongs to a method (learning rates) itself; overrides by flag apply to every row.
Intervals over seeds that share a base say nothing of how bases differ; with --bases=own they do.
Finished stages are skipped. Ends with the table.
"""

import importlib
import pathlib
import sys
from collections.abc import Sequence

from ml_collections import ConfigDict

from perl.cli import launch
from perl.config import arguments, command_line, platform
from perl.config.fields import ConfigError

BASE_STAGES = ('tokenizer', 'pretrain')
ANCHOR_METHOD = 'full'
OWN = ('seed', 'peft.name', 'inputs.tokenizer', 'inputs.base', 'inputs.anchor', 'inputs.reward',
       'inputs.policy')
"""Fields that the sweep sets itself."""


class Sweep:
  """The rows of a comparison, as configs and folders."""

  def __init__(
    self, spec: str, overrides: Sequence[str], workdir: str, *, reward_from: str,
    own_bases: bool = False,
  ) -> None:
    self.file, _, self.text = spec.partition(':')
    self.overrides = list(overrides)
    self.workdir = pathlib.Path(workdir)
    self.reward_from, self.own_bases = reward_from, own_bases

  def config(self, **replaced) -> ConfigDict:
    """The config file's, with these arguments in place of the given ones."""
    text = arguments.merge(self.text, **replaced)
    return command_line.read(f'{self.file}:{text}' if text else self.file, self.overrides)

  def base(self) -> ConfigDict:
    """Tokenizer and pretraining: the file's own seed, so that more seeds can be added later."""
    return self.config()

  def anchor(self, seed: int) -> ConfigDict:
    """SFT of one seed, whatever the rows' method: the reference is the same for all of them.

    Where a seed has a base of its own, pretraining is in the same folder.
    """
    config = self.config(peft=ANCHOR_METHOD, seed=seed)
    config.inputs.update(self._given(config, seed))
    if self.own_bases:
      config.inputs.base = ''
    return config

  def row(self, peft: str, seed: int) -> ConfigDict:
    """Reward, RL and evaluation of one method and seed; the reward stage makes its own model."""
    config = self.config(peft=peft, seed=seed)
    config.inputs.update(self._given(config, seed))
    config.inputs.anchor = str(self.workdir / f'seed{seed}' / 'sft')
    if peft != self.reward_from:
      config.inputs.reward = str(self.row_folder(self.reward_from, seed) / 'reward')
    return config

  def row_folder(self, peft: str, seed: int) -> pathlib.Path:
    """The pipeline folder of one row."""
    return self.workdir / f'seed{seed}' / peft

  def _given(self, config: ConfigDict, seed: int) -> dict[str, str]:
    """Tokenizer and base of the rows of a seed; a published checkpoint needs no pretrain stage."""
    made = {'tokenizer': ('base', 'tokenizer'),
            'base': (f'seed{seed}' if self.own_bases else 'base', 'pretrain')}
    return {name: str(self.workdir / folder / stage) for name, (folder, stage) in made.items()
            if stage in config.stages}


def run(sweep: Sweep, methods: Sequence[str], seeds: Sequence[int]) -> None:
  """Runs all that is not finished yet; every config is checked before the first stage starts.

  Raises:
    ConfigError: a config is not valid, or a folder holds a stage of another config.
    SystemExit: a signal stopped a stage.
  """
  base = launch.check(sweep.base())
  anchors = {seed: launch.check(sweep.anchor(seed)) for seed in seeds}
  rows = {(seed, peft): launch.check(sweep.row(peft, seed)) for seed in seeds for peft in methods}
  of_all, of_seed = BASE_STAGES, ('sft',)
  if sweep.own_bases:
    of_all, of_seed = ('tokenizer',), ('pretrain', 'sft')
  _run(base, of_all, sweep.workdir / 'base')
  for seed in seeds:
    _run(anchors[seed], of_seed, sweep.workdir / f'seed{seed}')
    for stages in (('reward',), ('rl', 'evaluate')):  # all reward models first: rl shares one
      for peft in methods:
        _run(rows[seed, peft], stages, sweep.row_folder(peft, seed))


def _run(config: ConfigDict, stages: Sequence[str], folder: pathlib.Path) -> None:
  """Those of the stages that the config asks for."""
  names = [stage for stage in stages if stage in config.stages]
  if names:
    launch.run_stages(config, names, folder)


def methods_of(text: str) -> tuple[str, ...]:
  """'lora,full' -> ('lora', 'full'); each once."""
  names = tuple(filter(None, (name.strip() for name in text.split(','))))
  if not names or len(set(names)) < len(names):
    raise ConfigError(f'expected --peft=<name>,<name>, each once, found {text!r}; '
                      'write for example --peft=lora,full')
  return names


def seeds_of(text: str) -> tuple[int, ...]:
  """'0,1,2' -> (0, 1, 2); each once."""
  pieces = [piece.strip() for piece in text.split(',') if piece.strip()]
  if not pieces or not all(p.isdecimal() for p in pieces) or len(set(pieces)) < len(pieces):
    raise ConfigError(f'expected --seeds=<number>,<number>, each once, found {text!r}; '
                      'write for example --seeds=0,1,2')
  return tuple(int(piece) for piece in pieces)


def check_options(methods: Sequence[str], reward_from: str, overrides: Sequence[str]) -> None:
  """Raises ConfigError for a reward model that no row makes, or an override of what rows set."""
  if reward_from not in methods:
    raise ConfigError(f'expected --reward_from among --peft={",".join(methods)}, found '
                      f'{reward_from!r}; its reward model serves every rl row of a seed')
  for text in overrides:
    if command_line.overridden(text) in OWN:
      raise ConfigError(f'expected overrides of fields that all rows share, found {text!r}; '
                        'the sweep sets it: use --peft and --seeds')


def table(workdir: str) -> str:
  """The comparison of all finished rows, in Markdown."""
  tables = importlib.import_module('experiments.tables')
  return tables.render(tables.collect(workdir), 'markdown')


def main(argv: Sequence[str] | None = None) -> int:
  """The program; returns the exit code, as launch.main does."""
  return launch.guarded(lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> None:
  made = command_line.parser('sweep', 'Compares PEFT methods over seeds, and prints the table.')
  made.add_argument('--peft', default='lora,full', help='methods to compare')
  made.add_argument('--seeds', default='0,1,2', help='seeds of each method')
  made.add_argument('--bases', default='shared', choices=('shared', 'own'),
                    help='one base for all rows, or one of its own for each seed')
  made.add_argument('--reward_from', default='lora',
                    help='the method whose reward model serves every rl row of a seed')
  options, overrides = command_line.parse(made, argv)
  if options.help_fields:
    print(command_line.help_fields(command_line.read(options.config, overrides)))
    return
  methods, seeds = methods_of(options.peft), seeds_of(options.seeds)
  check_options(methods, options.reward_from, overrides)
  run(Sweep(options.config, overrides, options.workdir, reward_from=options.reward_from,
            own_bases=options.bases == 'own'), methods, seeds)
  print(table(options.workdir))


if __name__ == '__main__':
  platform.tune()
  command_line.show_logs()
  sys.exit(main())
