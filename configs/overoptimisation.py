"""The demo's task where reward models are hacked: few pairs to learn from, and no KL that holds.

    python -m experiments.studies overoptimisation --config=configs/overoptimisation.py \\
        --workdir=runs/overoptimisation --seeds=0,1,2 \\
        --json=experiments/results/overoptimisation.json \\
        --plot=experiments/results/overoptimisation.png
    python -m experiments.launch --config=configs/overoptimisation.py --workdir=runs/hacked

The first is the study of Gao et al. (2022, arXiv 2210.10760): reward models of several ranks,
numbers of pairs and sizes, each optimised against by best-of-n and by RL. The second is one such
run alone, whose report shows reward and gold reward part. 500 of the demo's 16,000 pairs and
rl.beta=0 are what differs in kind; RL is short, for it is hacked within 50 updates, and is
measured every fifth.

Aim: within 40 minutes of 2 cores the gold reward rises, peaks and falls while the proxy goes on
rising. What was measured: experiments/results/overoptimisation.json.

Arguments: peft=<a file of perl/peft>, seed=0.
"""

from ml_collections import ConfigDict

from perl.config import arguments, experiments

demo = experiments.load('demo')
ARGUMENTS = demo.ARGUMENTS


def get_config(text: str = '') -> ConfigDict:
  """The setting of the study overoptimisation; `text` as in the header."""
  arguments.parse(text, ARGUMENTS)
  config = demo.get_config(text)
  config.name = 'overoptimisation'
  config.reward.update(max_examples=500, steps=100, evaluate_every_steps=25)
  config.rl.update(steps=120, beta=0.0, evaluate_every_steps=5)
  config.best_of_n.samples = 128
  return config
