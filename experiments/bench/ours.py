"""Our step, as a job runs it.

    python -m experiments.bench.weights --size=tiny --out=/tmp/tiny
    python -m experiments.bench.ours --suite=rm --size=tiny --weights=/tmp/tiny

--variant=full trains every weight in place of LoRA; --variant=remat keeps less of a layer for its
backward pass (model.remat=attention); --variant=stacks samples without a copy of the base. Sampling
is a job's default: on CPU, float32, from a copy of the base that LoRA is merged into anew for each
rollout, within the time; elsewhere from base and LoRA (perl/rl/rollout). With --profile=FOLDER two
steps are traced by jax.profiler.
"""

import argparse
import dataclasses
import functools
from collections.abc import Callable

from experiments.bench import work
from perl.config import platform

if __name__ == '__main__':
  platform.tune()  # before jax is imported

import jax
import jax.numpy as jnp

from perl.hub import adapters as peft_format
from perl.hub import pretrained
from perl.models import lm
from perl.models.context import Rows
from perl.models.transformer import Transformer
from perl.objectives import losses
from perl.peft import adapters
from perl.preference import reward_losses
from perl.rl import update as learner
from perl.rl.experience import make_experience
from perl.rl.rewards import make_judge
from perl.rl.rollout import rollout
from perl.train import optim, provenance
from perl.train import step as steps

Step = Callable[[], object]


class Case:
  """The model of a case, its base, and adapters as they lie in the folder of weights."""

  def __init__(self, args: argparse.Namespace) -> None:
    self.args, self.size = args, work.SIZES[args.size]
    model, self.base, _ = pretrained.load(args.weights / 'base', dtype=args.dtype, progress=False)
    remat = 'attention' if args.variant == 'remat' else 'none'
    self.model = Transformer(dataclasses.replace(model.config, remat=remat))

  def lora(self, name: str):
    """'policy' or 'reward'; buffers of their own at each call, for a step donates them."""
    loaded = peft_format.load(self.args.weights / name, self.base, heads=self.size.heads)
    return jax.device_put(loaded, jax.devices()[0])

  def learnt(self, name: str):
    """What is trained: that LoRA, or a copy of all weights with its head."""
    lora = self.lora(name)
    if self.args.variant != 'full':
      return lora
    head = {'head': lora['head']} if 'head' in lora else {}
    return {**adapters.init(jax.random.key(1), self.base, 'full'), **head}

  def trainer(self, learning, loss, prepare=None, together=1):
    """(state, step) of a loss over the adapters `learning`, and of what comes before it."""
    tx = optim.make(learning_rate=work.LEARNING_RATE, steps=1, clip_norm=work.CLIP)
    state = steps.init_state(learning, tx, jax.random.key(0), adapters.split)
    # Placed, as the base is and as a job does it: else the second step would be compiled anew.
    step = steps.make_train_step(
      loss, tx, split=adapters.split, prepare=prepare, together=together)
    return jax.device_put(state, jax.devices()[0]), step


def supervised(case: Case, name: str, loss, batch: dict) -> Step:
  """Forward, backward, clipping, AdamW on one batch; returns the loss."""
  state, step = case.trainer(case.learnt(name), loss)
  held = [state]

  def run():
    held[0], metrics = step(held[0], case.base, batch)
    jax.block_until_ready((held[0].adapters, metrics))
    return metrics['loss']

  return run


def reward_step(case: Case) -> Step:
  """One reward-model step on pairs."""
  loss = reward_losses.make_loss(
    case.model, kind='pairwise', margin=False, centre=0.0, dropout=False)
  chosen, rejected = (jnp.asarray(x, jnp.int32) for x in work.pairs(case.args.size))
  full, rows = jnp.ones(chosen.shape, bool), len(chosen)
  return supervised(case, 'reward', loss, {
    'chosen': chosen, 'rejected': rejected, 'chosen_mask': full, 'rejected_mask': full,
    'margin': jnp.zeros(rows), 'weight': jnp.ones(rows),
    'prompt_tokens': jnp.zeros(rows, jnp.int32)})


def next_token_step(case: Case) -> Step:
  """One next-token step, labels on all positions but the first, which nothing predicts."""
  tokens = jnp.asarray(work.rows(case.args.size), jnp.int32)
  mask = jnp.ones(tokens.shape, bool)

  def loss(adapter, base, batch, key):
    logprobs = lm.logprobs(
      case.model, base, adapter, batch['tokens'], Rows(batch['mask'], right_padded=True))
    return losses.next_token(logprobs, batch['loss_mask']), {}

  return supervised(case, 'policy', loss, {
    'tokens': tokens, 'mask': mask, 'loss_mask': mask.at[:, 0].set(False)})


def sampler(case: Case, temperature: float = 1.0, new: int = 0, samples: int = 1) -> Callable:
  """(adapter, tokens i32[N, P], key) -> Rollout; no token is the EOS, so that no row ends early."""
  sample = functools.partial(
    rollout, case.model, case.base, max_new_tokens=new or case.size.new, eos_id=-1,
    pad_id=work.PAD, temperature=temperature, samples=samples,
    copy=False if case.args.variant == 'stacks' else None)
  return lambda adapter, tokens, key: sample(adapter, tokens, jnp.ones(tokens.shape, bool), key)


def decode_step(case: Case) -> Step:
  """One batch of responses."""
  policy, sample = case.lora('policy'), sampler(case)
  tokens, calls = jnp.asarray(work.prompts(case.args.size), jnp.int32), iter(range(10**9))

  def run() -> None:
    jax.block_until_ready(sample(policy, tokens, jax.random.key(next(calls))))

  return run


def greedy(case: Case) -> dict:
  """What decoding must agree in: the mean log-prob, in nats, of greedy tokens."""
  count = min(work.GREEDY, case.size.new)
  tokens = jnp.asarray(work.prompts(case.args.size), jnp.int32)
  sampled = sampler(case, 0.0, count)(case.lora('policy'), tokens, jax.random.key(0))
  return {'greedy_logprob': float(sampled.logprobs[:, -count:].mean())}


def rl_step(case: Case) -> Step:
  """One REINFORCE step without a critic: rollout, anchor log-probs, reward model, update."""
  new, samples = case.size.new, case.size.samples
  sample = sampler(case, samples=samples)
  frozen = {'reference': case.lora('policy'), 'reward': case.lora('reward')}
  options = dict(max_new_tokens=new, baseline='batch_mean', samples=samples)
  state, update = case.trainer(
    {'policy': case.learnt('policy')}, learner.make_loss(case.model, 'reinforce', **options),
    prepare=learner.make_prepare(case.model, 'reinforce', **options), together=samples)
  judge = make_judge(case.model, max_new_tokens=new, samples=samples)
  build = make_experience(max_new_tokens=new, beta=work.BETA)
  tokens = jnp.asarray(work.rl_prompts(case.args.size), jnp.int32)
  weight, held = jnp.ones(len(tokens) * samples), [state]

  def run() -> None:
    key = jax.random.fold_in(jax.random.key(3), held[0].step)
    sampled = sample(held[0].adapters['policy'], tokens, key)
    experience, _ = build(sampled, judge(case.base, frozen, sampled), weight)
    held[0], metrics = update(held[0], case.base, experience)
    jax.block_until_ready((held[0].adapters, metrics))

  return run


STEPS = {'rm': reward_step, 'sft': next_token_step, 'decode': decode_step, 'rl': rl_step}


def main() -> None:
  """Measures one case and prints its row."""
  args = work.arguments(__doc__, ('', 'full', 'remat', 'stacks'))
  case = Case(args)
  step = STEPS[args.suite](case)
  row = work.measure(step, steps=args.steps, warmup=args.warmup)
  row['peak_memory_bytes'] = provenance.peak_memory_bytes()
  if args.suite == 'decode':
    row |= greedy(case)
  if args.profile:
    with jax.profiler.trace(args.profile):
      step()
      step()
  name = ', '.join(word for word in ('perl', args.variant) if word)
  row |= {'name': name, 'device': jax.devices()[0].device_kind}
  work.report(row, 'jax', 'jaxlib', 'flax')


if __name__ == '__main__':
  main()
