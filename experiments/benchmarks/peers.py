"""The peers' step, in PyTorch (extra `peers`): a plain transformers + peft loop, and TRL's trainer.

python -m experiments.benchmarks.peers --suite=rm --size=tiny
"""

import os
import resource
import tempfile
import time
from collections.abc import Callable

from experiments.benchmarks import work


def _config(size: str, **more):
  from transformers import LlamaConfig

  s = work.SIZES[size]
  return LlamaConfig(
    vocab_size=s['vocab'], hidden_size=s['width'], intermediate_size=s['mlp_width'],
    num_hidden_layers=s['layers'], num_attention_heads=s['heads'], num_key_value_heads=s['heads'],
    max_position_embeddings=512, tie_word_embeddings=True, pad_token_id=0, bos_token_id=1,
    eos_token_id=2, **more)


def _lora(task: str):
  from peft import LoraConfig

  return LoraConfig(r=work.RANK, lora_alpha=work.ALPHA, lora_dropout=0.0, task_type=task,
                    target_modules=['q_proj', 'k_proj', 'v_proj', 'o_proj'])


def reward_step(size: str) -> Callable[[], None]:
  """The plain loop: forward, -log sigmoid, backward, clipping, AdamW."""
  import torch
  from peft import get_peft_model
  from transformers import LlamaForSequenceClassification

  torch.manual_seed(0)
  model = LlamaForSequenceClassification(_config(size, num_labels=1))
  model = get_peft_model(model, _lora('SEQ_CLS')).train()
  trained = [p for p in model.parameters() if p.requires_grad]
  optimizer = torch.optim.AdamW(trained, lr=work.LEARNING_RATE)
  ids = torch.cat([torch.from_numpy(x) for x in work.pairs(size)])
  mask = torch.ones_like(ids)

  def run() -> None:
    optimizer.zero_grad(set_to_none=True)
    scores = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, 0]
    chosen, rejected = scores.float().chunk(2)
    loss = -torch.nn.functional.logsigmoid(chosen - rejected).mean()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    loss.item()

  return run


def rl_trainer(size: str, steps: int, warmup: int) -> dict:
  """TRL's RLOO trainer, float32, without gradient checkpointing: seconds between its steps."""
  import torch
  import trl
  from datasets import Dataset
  from transformers import LlamaForCausalLM, LlamaForSequenceClassification, TrainerCallback

  torch.manual_seed(0)
  tokenizer = _tokenizer(size)
  ends: list[float] = []

  class Clock(TrainerCallback):
    """Notes when each step ends."""

    def on_step_end(self, *args, **kwargs):
      ends.append(time.perf_counter())

  new, rows = work.ROLLOUT['new'], work.ROLLOUT['rows']
  texts = [tokenizer.decode(row) for row in work.prompts(size)[:: work.ROLLOUT['group']]]
  count = warmup + steps + 1
  with tempfile.TemporaryDirectory() as folder:
    config = trl.RLOOConfig(
      output_dir=folder, per_device_train_batch_size=rows, num_generations=work.ROLLOUT['group'],
      max_completion_length=new, generation_kwargs={'min_new_tokens': new}, temperature=1.0,
      beta=work.BETA, max_steps=count, learning_rate=work.LEARNING_RATE,
      lr_scheduler_type='constant', report_to='none', save_strategy='no', use_cpu=True,
      disable_tqdm=True, dataloader_pin_memory=False, shuffle_dataset=False, bf16=False,
      gradient_checkpointing=False)
    trainer = trl.RLOOTrainer(
      model=LlamaForCausalLM(_config(size)), args=config, processing_class=tokenizer,
      reward_funcs=[LlamaForSequenceClassification(_config(size, num_labels=1))],
      reward_processing_classes=[tokenizer], train_dataset=Dataset.from_dict({'prompt': texts}),
      peft_config=_lora('CAUSAL_LM'), callbacks=[Clock()])
    start = time.perf_counter()
    trainer.train()
  seconds = [b - a for a, b in zip(ends[warmup:], ends[warmup + 1:])]
  return work.summary(ends[0] - start, seconds)


def _tokenizer(size: str):
  """A word-level tokenizer with a word for each id, so that text is encoded back to 64 tokens."""
  from tokenizers import Tokenizer, models, pre_tokenizers
  from transformers import PreTrainedTokenizerFast

  words = ['<pad>', '<s>', '</s>', *(f'w{i}' for i in range(3, work.SIZES[size]['vocab']))]
  made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token='w3'))
  made.pre_tokenizer = pre_tokenizers.Whitespace()
  return PreTrainedTokenizerFast(tokenizer_object=made, pad_token='<pad>', bos_token='<s>',
                                 eos_token='</s>', padding_side='left')


def main() -> None:
  """Measures one case and prints its row."""
  args = work.arguments(__doc__)
  if args.suite == 'rm':
    name = 'transformers + peft'
    row = work.measure(reward_step(args.size), steps=args.steps, warmup=args.warmup)
  else:
    name, row = 'trl', rl_trainer(args.size, args.steps, args.warmup)
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
  work.report({'name': name, **row, 'peak_memory_bytes': peak},
              'torch', 'transformers', 'peft', 'trl')


if __name__ == '__main__':
  os.environ.setdefault('HF_HUB_OFFLINE', '1')
  os.environ.setdefault('TRL_EXPERIMENTAL_SILENCE', '1')
  main()
