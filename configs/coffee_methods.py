"""Coffee over a base that has read little: where PEFT methods, ranks and matrices are compared.

    python -m experiments.launch --config=configs/coffee_methods.py:size=tiny \
        --workdir=runs/coffee_methods
    python -m experiments.studies methods --config=configs/coffee_methods.py:size=tiny \
        --workdir=runs/compare --seeds=0,1,2

Coffee's own base reads every training dialogue three times before SFT reads its turns again, and
a hundred steps more teach it nothing: no method can be told from another there. Here the base is
stopped after 100 steps, when SFT still has something to teach, so that a method shows how much it
can learn and how fast. Batches of 16 and 256 examples to evaluate on keep some 160 runs within
hours of two cores.

Aim: the methods told apart by more than the seeds are, each at a learning rate of its own.
What was measured: experiments/results/coffee_methods.json, with coffee_grid.json (ranks and
matrices beside Hu et al.'s) and coffee_rates.json (learning rates).

Arguments: size=tiny|mini|small, peft=<a file of perl/peft>, seed=0, mirror=<folder> (laid out as
github.com/google-research-datasets/Taskmaster; without it the files are downloaded from there).
"""

from ml_collections import ConfigDict

from perl.config import arguments, experiments, rates, schema

coffee = experiments.load('coffee')
ARGUMENTS = {name: coffee.ARGUMENTS[name] for name in ('size', 'peft', 'seed', 'mirror')}
SFT_RATE = 10
"""Times coffee's, for a base that is far from its end: the best that was tried, at tiny."""


def get_config(text: str = '') -> ConfigDict:
  """The setting of the studies methods, grid and rates; `text` as in the header."""
  options = arguments.parse(text, ARGUMENTS)
  config = coffee.get_config(text)
  config.name = f'coffee-methods-{options.size}'
  config.stages = ('tokenizer', 'pretrain', 'sft', 'reward')
  lora, full = ({**own, 'sft': SFT_RATE * own['sft']}
                for own in (coffee.RATES[options.size, method] for method in ('lora', 'full')))
  schema.use_method(config, options.peft, **rates.of(options.peft, lora, full))
  config.pretrain.update(steps=100, evaluate_every_steps=100, checkpoint_every_steps=100)
  for stage in ('sft', 'reward'):
    config[stage].update(
      steps=100, batch_size=16, evaluate_every_steps=100, checkpoint_every_steps=100)
  config.evaluate.max_examples = 256
  return config
