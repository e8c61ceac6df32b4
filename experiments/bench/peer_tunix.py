"""Tunix (google-tunix 0.1.7 with qwix): its Llama 3, PeftTrainer, Sampler and GRPOLearner.

Runs in an environment of its own, from the repository root; the weights are written by ours:

    PYTHON -m experiments.bench.peer_tunix --suite=rm --size=tiny --weights=/tmp/tiny

rm: PeftTrainer with the pairwise loss; sft: with its own loss; decode: Sampler; rl: GRPOLearner
with the vanilla rollout and, as reward function, a reward model of the same size (Tunix takes text
and hands on text). Less work than ours by one vector in rm: its trainer updates LoRA alone, so the
score head stays as it was. The reference shares its base with the policy, as in Tunix's examples.
"""

import argparse
import contextlib
import io
import os
import tempfile
import time

from experiments.bench import work
from experiments.bench.tunix_parts import Clock, Words, base, one_device, optimizer, with_lora


def pairwise(model, input_tokens, input_mask, positions, attention_mask):
  """-log sigmoid of the scores' difference, both sides in one forward pass."""
  import jax
  import jax.numpy as jnp

  scores = model(input_tokens, positions, None, attention_mask)[0][:, -1, 0]
  chosen, rejected = jnp.split(scores, 2)
  return -jax.nn.log_sigmoid(chosen - rejected).mean()


def places(rows: int, length: int):
  """(positions [rows, length], the causal mask [rows, length, length])."""
  import jax.numpy as jnp

  causal = jnp.tril(jnp.ones((length, length), bool))
  return (jnp.broadcast_to(jnp.arange(length), (rows, length)),
          jnp.broadcast_to(causal, (rows, length, length)))


def supervised(args: argparse.Namespace) -> dict:
  """Seconds of PeftTrainer's steps on one batch, after one that compiles and `warmup` others."""
  import jax.numpy as jnp
  from tunix.sft import peft_trainer

  tokens = jnp.asarray(work.rows(args.size), jnp.int32)
  positions, causal = places(*tokens.shape)
  count, marks = 1 + args.warmup + args.steps, Clock()
  trainer = peft_trainer.PeftTrainer(
    with_lora(args, base(args, scored=args.suite == 'rm')), optimizer(),
    peft_trainer.TrainingConfig(eval_every_n_steps=10**9, max_steps=count,
                                max_inflight_computations=1))
  trainer.with_gen_model_input_fn(lambda batch: {
    'input_tokens': batch.input_tokens, 'input_mask': batch.input_mask, 'positions': positions,
    'attention_mask': causal})
  if args.suite == 'rm':
    trainer.with_loss_fn(pairwise)
  trainer.with_training_hooks(marks)
  batch = peft_trainer.TrainingInput(input_tokens=tokens, input_mask=jnp.ones(tokens.shape, bool))
  with contextlib.redirect_stderr(io.StringIO()):  # its progress bar
    trainer.train([batch] * count)
  return {**work.between(marks.starts, args), 'first_loss': marks.losses[0]}


def sampling(args: argparse.Namespace) -> dict:
  """Seconds of Sampler's batches; at top_p = 1, for without top_p it is greedy."""
  from tunix.generate import sampler

  s = work.SIZES[args.size]
  cache = sampler.CacheConfig(cache_size=s.prompt + s.new, num_layers=s.layers,
                              num_kv_heads=s.kv_heads, head_dim=s.head_dim)
  sample = sampler.Sampler(with_lora(args, base(args)), Words(), cache)
  texts = [work.text(row) for row in work.prompts(args.size)]
  options = dict(max_prompt_length=s.prompt, eos_tokens=[s.vocab + 1])  # so that no row ends early
  seeds = iter(range(10**9))

  def step() -> None:
    sampled = sample(input_strings=texts, max_generation_steps=s.new, temperature=1.0, top_p=1.0,
                     seed=next(seeds), **options)
    assert all(len(tokens) == s.new for tokens in sampled.tokens)

  row = work.measure(step, steps=args.steps, warmup=args.warmup)
  row['peak_memory_bytes'] = work.peak_memory_bytes()
  count = min(work.GREEDY, s.new)
  greedy = sample(input_strings=texts, max_generation_steps=count, return_logprobs=True, **options)
  return {**row, 'greedy_logprob': sum(map(sum, greedy.logprobs)) / (count * s.rows)}


def reward_function(args: argparse.Namespace):
  """(prompts, completions) -> scores of the jitted reward model at the last token."""
  import jax
  import jax.numpy as jnp
  import numpy as np
  from flax import nnx

  model = base(args, scored=True)

  @nnx.jit
  def score(model, tokens):
    positions, causal = places(*tokens.shape)
    return model(tokens, positions, None, causal)[0][:, -1, 0]

  def reward(prompts, completions, **_):
    tokens = [work.ids(prompt) + work.ids(response)
              for prompt, response in zip(prompts, completions)]
    return np.asarray(jax.device_get(score(model, jnp.asarray(tokens)))).tolist()

  return reward


def cluster(args: argparse.Namespace, count: int):
  """The RLCluster: policy and reference over one base, the vanilla rollout engine."""
  from tunix.rl import rl_cluster
  from tunix.rl.rollout import base_rollout

  s, mesh = work.SIZES[args.size], one_device()
  reference = base(args)
  roles = rl_cluster.Role.ACTOR, rl_cluster.Role.REFERENCE, rl_cluster.Role.ROLLOUT
  return rl_cluster.RLCluster(
    actor=with_lora(args, reference), reference=reference, tokenizer=Words(),
    cluster_config=rl_cluster.ClusterConfig(
      role_to_mesh=dict.fromkeys(roles, mesh), rollout_engine='vanilla', offload_to_cpu=False,
      training_config=rl_cluster.RLTrainingConfig(
        actor_optimizer=optimizer(), eval_every_n_steps=10**9, max_steps=count,
        max_inflight_computations=1),
      rollout_config=base_rollout.RolloutConfig(
        max_tokens_to_generate=s.new, max_prompt_length=s.prompt, kv_cache_size=s.prompt + s.new,
        temperature=1.0, top_p=1.0, eos_tokens=[s.vocab + 1])))


def online(args: argparse.Namespace) -> dict:
  """Seconds of GRPOLearner's steps, from one rollout's start to the next."""
  import numpy as np
  from tunix.rl.grpo import grpo_learner

  s, count, starts = work.SIZES[args.size], 1 + args.warmup + args.steps, []
  roles = cluster(args, count)
  generate = roles.generate

  def noted(*arguments, **options):
    starts.append(time.perf_counter())
    return generate(*arguments, **options)

  roles.generate = noted
  learner = grpo_learner.GRPOLearner(
    roles, grpo_learner.GRPOConfig(num_generations=s.samples, num_iterations=1, beta=work.BETA),
    reward_function(args))
  texts = np.array([work.text(row) for row in work.rl_prompts(args.size)])
  with contextlib.redirect_stderr(io.StringIO()):
    learner.train([{'prompts': texts} for _ in range(count)])
  starts.append(time.perf_counter())
  return work.between(starts, args)


CASES = {'rm': supervised, 'sft': supervised, 'decode': sampling, 'rl': online}


def main() -> None:
  """Measures one case and prints its row."""
  args = work.arguments(__doc__)
  import jax

  with tempfile.TemporaryDirectory() as folder:
    os.chdir(folder)  # its loggers write into the working folder
    with one_device():
      row = CASES[args.suite](args)
    os.chdir('/')
  row.setdefault('peak_memory_bytes', work.peak_memory_bytes())
  work.report({'name': 'tunix', 'device': jax.devices()[0].device_kind, **row},
              'google-tunix', 'qwix', 'jax', 'jaxlib', 'flax')


if __name__ == '__main__':
  main()
