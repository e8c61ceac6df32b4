"""Our step, as a job runs it: `python -m experiments.benchmarks.ours --suite=rm --size=tiny`."""

from collections.abc import Callable

from experiments import platform
from experiments.benchmarks import work


def reward_step(size: str) -> Callable[[], None]:
  """One LoRA reward-model step: forward, backward, clipping, AdamW."""
  import jax
  import jax.numpy as jnp

  from perl.jobs import reward
  from perl.peft import adapters
  from perl.train import optim
  from perl.train import step as steps

  model, base = _base(size)
  adapter = adapters.init(jax.random.key(1), base, 'lora', rank=work.RANK, alpha=work.ALPHA,
                          head=True)
  tx = optim.make(learning_rate=work.LEARNING_RATE, steps=1)
  state = [steps.init_state(adapter, tx, jax.random.key(0), adapters.split)]
  loss = reward.make_loss(model, kind='pairwise', margin=False, centre=0.0, dropout=False)
  step = steps.make_train_step(loss, tx, split=adapters.split)
  chosen, rejected = (jnp.asarray(x, jnp.int32) for x in work.pairs(size))
  full, rows = jnp.ones(chosen.shape, bool), len(chosen)
  batch = {'chosen': chosen, 'rejected': rejected, 'chosen_mask': full, 'rejected_mask': full,
           'margin': jnp.zeros(rows), 'weight': jnp.ones(rows),
           'prompt_tokens': jnp.zeros(rows, jnp.int32)}

  def run() -> None:
    state[0], metrics = step(state[0], base, batch)
    jax.block_until_ready((state[0].adapters, metrics))

  return run


def rl_step(size: str) -> Callable[[], None]:
  """One REINFORCE step without a critic: rollout, anchor log-probs, reward model, update."""
  import jax
  import jax.numpy as jnp

  from perl.peft import adapters
  from perl.rl import reinforce
  from perl.rl.experience import make_experience
  from perl.rl.rollout import rollout
  from perl.train import optim
  from perl.train import step as steps

  model, base = _base(size)
  make = lambda seed, head: adapters.init(
    jax.random.key(seed), base, 'lora', rank=work.RANK, alpha=work.ALPHA, head=head)
  frozen = {'reference': make(1, False), 'reward': make(2, True)}
  tx = optim.make(learning_rate=work.LEARNING_RATE, steps=1)
  state = [steps.init_state({'policy': make(1, False)}, tx, jax.random.key(0), adapters.split)]
  new = work.ROLLOUT['new']
  build = make_experience(model, max_new_tokens=new, beta=work.BETA)
  update = steps.make_train_step(
    reinforce.make_loss(model, max_new_tokens=new, baseline='batch_mean'), tx,
    split=adapters.split)
  tokens = jnp.asarray(work.prompts(size), jnp.int32)
  mask, weight = jnp.ones(tokens.shape, bool), jnp.ones(len(tokens))

  def run() -> None:
    key = jax.random.fold_in(jax.random.key(3), state[0].step)
    # No token is the EOS (-1), so every row runs to the end: the same work for everybody.
    sampled = rollout(model, base, state[0].adapters['policy'], tokens, mask, key,
                      max_new_tokens=new, eos_id=-1, pad_id=0)
    experience, _ = build(base, frozen, sampled, weight)
    state[0], metrics = update(state[0], base, experience)
    jax.block_until_ready((state[0].adapters, metrics))

  return run


def _base(size: str):
  import jax

  from perl.models import config, lm
  from perl.models.transformer import Transformer

  vocab = work.SIZES[size]['vocab']
  unroll = 4 if work.SIZES[size]['layers'] <= 4 else 1  # as perl/jobs/setting.py chooses on CPU
  model = Transformer(config.sized(size, vocab_size=vocab, scan_unroll=unroll))
  return model, lm.init(model, jax.random.key(0))


def main() -> None:
  """Measures one case and prints its row."""
  args = work.arguments(__doc__)
  step = {'rm': reward_step, 'rl': rl_step}[args.suite](args.size)
  from perl.train import provenance

  work.report({'name': 'perl', **work.measure(step, steps=args.steps, warmup=args.warmup),
               'peak_memory_bytes': provenance.peak_memory_bytes()}, 'jax', 'flax')


if __name__ == '__main__':
  platform.tune()
  main()
