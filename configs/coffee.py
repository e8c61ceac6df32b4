"""PERL's own data: Taskmaster-4 coffee, pretrain to evaluation, LoRA or full tuning.

    python -m experiments.launch --config=configs/coffee.py:size=tiny,peft=lora \
        --workdir=runs/coffee
    python -m experiments.studies sweep --config=configs/coffee.py:size=tiny \
        --workdir=runs/sweep --peft=lora,full --seeds=0,1,2 --bases=own

Aim, size=tiny on 2 cores: at most 30 minutes for the first command; a reward model whose AUC is
above that of a bag of words over grouped 5-fold cross-validation, LoRA within the interval
of full tuning; RL that raises the reward of held-out prompts while exact match does not fall.
What was measured: experiments/results/coffee.json, coffee_launch.json (the first command),
coffee_folds.json and coffee_folds_second.json (two bases).

Two departures make a reward model of so small a model work: its head also reads mean
hidden states and how likely the response is (reward.reads), and starts from a logistic regression
(reward.probe). Text is lower-cased (tokenizer.lowercase): dialogues and judged turns differ in
case, which says nothing.

With checkpoint=<folder> a published model takes the place of ours: the stages from SFT on, in its
chat template and its own case, with whole chats in SFT and a plain reward head, which transformers
can load. Rates and lengths are for a model like SmolLM2-135M; neither was swept (what was measured:
docs/results/published_models.md). Larger models bear smaller rates (configs/published.py).

Arguments: size=tiny|mini|small, checkpoint=<Hugging Face folder>, peft=<a file of perl/peft>,
kind=pointwise|pairwise, seed=0, mirror=<folder> (a folder laid out as
github.com/google-research-datasets/Taskmaster; without it the files are downloaded from there).
"""

from types import SimpleNamespace

from ml_collections import ConfigDict

from perl.config import arguments, rates, schema
from perl.jobs import TRAINED

ARGUMENTS = {
  'size': arguments.Argument(
    'tiny', 'shape of the model', ('tiny', 'mini', 'small'), unless='checkpoint'),
  'checkpoint': arguments.Argument('', 'published model, in place of one of that size'),
  'peft': rates.ARGUMENT,
  'kind': arguments.Argument(
    'pointwise', 'reward loss: of thumbs, or of pairs with one context', ('pointwise', 'pairwise')
  ),
  'seed': arguments.Argument(0, 'seed of the run'),
  'mirror': arguments.Argument('', 'folder laid out as the public home'),
}
# The smaller a model, the larger the rate it bears; the paper's 1e-4 and 1e-5 are for PaLM 2.
RATES = {
  ('tiny', 'lora'): {'sft': 5e-4, 'reward': 5e-4, 'rl': 1e-3, 'value': 2e-3},
  ('tiny', 'full'): {'sft': 1e-4, 'reward': 1e-4, 'rl': 1e-4, 'value': 5e-4},
  ('mini', 'lora'): {'sft': 1e-3, 'reward': 5e-4, 'rl': 2e-4, 'value': 5e-4},
  ('mini', 'full'): {'sft': 2e-4, 'reward': 1e-4, 'rl': 2e-5, 'value': 1e-4},
  ('small', 'lora'): {'sft': 5e-4, 'reward': 2e-4, 'rl': 1e-4, 'value': 2e-4},
  ('small', 'full'): {'sft': 5e-5, 'reward': 2e-5, 'rl': 1e-5, 'value': 2e-5},
}
PUBLISHED_RATES = {
  'lora': {'sft': 5e-4, 'reward': 5e-4, 'rl': 2e-4, 'value': 5e-4},
  'full': {'sft': 5e-5, 'reward': 5e-5, 'rl': 2e-5, 'value': 5e-5},
}
"""For some 100 M parameters; ten times as large for LoRA as for full tuning, as in the paper."""
PRETRAIN_RATE = {'tiny': 3e-3, 'mini': 1e-3, 'small': 5e-4}


def get_config(text: str = '') -> ConfigDict:
  """The coffee experiment; `text` as in the header."""
  options = arguments.parse(text, ARGUMENTS)
  config = schema.get_config()
  config.name = f'coffee-{options.size}'
  config.seed = options.seed
  config.model.size = options.size
  lora, full = (RATES[options.size, method] for method in ('lora', 'full'))
  schema.use_method(config, options.peft, **rates.of(options.peft, lora, full))

  config.data.update(
    name='taskmaster_coffee', mirror=options.mirror, max_prompt_tokens=384, max_response_tokens=96,
    buckets=(128, 256),
  )
  config.tokenizer.update(vocab_size=2048, lowercase=True)
  config.rl.max_new_tokens = 64

  config.pretrain.update(steps=1200, batch_size=8)
  config.pretrain.optim.learning_rate = PRETRAIN_RATE[options.size]
  config.sft.update(steps=100, batch_size=32)
  # The dev split has 31 thumbs down: too few to pick a checkpoint by, so the last one it is.
  config.reward.update(
    steps=100, batch_size=32, kind=options.kind, reads=('mean', 'likelihood'), probe=True,
    keep='last',
  )
  config.peft.update(rank=16, alpha=32.0, dropout=0.1)
  config.rl.update(steps=100, batch_size=32)
  for stage in TRAINED:
    config[stage].update(evaluate_every_steps=50, checkpoint_every_steps=50)
    config[stage].optim.update(schedule='cosine', warmup_steps=20)
  config.pretrain.update(evaluate_every_steps=200, checkpoint_every_steps=200)
  config.pretrain.optim.update(warmup_steps=50, weight_decay=0.1, b2=0.95)
  config.evaluate.update(max_examples=512, batch_size=64)
  if options.checkpoint:
    _published(config, options)
  return config


def _published(config: ConfigDict, options: SimpleNamespace) -> None:
  """Large enough to need no other reads; SFT learns the whole of each dialogue in one row."""
  config.name = 'coffee-published'
  config.model.checkpoint = options.checkpoint
  schema.use_method(config, options.peft, **rates.of(options.peft, **PUBLISHED_RATES))
  config.data.update(
    max_prompt_tokens=224, max_response_tokens=80, buckets=(), auto_buckets=4)
  config.sft.update(steps=50, batch_size=16, whole_chats=True)
  config.reward.update(steps=160, batch_size=16, reads=(), probe=False)
  config.rl.update(steps=40, batch_size=32)
  config.evaluate.update(max_examples=0, batch_size=16)
  for stage in TRAINED:
    config[stage].update(evaluate_every_steps=80, checkpoint_every_steps=20)
    config[stage].optim.update(warmup_steps=10)
