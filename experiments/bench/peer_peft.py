"""Plain loops over transformers and PEFT (extra `hf`), on CPU or CUDA: the peer without a trainer.

    python -m experiments.bench.peer_peft --suite=rm --size=tiny --weights=/tmp/tiny

--variant=merged samples with LoRA folded into the base. --variant=compiled puts the model through
torch.compile, and samples with a static cache, which transformers compiles on CUDA. Attention is
PyTorch's own (sdpa). With bfloat16 weights LoRA's stay float32 where they are trained, under
autocast, and are bfloat16 where they only sample (suite decode).
"""

import argparse
import os
from collections.abc import Callable

from experiments.bench import work

if __name__ == '__main__':
  os.environ.setdefault('HF_HUB_OFFLINE', '1')  # before transformers is imported

import numpy as np
import torch
from peft import PeftModel
from transformers import LlamaForCausalLM, LlamaForSequenceClassification

Step = Callable[[], object]


class Case:
  """Model, device and options of a case."""

  def __init__(self, args: argparse.Namespace) -> None:
    torch.manual_seed(0)
    self.args, self.size = args, work.SIZES[args.size]
    self.device = 'cuda' if torch.cuda.is_available() else 'cpu'
    self.compiled, self.half = args.variant == 'compiled', args.dtype == 'bfloat16'

  def base(self, scored: bool):
    """The checkpoint, with the score head where it is asked for."""
    kind, more = LlamaForCausalLM, {}
    if scored:
      kind, more = LlamaForSequenceClassification, {'num_labels': 1, 'pad_token_id': work.PAD}
    model = kind.from_pretrained(self.args.weights / 'base', dtype=getattr(torch, self.args.dtype),
                                 attn_implementation='sdpa', **more)
    if scored:
      with torch.no_grad():
        model.score.weight.copy_(torch.from_numpy(np.load(self.args.weights / 'score.npy')))
    return model.to(self.device)

  def lora(self, name: str, *, trained: bool = True):
    """The base with the adapter of that folder, 'policy' or 'reward'."""
    return PeftModel.from_pretrained(
      self.base(name == 'reward'), self.args.weights / name, is_trainable=trained,
      autocast_adapter_dtype=trained).train(trained)

  def autocast(self):
    """The context of forward passes with trained adapters."""
    return torch.autocast(self.device, torch.bfloat16, enabled=self.half)

  def tensor(self, array):
    """Tokens on the device."""
    return torch.from_numpy(array).to(self.device)

  def wait(self) -> None:
    """Returns when the device has done its work."""
    if self.device == 'cuda':
      torch.cuda.synchronize()


def updater(case: Case, model) -> Callable:
  """(loss) -> its value, after backward, clipping and AdamW."""
  trained = [p for p in model.parameters() if p.requires_grad]
  optimizer = torch.optim.AdamW(trained, lr=work.LEARNING_RATE, weight_decay=0.0)

  def update(loss) -> float:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(trained, work.CLIP)
    optimizer.step()
    case.wait()
    return loss.item()

  return update


def reward_step(case: Case) -> Step:
  """-log sigmoid of the scores' difference, both sides in one forward pass."""
  model = case.lora('reward')
  call = torch.compile(model) if case.compiled else model
  update, ids = updater(case, model), case.tensor(work.rows(case.args.size))
  mask = torch.ones_like(ids)

  def run() -> float:
    with case.autocast():
      scores = call(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, 0]
    chosen, rejected = scores.float().chunk(2)
    return update(-torch.nn.functional.logsigmoid(chosen - rejected).mean())

  return run


def next_token_step(case: Case) -> Step:
  """Cross-entropy as transformers computes it from labels."""
  model = case.lora('policy')
  call = torch.compile(model) if case.compiled else model
  update, ids = updater(case, model), case.tensor(work.rows(case.args.size))
  mask = torch.ones_like(ids)

  def run() -> float:
    with case.autocast():
      loss = call(input_ids=ids, attention_mask=mask, labels=ids, use_cache=False).loss
    return update(loss)

  return run


def generate(case: Case, model, ids, **more):
  """model.generate over full prompts; the checkpoint names no EOS, so that no row ends early."""
  options = {'max_new_tokens': case.size.new, 'pad_token_id': work.PAD, 'do_sample': True,
             'temperature': 1.0, 'top_k': 0, 'top_p': 1.0, **more}
  if case.compiled:
    options['cache_implementation'] = 'static'
  with torch.inference_mode():
    output = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)
  case.wait()
  return output


def sampling_policy(case: Case):
  """The policy that only samples, merged or not."""
  model = case.lora('policy', trained=False)
  return model.merge_and_unload() if case.args.variant == 'merged' else model


def decode_step(case: Case) -> Step:
  """One batch of responses."""
  model, ids = sampling_policy(case), case.tensor(work.prompts(case.args.size))
  expected = (case.size.rows, case.size.prompt + case.size.new)

  def run() -> None:
    output = generate(case, model, ids)
    assert output.shape == expected, (output.shape, expected)

  return run


def greedy(case: Case) -> dict:
  """What decoding must agree in: the mean log-prob, in nats, of greedy tokens."""
  ids = case.tensor(work.prompts(case.args.size))
  count = min(work.GREEDY, case.size.new)
  output = generate(
    case, sampling_policy(case), ids, max_new_tokens=count, do_sample=False, temperature=None,
    top_k=None, top_p=None, output_logits=True, return_dict_in_generate=True)
  logprobs = torch.stack(output.logits, 1).float().log_softmax(-1)
  return {'greedy_logprob': logprobs.gather(-1, output.sequences[:, -count:, None]).mean().item()}


def rl_step(case: Case) -> Step:
  """REINFORCE on sequences with the other rows' mean as baseline; the KL is in the reward.

  The reference is the policy with its adapter off; the reward model is a second model.
  """
  size, model = case.size, case.lora('policy')
  reward = case.base(scored=True).eval().requires_grad_(False)
  call = torch.compile(model) if case.compiled else model
  update = updater(case, model)
  prompts = case.tensor(work.rl_prompts(case.args.size)).repeat_interleave(size.samples, 0)

  def logprobs(call, ids):
    logits = call(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False,
                  logits_to_keep=size.new + 1).logits[:, :-1].float()
    return logits.gather(-1, ids[:, size.prompt:, None])[..., 0] - logits.logsumexp(-1)

  def run() -> None:
    # A context each: autocast keeps its casts of LoRA until the end, those without gradient too.
    with case.autocast():
      ids = generate(case, model.eval(), prompts).clone()  # out of inference mode
    with case.autocast(), torch.no_grad(), model.disable_adapter():
      reference = logprobs(model, ids)
    with case.autocast(), torch.no_grad():
      scores = reward(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    with case.autocast():
      policy = logprobs(call.train(), ids)
    returns = scores.logits[:, 0].float() - work.BETA * (policy.detach() - reference).sum(-1)
    baseline = (returns.sum() - returns) / (len(returns) - 1)
    update(-((returns - baseline) * policy.sum(-1)).mean())

  return run


STEPS = {'rm': reward_step, 'sft': next_token_step, 'decode': decode_step, 'rl': rl_step}


def machine() -> dict:
  """The device's name and the peak of its memory (CPU: of this process's)."""
  if torch.cuda.is_available():
    return {'device': torch.cuda.get_device_name(),
            'peak_memory_bytes': torch.cuda.max_memory_allocated()}
  return {'device': 'cpu', 'peak_memory_bytes': work.peak_memory_bytes()}


def main() -> None:
  """Measures one case and prints its row."""
  args = work.arguments(__doc__, ('', 'merged', 'compiled'))
  case = Case(args)
  row = work.measure(STEPS[args.suite](case), steps=args.steps, warmup=args.warmup)
  row |= machine()
  if args.suite == 'decode':
    row |= greedy(case)
  name = ', '.join(word for word in ('transformers + peft', args.variant) if word)
  work.report({'name': name, **row}, 'torch', 'transformers', 'peft')


if __name__ == '__main__':
  main()
