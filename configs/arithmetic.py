"""Verifiable rewards on CPU: word problems of one calculation, rewarded by a rule alone.

    python -m experiments.launch --config=configs/arithmetic.py --workdir=runs/arithmetic
    python -m experiments.launch --config=configs/arithmetic.py:algorithm=rloo,seed=1 \
        --workdir=runs/arithmetic_rloo

Pretraining teaches to calculate. SFT imitates hasty people, more than half of whose answers are
wrong (`perl/data/sets/arithmetic.py`); RL unlearns that: the rule gsm8k gives 1 for the right
number and else 0, and there is no reward model. Test problems ask for calculations that no stage
has seen.

Aim, size=micro on 2 cores: at most 10 minutes; of the test problems about 0.2 are answered rightly
after SFT, and twice as many after RL. What was measured: experiments/results/arithmetic.json (the
first command) and arithmetic_algorithms.json (several algorithms, three seeds of RL).

With checkpoint=<folder> a published model takes the place of ours: SFT and RL in its chat template,
at the paper's rates. One that calculates already does without the hasty people:
--config.inputs.anchor=base with --config.stages="('rl','evaluate')". SmolLM2-135M-Instruct does not
(about one of seven problems of one digit, 40 tried): it wants SFT.

Arguments: algorithm=<an algorithm of perl/rl>, size=micro|tiny, checkpoint=<Hugging Face folder>,
digits=one_digit|two_digits|three_digits (of the larger number: the difficulty), peft=<a file of
perl/peft>, seed=0. The steps were chosen for size=micro, digits=two_digits, peft=lora.
"""

from types import SimpleNamespace

from ml_collections import ConfigDict

from perl import choices
from perl.config import arguments, rates, schema
from perl.jobs import TRAINED

ARGUMENTS = {
  'algorithm': arguments.Argument(
    'grpo', 'algorithm of rl', choices.names('perl.rl.algorithms')),
  'size': arguments.Argument(
    'micro', 'shape of the model', ('micro', 'tiny'), unless='checkpoint'),
  'checkpoint': arguments.Argument('', 'published model, in place of one of that size'),
  'digits': arguments.Argument('two_digits', 'digits of the larger number: a part of the data',
                               ('one_digit', 'two_digits', 'three_digits')),
  'peft': rates.ARGUMENT,
  'seed': arguments.Argument(0, 'seed of the run'),
}
RATES = {
  'lora': {'sft': 2e-3, 'reward': 2e-3, 'rl': 5e-4, 'value': 2e-3},
  'full': {'sft': 5e-4, 'reward': 5e-4, 'rl': 1e-4, 'value': 5e-4},
}


def get_config(text: str = '') -> ConfigDict:
  """The arithmetic experiment; `text` as in the header."""
  options = arguments.parse(text, ARGUMENTS)
  config = schema.get_config()
  config.name = f'arithmetic-{options.algorithm}'
  config.seed = options.seed
  config.stages = ('tokenizer', 'pretrain', 'sft', 'rl', 'evaluate')
  schema.use_method(config, options.peft, **rates.of(options.peft, **RATES))

  config.model.size = options.size
  config.tokenizer.update(vocab_size=400, split_digits=True)
  config.data.update(name='arithmetic', parts=(options.digits,), max_prompt_tokens=40,
                     max_response_tokens=24)
  # All projections: an answer copies numbers, which is attention's, and calculates, the MLP's.
  config.peft.update(rank=16, alpha=32.0, targets=('attn/(q|k|v|o)', 'mlp/(gate|up|down)'))

  config.pretrain.update(steps=700, batch_size=64, packed=True)
  config.sft.update(steps=60, batch_size=64)
  config.rl.update(
    algorithm=options.algorithm, rules=('gsm8k',), reward_weight=0.0, steps=150, batch_size=256,
    samples=8, temperature=1.0, beta=0.005, max_new_tokens=24)
  for stage in TRAINED:
    config[stage].update(evaluate_every_steps=100, checkpoint_every_steps=100)
    config[stage].optim.update(schedule='cosine', warmup_steps=10)
  config.pretrain.optim.update(learning_rate=3e-3, b2=0.95, weight_decay=0.1)
  config.rl.evaluate_every_steps = 50
  config.rl.optim.schedule = 'constant'
  config.evaluate.update(max_examples=300, batch_size=150)
  if options.checkpoint:
    _published(config, options)
  return config


def _published(config: ConfigDict, options: SimpleNamespace) -> None:
  """Room for a chat template and for the words of an instruct model."""
  config.name = f'arithmetic-{options.algorithm}-published'
  config.model.checkpoint = options.checkpoint
  schema.use_method(config, options.peft, **rates.of(options.peft, **rates.PAPER))
  config.data.update(max_prompt_tokens=160, max_response_tokens=64)
  config.rl.max_new_tokens = 64
