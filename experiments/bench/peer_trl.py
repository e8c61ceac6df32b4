r"""TRL's trainers (extra `peers`), without gradient checkpointing, on the same weights and tokens.

    python -m experiments.bench.peer_trl --suite=rl --variant=grpo --size=tiny \
      --weights=/tmp/tiny

rm: RewardTrainer; sft: SFTTrainer; rl: RLOOTrainer (--variant=rloo) or GRPOTrainer (grpo). The
trainer wraps the model in LoRA itself, so that its reference is the model with the adapter off,
and LoRA's weights are set afterwards. RL trainers decode responses to text and encode them again
for the reward model. A step is what lies between the ends of two.
"""

import os
import tempfile
import time

if __name__ == '__main__':
  os.environ.setdefault('HF_HUB_OFFLINE', '1')  # both before the libraries are imported
  os.environ.setdefault('TRL_EXPERIMENTAL_SILENCE', '1')

from experiments.bench import peer_peft, work

SHARED = dict(
  learning_rate=work.LEARNING_RATE, lr_scheduler_type='constant', weight_decay=0.0,
  max_grad_norm=work.CLIP, report_to='none', save_strategy='no', disable_tqdm=True, logging_steps=1,
  dataloader_pin_memory=False, gradient_checkpointing=False)


def clock(case: peer_peft.Case):
  """A callback that notes when each step ends, and the losses that are logged."""
  from transformers import TrainerCallback

  class Clock(TrainerCallback):
    """`ends`: seconds; `losses`: of each step."""

    def __init__(self):
      self.ends: list[float] = []
      self.losses: list[float] = []

    def on_step_end(self, *args, **kwargs):
      case.wait()
      self.ends.append(time.perf_counter())

    def on_log(self, args, state, control, logs=None, **kwargs):
      if 'loss' in (logs or {}):
        self.losses.append(float(logs['loss']))

  return Clock()


def tokenizer(size: str):
  """A word-level tokenizer with a word for each id, so that text is encoded back to its tokens."""
  from tokenizers import Tokenizer, models, pre_tokenizers
  from transformers import PreTrainedTokenizerFast

  words = {f'w{i}': i for i in range(3, work.SIZES[size].vocab)}
  specials = {'<pad>': work.PAD, '<s>': work.BOS, '</s>': work.EOS}
  tokenizer = Tokenizer(models.WordLevel(specials | words, unk_token='w3'))
  tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token='<pad>', bos_token='<s>',
                                 eos_token='</s>', padding_side='left')


def lora(case: peer_peft.Case, name: str):
  """The adapter's config in that folder, to be trained."""
  from peft import PeftConfig

  config = PeftConfig.from_pretrained(case.args.weights / name)
  config.inference_mode = False
  return config


def options(case: peer_peft.Case, folder: str, count: int) -> dict:
  """What all of its configs are given."""
  return {**SHARED, 'output_dir': folder, 'max_steps': count, 'bf16': case.half,
          'use_cpu': case.device == 'cpu'}


def sequential(case: peer_peft.Case, folder: str, count: int) -> dict:
  """`options` with batches in the order of the data, which holds the same batch `count` times."""
  return {**options(case, folder, count), 'train_sampling_strategy': 'sequential'}


def reward_trainer(case: peer_peft.Case, count: int, folder: str):
  """RewardTrainer on pairs of tokens."""
  import trl
  from datasets import Dataset

  chosen, rejected = work.pairs(case.args.size)
  data = Dataset.from_dict({'chosen_ids': chosen.tolist() * count,
                            'rejected_ids': rejected.tolist() * count})
  config = trl.RewardConfig(per_device_train_batch_size=case.size.pairs, max_length=None,
                            **sequential(case, folder, count))
  return trl.RewardTrainer(
    model=case.base(scored=True), args=config, train_dataset=data, peft_config=lora(case, 'reward'),
    processing_class=tokenizer(case.args.size))


def next_token_trainer(case: peer_peft.Case, count: int, folder: str):
  """SFTTrainer on rows of tokens; labels are the tokens."""
  import trl
  from datasets import Dataset

  rows = work.rows(case.args.size)
  config = trl.SFTConfig(per_device_train_batch_size=len(rows), max_length=None,
                         **sequential(case, folder, count))
  return trl.SFTTrainer(
    model=case.base(scored=False), args=config, peft_config=lora(case, 'policy'),
    train_dataset=Dataset.from_dict({'input_ids': rows.tolist() * count}),
    processing_class=tokenizer(case.args.size))


def rl_trainer(case: peer_peft.Case, count: int, folder: str):
  """RLOOTrainer or GRPOTrainer; every response is of full length."""
  import trl
  from datasets import Dataset

  size, words = case.size, tokenizer(case.args.size)
  kind = case.args.variant.upper()
  config = getattr(trl, f'{kind}Config')(
    per_device_train_batch_size=size.rows, num_generations=size.samples,
    max_completion_length=size.new, generation_kwargs={'min_new_tokens': size.new},
    temperature=1.0, beta=work.BETA, shuffle_dataset=False, **options(case, folder, count))
  prompts = [words.decode(row) for row in work.rl_prompts(case.args.size)]
  return getattr(trl, f'{kind}Trainer')(
    model=case.base(scored=False), args=config, processing_class=words,
    reward_funcs=[case.base(scored=True)], reward_processing_classes=[words],
    train_dataset=Dataset.from_dict({'prompt': prompts}), peft_config=lora(case, 'policy'))


TRAINERS = {'rm': reward_trainer, 'sft': next_token_trainer, 'rl': rl_trainer}


def measure(case: peer_peft.Case) -> dict:
  """Seconds between the ends of steps, after one that warms up and `--warmup` others."""
  import peft

  args = case.args
  with tempfile.TemporaryDirectory() as folder:
    trainer = TRAINERS[args.suite](case, 1 + args.warmup + args.steps, folder)
    name = 'reward' if args.suite == 'rm' else 'policy'
    weights = peft.load_peft_weights(str(args.weights / name), device=case.device)
    peft.set_peft_model_state_dict(trainer.model, weights)
    marks = clock(case)
    trainer.add_callback(marks)
    start = time.perf_counter()
    trainer.train()
  row = work.between([start, *marks.ends], args)
  return row if args.suite == 'rl' else {**row, 'first_loss': marks.losses[0]}


def main() -> None:
  """Measures one case and prints its row."""
  args = work.arguments(__doc__, ('', 'rloo', 'grpo'))
  if args.suite not in TRAINERS or (args.suite == 'rl') != bool(args.variant):
    raise SystemExit(f'expected --suite=rm or sft, or rl with --variant=rloo or grpo, found '
                     f'{args.suite} with {args.variant!r}')
  row = measure(peer_peft.Case(args))
  name = ', '.join(word for word in ('trl', args.variant.upper()) if word)
  work.report({'name': name, **row, **peer_peft.machine()}, 'torch', 'transformers', 'peft', 'trl')


if __name__ == '__main__':
  main()
