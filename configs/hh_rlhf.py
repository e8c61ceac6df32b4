r"""Anthropic's hh-rlhf, harmless or helpful: reward model and RL, or DPO, over a published model.

    python -m experiments.launch --config=configs/hh_rlhf.py:checkpoint=models/smollm2 \
        --workdir=runs/hh_harmless
    python -m experiments.studies preferences \
        --config=configs/hh_rlhf.py:part=helpful,checkpoint=models/smollm2 \
        --workdir=runs/hh_helpful --seeds=0

The second command makes the table: pair accuracy of reward model and DPO beside a frozen probe and
"the longer one", win rates by a reward model that no policy learnt from, and how much of the reward
gain is length (Singhal et al. 2023).

Made for SmolLM2-135M-Instruct on 2 cores: with files=test the test files alone, split anew
(perl/data/sets/hh_rlhf_test.py), one pass over their training pairs. An instruct model is its own
anchor; without a checkpoint a small one is pretrained on the chosen transcripts, and tuned on their
replies: a check that all runs, no result.

Aim: pair accuracy above the longer one's and the probe's (0.639 of harmless, 0.651 of helpful over
five folds of 700 pairs); RL that raises the reward of held-out prompts by more than length.
Not measured yet; experiments/results/hh_rlhf.json (helpful) will hold it.

Arguments: part=harmless|helpful, method=reward|dpo, checkpoint=<Hugging Face folder>,
files=test|all, peft=<a file of perl/peft>, seed=0, mirror=<folder> (laid out as
github.com/anthropics/hh-rlhf; without it the files are downloaded from there). The text is
offensive by design.
"""

from ml_collections import ConfigDict

from perl.config import arguments, rates, schema
from perl.data.sets import hh_rlhf
from perl.jobs import ADAPTED

ARGUMENTS = {
  **arguments.ON_PUBLIC_DATA,
  'part': arguments.Argument('harmless', 'what is preferred', ('harmless', 'helpful')),
  'method': arguments.Argument('reward', 'reward model and RL, or DPO', ('reward', 'dpo')),
  'files': arguments.Argument('test', 'test files split anew, or all as published',
                              ('test', 'all')),
  'peft': rates.ARGUMENT,
}
PARTS = {'harmless': hh_rlhf.HARMLESS, 'helpful': hh_rlhf.HELPFUL}
STAGES = {'reward': ('reward', 'rl', 'evaluate'), 'dpo': ('preference',)}
PREFERENCE = {'lora': 2e-4, 'full': 1e-5}
RATES = {name: of | {'preference': PREFERENCE[name]} for name, of in rates.SMALL.items()}


def get_config(text: str = '') -> ConfigDict:
  """The hh-rlhf experiment; `text` as in the header."""
  options = arguments.parse(text, ARGUMENTS)
  config = schema.get_config()
  config.name = f'hh-{options.part}'
  config.seed = options.seed
  schema.use_method(config, options.peft, **rates.of(options.peft, **RATES))
  # Small files have the base part of helpfulness alone; so have the published figures.
  config.data.update(
    name='hh_rlhf_test' if options.files == 'test' else 'hh_rlhf', mirror=options.mirror,
    parts=PARTS[options.part][:1] if options.files == 'test' else PARTS[options.part],
    max_prompt_tokens=160, max_response_tokens=96, auto_buckets=3)
  config.peft.update(rank=16, alpha=32.0, targets=('attn/(q|k|v|o)', 'mlp/(gate|up|down)'))

  config.reward.update(steps=45, batch_size=16, kind='pairwise', share_prompt=True, keep='last')
  config.preference.update(steps=45, batch_size=16, share_prompt=True, answers=48)
  config.rl.update(
    algorithm='rloo', samples=4, steps=30, batch_size=32, beta=0.02, max_new_tokens=64)
  config.evaluate.update(max_examples=96, batch_size=8)
  for stage in ADAPTED:
    config[stage].update(evaluate_every_steps=0, checkpoint_every_steps=15, log_every_steps=5)
    config[stage].optim.update(schedule='cosine', warmup_steps=5)
  if options.checkpoint:
    config.model.checkpoint = options.checkpoint
    config.inputs.anchor = 'base'
    config.stages = STAGES[options.method]
  else:
    _of_our_own(config)
    config.stages = ('tokenizer', 'pretrain', 'sft', *STAGES[options.method])
  return config


def _of_our_own(config: ConfigDict) -> None:
  config.model.size = 'tiny'
  config.tokenizer.vocab_size = 2048
  config.pretrain.update(steps=300, batch_size=16)
  config.pretrain.optim.update(learning_rate=2e-3, schedule='cosine', warmup_steps=20)
  config.sft.update(steps=60, batch_size=16)
