"""Verifiable rewards on CPU: word problems of one calculation, rewarded by a rule alone.

    python -m experiments.launch --config=configs/arithmetic.py --workdir=runs/arithmetic
"""

from ml_collections import ConfigDict

from configs import arguments, base, rates, validate

ARGUMENTS = {
  'algorithm': arguments.Argument(
    'reinforce', 'algorithm of rl', validate.names_in('rl', 'make_loss')),
  'size': arguments.Argument('micro', 'shape of the model', ('micro', 'tiny')),
  'digits': arguments.Argument('two_digits', 'numbers of the problems',
                               ('one_digit', 'two_digits', 'three_digits')),
  'peft': rates.ARGUMENT,
  'seed': arguments.Argument(0, 'seed of the run'),
}
RATES = {
  'lora': {'sft': 2e-3, 'reward': 1e-3, 'rl': 1e-3, 'value': 2e-3},
  'full': {'sft': 5e-4, 'reward': 5e-4, 'rl': 1e-4, 'value': 5e-4},
}


def get_config(text: str = '') -> ConfigDict:
  """The arithmetic experiment; `text` as in the header."""
  given = arguments.parse(text, ARGUMENTS)
  config = base.get_config()
  config.name = f'arithmetic-{given.algorithm}'
  config.seed = given.seed
  config.stages = ('tokenizer', 'pretrain', 'sft', 'rl', 'evaluate')
  base.use_method(config, given.peft, **rates.of(given.peft, **RATES))

  config.model.size = given.size
  config.tokenizer.update(vocab_size=400, split_digits=True)
  config.data.update(name='arithmetic', parts=(given.digits,), max_prompt_tokens=40,
                     max_response_tokens=24)
  config.peft.update(rank=16, alpha=32.0, targets=('attn/(q|k|v|o)', 'mlp/(gate|up|down)'))

  config.pretrain.update(steps=800, batch_size=64)
  config.sft.update(steps=100, batch_size=64)
  config.rl.update(
    algorithm=given.algorithm, baseline='leave_one_out', rules=('gsm8k',), reward_weight=0.0,
    steps=150, batch_size=128, samples=8, temperature=1.0, beta=0.005, max_new_tokens=24)
  for stage in base.TRAINED:
    config[stage].update(evaluate_every_steps=100, checkpoint_every_steps=100)
    config[stage].optim.update(schedule='cosine', warmup_steps=10)
  config.pretrain.optim.update(learning_rate=3e-3, b2=0.95, weight_decay=0.1)
  config.rl.evaluate_every_steps = 25
  config.rl.optim.schedule = 'constant'
  config.evaluate.update(max_examples=300, batch_size=150)
  return config
