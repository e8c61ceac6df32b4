"""Memory of a reward-model train step, LoRA against full tuning, from the compiled programs alone.

    python -m experiments.memory --size=small --json=experiments/results/memory_rm_small.json

Nothing is allocated and nothing runs: the step is lowered on shapes, compiled for this machine's
backend, and the compiler is asked (`compiled.memory_analysis()`). Both steps are the jobs' own:
the same loss, AdamW, clipping and batch.
"""

import argparse

import jax
import jax.numpy as jnp

from perl import trees
from perl.models import config as model_config
from perl.models import lm
from perl.models.transformer import Transformer
from perl.peft import adapters
from perl.preference import reward_losses
from perl.train import memory, metrics, optim, provenance
from perl.train import step as steps

PAPER = 'PERL, table 1: reward models with LoRA took 43 to 56 % of the memory of full tuning (text)'


def measure(method: str, *, size: str, vocab_size: int, pairs: int, tokens: int, remat: str,
            dtype: str, rank: int) -> dict:
  """Bytes of one pairwise step with `method`, by part, and the parameters that it trains."""
  unroll = 1  # The scan over layers as it is: what a large model would run.
  model = Transformer(model_config.sized(
    size, vocab_size=vocab_size, remat=remat, dtype=dtype, param_dtype=dtype, scan_unroll=unroll))
  base = lm.abstract(model)
  options = {} if method == 'full' else {'rank': rank}
  adapter = jax.eval_shape(
    lambda base: adapters.init(jax.random.key(0), base, method, head=True, **options), base)
  tx = optim.make(learning_rate=1e-4, steps=1)
  state = jax.eval_shape(
    lambda a: steps.init_state(a, tx, jax.random.key(0), adapters.split), adapter)
  loss = reward_losses.make_loss(model, kind='pairwise', margin=False, centre=0.0, dropout=False)
  step = steps.make_train_step(loss, tx, split=adapters.split)
  found = memory.analysis(step.lower(state, base, _batch(pairs, tokens)).compile())
  return found | {'trainable': adapters.count(adapter), 'total': trees.count(base)}


def _batch(pairs: int, tokens: int) -> dict:
  shape = lambda *s, dtype: jax.ShapeDtypeStruct(s, dtype)
  batch = {name: shape(pairs, dtype=jnp.float32) for name in ('margin', 'weight')}
  batch['prompt_tokens'] = shape(pairs, dtype=jnp.int32)
  for name in ('chosen', 'rejected'):
    batch[name] = shape(pairs, tokens, dtype=jnp.int32)
    batch[f'{name}_mask'] = shape(pairs, tokens, dtype=jnp.bool_)
  return batch


def main() -> None:
  """Prints LoRA against full tuning, by what is kept of a layer, and writes it as JSON."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--size', default='small', help='a size of perl/models/config.py')
  parser.add_argument('--vocab_size', type=int, default=16384)
  parser.add_argument('--pairs', type=int, nargs='+', default=[1, 4], help='pairs on the device')
  parser.add_argument('--tokens', type=int, default=512, help='of each response with its prompt')
  parser.add_argument('--dtype', default='float32', help='of base and computation')
  parser.add_argument('--rank', type=int, default=8)
  parser.add_argument('--json', default='', help='also write the result to this file')
  args = parser.parse_args()
  common = dict(size=args.size, vocab_size=args.vocab_size, tokens=args.tokens, dtype=args.dtype,
                rank=args.rank)
  rows = []
  print('| pairs | remat | LoRA, MiB | full, MiB | LoRA / full |\n|--:|:--|--:|--:|--:|')
  for pairs in args.pairs:
    for remat in ('none', 'products', 'layer'):
      found = {m: measure(m, pairs=pairs, remat=remat, **common) for m in ('lora', 'full')}
      ratio = found['lora']['total_bytes'] / found['full']['total_bytes']
      rows.append({'pairs': pairs, 'remat': remat, **found, 'ratio': ratio})
      sizes = [found[m]['total_bytes'] / 2**20 for m in ('lora', 'full')]
      print(f'| {pairs} | {remat} | {sizes[0]:,.0f} | {sizes[1]:,.0f} | {ratio:.1%} |', flush=True)
  print(f'The paper\'s, on other models and chips: {PAPER}.')
  if args.json:
    metrics.write_json(args.json, {
      'command': 'python -m experiments.memory', 'settings': vars(args), 'rows': rows,
      'paper': PAPER, **provenance.record(),
    })


if __name__ == '__main__':
  main()
