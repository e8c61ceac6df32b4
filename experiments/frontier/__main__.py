r"""RL algorithms, or regularizers, at equal budgets of samples: rewards against KL, over seeds.

    python -m experiments.frontier algorithms --config=configs/demo.py --workdir=runs/frontier \
        --seeds=0,1,2 --json=experiments/results/toy_algorithms.json \
        --plot=experiments/results/toy_algorithms.png
    python -m experiments.frontier regularizers --config=configs/demo.py --workdir=runs/frontier \
        --seeds=0,1,2 --json=experiments/results/toy_regularizers.json

algorithms     every file of perl/rl at its own options, and REINFORCE with each baseline
regularizers   Sun et al.'s ablation: PPO with each in the reward, LoRA and full tuning

<workdir>/base/{tokenizer,pretrain,sft,reward}   of all rows: one anchor, one reward model
<workdir>/seed<k>/<row>/rl                       a row of one seed

So intervals over seeds are of RL alone. An update's number of responses and the number of updates
are the config's, the same for all rows; how many prompts they answer, and what is made of them, is
the row's. Finished stages are skipped; --table prints what is there and runs nothing. Start a
command once for each core (`taskset -c 0`, `taskset -c 1`, ...): they share the rows.
"""

import sys
from collections.abc import Sequence

from ml_collections import ConfigDict

from experiments import sweep, tables
from experiments.compare import shared
from experiments.frontier import plot, published, rows, variants
from perl.cli import launch
from perl.config import command_line, platform
from perl.report import formats

STAGES = ('tokenizer', 'pretrain', 'sft', 'reward')


class Study:
  """The configs and folders of a comparison."""

  def __init__(self, spec: str, overrides: Sequence[str], workdir: str):
    self.made = sweep.Sweep(spec, overrides, workdir, reward_from='lora')
    self.workdir = self.made.workdir

  def row(self, variant: variants.Variant, seed: int) -> shared.Job:
    """The RL of one variant and seed, over the common anchor."""
    given = {'seed': seed} | ({'peft': variant.peft} if variant.peft else {})
    config = self.made.config(**given)
    config.update_from_flattened_dict(variant.fields)
    for name, stage in zip(('tokenizer', 'base', 'anchor', 'reward'), STAGES):
      config.inputs[name] = config.inputs[name] or str(self.workdir / 'base' / stage)
    return shared.Job(
      launch.check(config), ('rl',), rows.folder(self.workdir, variant.name, seed))

  def base(self) -> shared.Job:
    """What comes before RL."""
    config: ConfigDict = launch.check(self.made.base())
    stages = [stage for stage in STAGES if stage in config.stages]
    return shared.Job(config, stages, self.workdir / 'base')


def main(argv: Sequence[str] | None = None) -> int:
  """The program; returns the exit code, as launch.main does."""
  return launch.guarded(lambda: _main(sys.argv[1:] if argv is None else argv))


def _main(argv: Sequence[str]) -> None:
  made = command_line.parser('frontier', __doc__.split('\n', 1)[0])
  made.add_argument('study', choices=tuple(variants.STUDIES), help='what the rows are')
  made.add_argument('--only', default='all', help='some rows, with commas')
  made.add_argument('--seeds', default='0,1,2', help='seeds of each row')
  command_line.add_results(made)
  options, overrides = command_line.parse(made, argv)
  if options.help_fields:
    print(command_line.help_fields(command_line.read(options.config, overrides)))
    return
  study = Study(options.config, overrides, options.workdir)
  wanted, seeds = variants.chosen(options.study, options.only), sweep.seeds_of(options.seeds)
  jobs = [study.row(variant, seed) for seed in seeds for variant in wanted]
  if not options.table:
    shared.run([study.base()])
    shared.run(jobs)
  found = rows.collect(study.workdir, [variant.name for variant in wanted], seeds)
  print(said(found, options.study))
  if options.json:
    tables.save(options.json, {'command': command_line.ran('frontier', argv)} | found)
  if options.plot:
    plot.frontier(found, options.plot)


def said(found: rows.Found, study: str) -> str:
  """The table, and what follows from it."""
  notes = rows.notes(found, study)
  notes += published.verdicts(found) if study == 'regularizers' else []
  return formats.FORMATS['markdown'](*rows.table(found), notes)


if __name__ == '__main__':
  platform.tune()
  command_line.show_logs()
  sys.exit(main())
