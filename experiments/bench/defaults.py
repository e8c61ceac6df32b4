"""What our defaults choose between, measured: run on each new platform.

    python -m experiments.bench.defaults --json=experiments/results/choices_cpu.json

`forwards`: reference and reward model in a pass each, or in one as stacked adapters (rl.forwards).
`rollout`: 64 prompts in batches of 16, each until its last response ends, or in 16 slots that are
filled again (rl.rollout), with responses of more and less even lengths: random weights end one with
a chance of about 1 in 32 a token, and the longest allowed length varies. Ways are timed in turn.
"""

import statistics
import time
from collections.abc import Callable

from experiments.bench import work
from perl.config import platform

if __name__ == '__main__':
  platform.tune()  # before jax is imported

import jax
import jax.numpy as jnp
import numpy as np

from perl.models import config, lm
from perl.models.transformer import Transformer
from perl.peft import adapters
from perl.rl.rewards import make_judge
from perl.rl.rollout import rollout
from perl.train import metrics, provenance

PROMPTS, SLOTS, PROMPT_TOKENS, ENDING = 64, 16, 64, 32
LONGEST = (8, 16, 32, 64, 128)


def seconds(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
  """The median seconds of each, in turn, after a call that compiles."""
  times = {name: [] for name in ways}
  for number in range(rounds + 1):
    for name, way in ways.items():
      start = time.perf_counter()
      jax.block_until_ready(way())
      if number:
        times[name].append(time.perf_counter() - start)
  return {name: statistics.median(taken) for name, taken in times.items()}


def build(size: str, vocab_size: int):
  """(model, base, adapters by role) with random weights."""
  model = Transformer(config.sized(size, vocab_size=vocab_size))
  base = lm.init(model, jax.random.key(0))
  lora = lambda seed, head: adapters.init(jax.random.key(seed), base, 'lora', rank=8, head=head)
  return model, base, {'policy': lora(1, False), 'reference': lora(2, False),
                       'reward': lora(3, True)}


def forwards(size: str, rounds: int) -> dict:
  """Scores and reference log-probs of 4 prompts x 4 samples of 64 + 64 tokens, both ways."""
  model, base, roles = build(size, work.SIZES[size].vocab)
  tokens = jax.random.randint(jax.random.key(0), (4, PROMPT_TOKENS), 3, work.SIZES[size].vocab)
  sampled = rollout(model, base, roles['policy'], tokens, jnp.ones(tokens.shape, bool),
                    jax.random.key(1), max_new_tokens=64, eos_id=-1, pad_id=0, samples=4)
  way = lambda how: lambda: make_judge(model, max_new_tokens=64, samples=4, forwards=how)(
    base, roles, sampled)
  return seconds({how: way(how) for how in ('separate', 'stacked')}, rounds)


def rollouts(size: str, longest: int, rounds: int) -> dict:
  """Responses of at most `longest` tokens to all prompts, both ways."""
  model, base, roles = build(size, ENDING)
  tokens = jax.random.randint(jax.random.key(0), (PROMPTS, PROMPT_TOKENS), 0, ENDING)
  how = dict(max_new_tokens=longest, eos_id=2, pad_id=0)
  call = lambda some, **more: rollout(
    model, base, roles['policy'], some, jnp.ones(some.shape, bool), jax.random.key(1), **how,
    **more)
  ways = {
    'batch': lambda: [call(tokens[i : i + SLOTS]) for i in range(0, PROMPTS, SLOTS)],
    'slots': lambda: call(tokens, slots=SLOTS),
  }
  lengths = np.asarray(ways['slots']().response_mask.sum(1))
  spread = {'longest_over_mean': float(lengths.max() / lengths.mean()),
            'mean_tokens': float(lengths.mean())}
  return seconds(ways, rounds) | spread


def main() -> None:
  """Prints both tables and writes the results."""
  parser = work.parser(__doc__)
  parser.add_argument('--size', default='tiny,medium', help='sizes, with commas: tiny, medium')
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--longest', type=int, nargs='+', default=LONGEST, help='tokens')
  parser.add_argument('--json', default='', help='write the results to this file')
  args = parser.parse_args()
  results = {'forwards': {}, 'rollout': []}
  for size in args.size.split(','):
    results['forwards'][size] = times = forwards(size, args.rounds)
    print(f'{size}: experience, separate {times["separate"]:.3f} s, stacked '
          f'{times["stacked"]:.3f} s', flush=True)
    for longest in args.longest:
      times = rollouts(size, longest, args.rounds)
      results['rollout'].append({'size': size, 'longest': longest, **times})
      print(f'{size}: longest over mean {times["longest_over_mean"]:.2f}: batches '
            f'{times["batch"]:.3f} s, slots {times["slots"]:.3f} s', flush=True)
  if args.json:
    metrics.write_json(args.json, {
      'command': 'python -m experiments.bench.defaults', 'settings': vars(args),
      'platform': jax.default_backend(), **results, **provenance.record()})


if __name__ == '__main__':
  main()
