r"""A verifier of solutions (Cobbe et al. 2021): which of four models' solutions to GSM8K are right?

    python -m experiments.launch --config=configs/solutions.py:checkpoint=models/smollm2 \
        --workdir=runs/solutions
    python -m experiments.studies sweep --config=configs/solutions.py:checkpoint=models/smollm2 \
        --workdir=runs/solutions_seeds --peft=lora --reward_from=lora --seeds=0 \
        --json=experiments/results/solutions.json

A reward model learns from 2,000 solutions with their labels, and is asked about all solutions to
400 other problems: AUC over all, and the mean over problems of the AUC within a problem, which is
what choosing the best of its solutions goes by. The rule that checks the number says the same as
the labels of all 5,276 (tests/data/test_published_sets.py), and so has an AUC of 1. A bag of words
stands beside. Made for SmolLM2-135M-Instruct on 2 cores.

Without a checkpoint a small model is pretrained on right solutions: a check that all runs.

Aim: AUC within problems above the bag of words'.
Not measured yet; experiments/results/solutions.json will hold it.

Arguments: kind=pointwise|pairwise, checkpoint=<Hugging Face folder>, peft=<a file of perl/peft>,
seed=0, mirror=<folder> (laid out as github.com/openai/grade-school-math; without it the file is
downloaded from there).
"""

from ml_collections import ConfigDict

from perl.config import arguments, rates, schema

ARGUMENTS = {
  **arguments.ON_PUBLIC_DATA,
  'kind': arguments.Argument('pointwise', 'reward loss: of labels, or of a problem\'s pairs',
                             ('pointwise', 'pairwise')),
  'peft': rates.ARGUMENT,
}


def get_config(text: str = '') -> ConfigDict:
  """The verifier's experiment; `text` as in the header."""
  options = arguments.parse(text, ARGUMENTS)
  config = schema.get_config()
  config.name = 'solutions'
  config.seed = options.seed
  schema.use_method(config, options.peft, **rates.of(options.peft, **rates.SMALL))
  config.data.update(name='gsm8k_solutions', mirror=options.mirror, max_prompt_tokens=160,
                     max_response_tokens=160, auto_buckets=3)
  config.peft.update(rank=16, alpha=32.0, targets=('attn/(q|k|v|o)', 'mlp/(gate|up|down)'))
  config.reward.update(
    kind=options.kind, steps=125, batch_size=16, max_examples=2000, keep='last',
    evaluate_every_steps=0, checkpoint_every_steps=25, log_every_steps=5)
  config.reward.optim.update(schedule='cosine', warmup_steps=10)
  config.evaluate.batch_size = 8
  if options.checkpoint:
    config.model.checkpoint = options.checkpoint
    config.inputs.anchor = 'base'
    config.stages = ('reward',)
  else:
    config.tokenizer.update(vocab_size=1024, split_digits=True)
    config.pretrain.update(steps=300, batch_size=16)
    config.pretrain.optim.update(learning_rate=2e-3, schedule='cosine', warmup_steps=20)
    config.sft.update(steps=60, batch_size=16)
    config.sft.optim.warmup_steps = 10
    config.stages = ('tokenizer', 'pretrain', 'sft', 'reward')
  return config
