r"""Any published model on any data: settings by its width alone, where nothing was tried yet.

    python -m experiments.launch --config=configs/published.py:checkpoint=models/smollm2,data=e2e \
        --workdir=runs/mine
    python -m experiments.studies settings --help

The rules, from the literature; the second command tries them on a model (LoRA's rates, ranks and
matrices, for SFT and reward models):

    rate     full tuning 5e-5 (2000 / width)^0.781, as tinker-cookbook has it for Llama; LoRA ten
             times as much (Schulman et al. 2025, "LoRA without regret"; PERL prints 1e-4 for LoRA
             and 1e-5 for full tuning of PaLM 2). Of the reward model the same; of RL a third, for
             its gradients are noise.
    rank     16, with alpha 32: under 1 / r the best rate does not depend on it; 8 and less suffice
             for policy gradients.
    targets  all linear layers: attention alone is worse at equal parameters.
    batch    16: LoRA loses to full tuning in large batches, at any rank.
    lengths  512 and 256 tokens, in four padded lengths that the rows choose; longer prompts lose
             their beginning.
    steps    short: 100 updates, a tenth of them to warm up, then down a cosine.

Aim: within 2 % of the best loss that the second command finds. Not measured yet;
experiments/results/published.json (SFT) and published_reward.json will hold it.

Arguments: checkpoint=<Hugging Face folder>, data=<a file of perl/data/sets>, peft=<a file of
perl/peft>, seed=0, mirror=<folder of the data>. Without a checkpoint it is a tiny model of our own,
on the embedded task: a check that all runs.
"""

from ml_collections import ConfigDict

from perl import choices
from perl.config import arguments, rates, schema
from perl.config.fields import ConfigError
from perl.hub import pretrained
from perl.jobs import ADAPTED
from perl.models.config import SIZES

ARGUMENTS = {
  'checkpoint': arguments.Argument('', 'published model; a tiny one of our own without'),
  'data': arguments.Argument('toy', 'dataset', choices.names('perl.data.sets')),
  'peft': rates.ARGUMENT,
  'seed': arguments.Argument(0, 'seed of the run'),
  'mirror': arguments.Argument('', 'folder of the data'),
}


def get_config(text: str = '') -> ConfigDict:
  """Settings for a model by its width; `text` as in the header."""
  options = arguments.parse(text, ARGUMENTS)
  config = schema.get_config()
  config.name = 'published'
  config.seed = options.seed
  lora, full = by_width(_width(options.checkpoint))
  schema.use_method(config, options.peft, **rates.of(options.peft, lora, full))
  config.data.update(name=options.data, mirror=options.mirror, max_prompt_tokens=512,
                     max_response_tokens=256, auto_buckets=4)
  config.peft.update(rank=16, alpha=32.0, targets=('attn/(q|k|v|o)', 'mlp/(gate|up|down)'))
  config.rl.max_new_tokens = 128
  for stage in ADAPTED:
    config[stage].update(steps=100, batch_size=16, evaluate_every_steps=50,
                         checkpoint_every_steps=50)
    config[stage].optim.update(schedule='cosine', warmup_steps=10)
  config.rl.update(batch_size=32)
  config.evaluate.update(max_examples=256, batch_size=16)
  if options.checkpoint:
    config.model.checkpoint = options.checkpoint
    config.stages = ('sft', 'reward', 'rl', 'evaluate')
  return config


def by_width(width: int) -> tuple[dict[str, float], dict[str, float]]:
  """(LoRA's, full tuning's) learning rates by stage."""
  full = 5e-5 * (2000 / width)**0.781
  of = lambda rate: {'sft': rate, 'reward': rate, 'preference': rate / 3, 'rl': rate / 3,
                     'value': rate}
  return of(10 * full), of(full)


def _width(checkpoint: str) -> int:
  if not checkpoint:
    return SIZES['tiny']['width']
  try:
    return pretrained.read_config(checkpoint).width
  except OSError as error:
    raise ConfigError(f'expected a published model in {checkpoint}, whose width says the rates; '
                      f'found {error}') from None
