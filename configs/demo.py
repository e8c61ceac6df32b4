"""The whole of PERL on the embedded task: coffee orders from a grammar, with a known best reply.

    make demo
    python -m experiments.launch --config=configs/demo.py --workdir=runs/demo
    python -m experiments.launch --config=configs/demo.py --workdir=runs/demo --job=preference

The second command learns from the preferences themselves (DPO), over the same SFT anchor.

Aim, on 2 cores: at most 5 minutes; the gold reward of the policy ends at least half-way from
the SFT anchor to the optimum. What was measured: experiments/results/demo.json.

Arguments: peft=<a file of perl/peft>, seed=0.
"""

from ml_collections import ConfigDict

from perl.config import arguments, rates, schema
from perl.jobs import TRAINED

ARGUMENTS = {
  'peft': rates.ARGUMENT,
  'seed': arguments.Argument(0, 'seed of the run'),
}
RATES = {
  'lora': {'sft': 2e-3, 'reward': 2e-3, 'preference': 1e-3, 'rl': 1e-3, 'value': 2e-3},
  'full': {'sft': 5e-4, 'reward': 5e-4, 'preference': 1e-4, 'rl': 1e-4, 'value': 5e-4},
}


def get_config(text: str = '') -> ConfigDict:
  """The demo; `text` as in the header."""
  options = arguments.parse(text, ARGUMENTS)
  config = schema.get_config()
  config.name = 'demo'
  config.seed = options.seed
  schema.use_method(config, options.peft, **rates.of(options.peft, **RATES))

  config.model.size = 'micro'
  config.tokenizer.vocab_size = 420
  config.data.name = 'toy'
  config.data.max_prompt_tokens = 40
  config.data.max_response_tokens = 24
  config.data.buckets = (40,)
  config.rl.max_new_tokens = 24
  # All projections: at this size the reward model gains from the MLP's too.
  config.peft.targets = ('attn/(q|k|v|o)', 'mlp/(gate|up|down)')

  config.pretrain.update(steps=300, batch_size=64)
  config.sft.update(steps=100, batch_size=64)
  config.reward.update(steps=300, batch_size=64, kind='pairwise', reads=('likelihood',))
  config.preference.update(steps=200, batch_size=64)
  # So small a model leaves the anchor for anything at the papers' 0.1: likelihoods of both fall.
  for name in ('dpo', 'kto'):
    config.preference[name].beta = 1.0
  config.rl.update(steps=120, batch_size=64, temperature=1.0, beta=0.05)
  for stage in TRAINED:
    config[stage].update(evaluate_every_steps=100, checkpoint_every_steps=50)
    config[stage].optim.update(schedule='cosine', warmup_steps=10)
  config.pretrain.optim.learning_rate = 3e-3
  config.rl.evaluate_every_steps = 25
  config.rl.optim.schedule = 'constant'
  config.evaluate.update(max_examples=256, batch_size=128)
  return config
