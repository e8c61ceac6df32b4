"""Tunix's reward-model step: its Llama 3, qwix's LoRA, its PeftTrainer with the pairwise loss.

Runs in an environment of its own that has google-tunix (0.1.7 was used), from the repository root:

    PYTHON -m experiments.benchmarks.peer_tunix --suite=rm --size=tiny

Less work than ours by one vector: its trainer updates LoRA parameters alone, so the scalar head
stays as it was.
"""

import contextlib
import io
import resource
import time

from experiments.benchmarks import work


def model_with_head(size: str):
  """Llama 3 in float32 with random weights, its output head replaced by a scalar one, and LoRA."""
  import qwix
  from flax import nnx
  from tunix.models.llama3 import model as llama
  from tunix.rl import utils

  s = work.SIZES[size]
  made = llama.Llama3(llama.ModelConfig(
    num_layers=s['layers'], vocab_size=s['vocab'], embed_dim=s['width'],
    hidden_dim=s['mlp_width'], num_heads=s['heads'], num_kv_heads=s['heads'],
    head_dim=s['width'] // s['heads'], rope_theta=10_000, norm_eps=1e-6), rngs=nnx.Rngs(0))
  made = utils.create_critic_model(made)
  lora = qwix.LoraProvider(module_path='.*(q_proj|k_proj|v_proj|o_proj).*', rank=work.RANK,
                           alpha=work.ALPHA)
  return qwix.apply_lora_to_model(made, lora, rngs=nnx.Rngs(1), **made.get_model_input())


def clock():
  """Training hooks that note when each step starts, and the loss that each step ends with."""
  from tunix.sft import hooks

  class Clock(hooks.TrainingHooks):
    """`starts`: seconds, the end of training last; `losses`: of each step."""

    def __init__(self):
      self.starts: list[float] = []
      self.losses: list[float] = []

    def on_train_start(self, train_ctx):
      pass

    def on_train_step_start(self, train_ctx):
      self.starts.append(time.perf_counter())

    def on_train_step_end(self, train_ctx, train_step, train_loss):
      self.losses.append(float(train_loss))  # waits for the step

    def on_train_end(self, train_ctx):
      self.starts.append(time.perf_counter())

    def on_eval_step_start(self, train_ctx):
      pass

    def on_eval_step_end(self, train_ctx, eval_loss):
      pass

  return Clock()


def reward_steps(size: str, *, steps: int, warmup: int) -> dict:
  """Seconds of `steps` steps after one that compiles and `warmup` others, and LoRA's size."""
  import jax
  import jax.numpy as jnp
  import numpy as np
  import optax
  from flax import nnx
  from tunix.sft import peft_trainer

  tokens = jnp.asarray(np.concatenate(work.pairs(size)), jnp.int32)
  rows, length = tokens.shape
  causal = jnp.broadcast_to(jnp.tril(jnp.ones((length, length), bool)), (rows, length, length))
  count = 1 + warmup + steps

  def inputs(batch):
    return {'input_tokens': batch.input_tokens, 'attention_mask': causal,
            'positions': jnp.broadcast_to(jnp.arange(length), tokens.shape)}

  def loss(model, input_tokens, positions, attention_mask):
    scores = model(input_tokens, positions, None, attention_mask)[0][:, -1, 0]
    chosen, rejected = jnp.split(scores, 2)
    return -jax.nn.log_sigmoid(chosen - rejected).mean()

  mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ('fsdp', 'tp'))
  with mesh:
    model = model_with_head(size)
    trainer = peft_trainer.PeftTrainer(
      model, optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(work.LEARNING_RATE)),
      peft_trainer.TrainingConfig(eval_every_n_steps=10**9, max_steps=count,
                                  max_inflight_computations=1))
    trainer.with_gen_model_input_fn(inputs).with_loss_fn(loss)
    marks = clock()
    trainer.with_training_hooks(marks)
    batch = peft_trainer.TrainingInput(input_tokens=tokens, input_mask=jnp.ones(tokens.shape, bool))
    with contextlib.redirect_stderr(io.StringIO()):  # its progress bar
      trainer.train([batch] * count)
  seconds = [b - a for a, b in zip(marks.starts, marks.starts[1:])]
  assert len(seconds) == count and len(marks.losses) == count, (seconds, marks.losses)
  return {**work.summary(seconds[0], seconds[1 + warmup:]), 'losses': marks.losses,
          'parameters_trainable': sum(x.size for x in jax.tree.leaves(
            nnx.state(model, nnx.LoRAParam)))}


def main() -> None:
  """Measures one case and prints its row."""
  args = work.arguments(__doc__)
  if args.suite != 'rm':
    raise SystemExit(f'expected --suite=rm, found {args.suite}: Tunix is timed on that alone')
  row = reward_steps(args.size, steps=args.steps, warmup=args.warmup)
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
  work.report({'name': 'tunix', **row, 'peak_memory_bytes': peak},
              'google-tunix', 'qwix', 'jax', 'flax')


if __name__ == '__main__':
  main()
