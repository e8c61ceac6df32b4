r"""E2E NLG: restaurants described from what is to be said of them; PEFT methods (Hu et al. 2021).

    python -m experiments.launch --config=configs/e2e.py:checkpoint=models/smollm2 \
        --workdir=runs/e2e_lora
    python -m experiments.studies methods --config=configs/e2e.py:checkpoint=models/smollm2 \
        --workdir=runs/e2e --methods=lora,full,topk,houlsby,pfeiffer,prefix --seeds=0 \
        --json=experiments/results/e2e.json

The second command makes the sources' table at our scale: BLEU and ROUGE-L of greedy descriptions of
test meanings with all references, a row a method. They need the extra `references`. Made for
SmolLM2-135M-Instruct on 2 cores: 100 steps of 16 of the 42,000 descriptions (of 4,200, where a
mirror has no trainset.csv); Hu et al. train GPT-2 on all of them for five epochs.

Without a checkpoint a small model is pretrained on the descriptions: a check that all runs.

Aim: LoRA within the interval of full tuning or above it, as published.
Not measured yet; experiments/results/e2e.json will hold it.

Arguments: checkpoint=<Hugging Face folder>, peft=<a file of perl/peft>, seed=0, mirror=<folder>
(laid out as github.com/tuetschek/e2e-dataset; without it the files are downloaded from there).
"""

from ml_collections import ConfigDict

from perl.config import arguments, rates, schema

ARGUMENTS = {
  **arguments.ON_PUBLIC_DATA,
  'peft': rates.ARGUMENT,
}


def get_config(text: str = '') -> ConfigDict:
  """The E2E experiment; `text` as in the header."""
  options = arguments.parse(text, ARGUMENTS)
  config = schema.get_config()
  config.name = 'e2e'
  config.seed = options.seed
  schema.use_method(config, options.peft, **rates.of(options.peft, **rates.SMALL))
  config.data.update(name='e2e', mirror=options.mirror, max_prompt_tokens=112,
                     max_response_tokens=64, auto_buckets=2)
  config.rl.max_new_tokens = 64
  # As Hu et al.: rank 4, queries and values; adapters of some 0.4 M parameters.
  config.peft.update(rank=4, alpha=32.0, targets=('attn/(q|v)',))
  config.sft.update(steps=100, batch_size=16, test=True, evaluate_every_steps=0,
                    checkpoint_every_steps=50)
  config.sft.optim.update(schedule='linear', warmup_steps=10)
  config.evaluate.update(max_examples=96, batch_size=16)
  if options.checkpoint:
    config.model.checkpoint = options.checkpoint
    config.stages = ('sft',)
  else:
    config.tokenizer.vocab_size = 1024
    config.pretrain.update(steps=300, batch_size=32)
    config.pretrain.optim.update(learning_rate=3e-3, schedule='cosine', warmup_steps=20)
    config.stages = ('tokenizer', 'pretrain', 'sft')
  return config
