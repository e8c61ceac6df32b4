"""Writes what every contestant reads, once for each size.

    python -m experiments.bench.weights --size=tiny --out=/tmp/tiny

base/       a random Llama as Hugging Face has it: config.json and safetensors
policy/     LoRA over it in PEFT's format: random A, B = 0, so that it is the base exactly
reward/     the same A with a score head
score.npy   that head's vector f32[width], for whoever takes no adapter
"""

import pathlib

from experiments.bench import work
from perl.config import platform

if __name__ == '__main__':
  platform.tune()  # before jax is imported

import jax
import numpy as np

from perl.hub import adapters as peft_format
from perl.hub import pretrained
from perl.models import lm
from perl.models.config import Config
from perl.models.transformer import Transformer
from perl.peft import adapters


def config(size: str, dtype: str):
  """Our `Config` of a size; the other options are Llama's."""
  s = work.SIZES[size]
  return Config(
    vocab_size=s.vocab, layers=s.layers, width=s.width, heads=s.heads, kv_heads=s.kv_heads,
    head_dim=s.head_dim, mlp_width=s.mlp_width, norm_eps=work.NORM_EPS, rope_theta=work.ROPE_THETA,
    max_positions=1024, dtype=dtype, param_dtype=dtype)


def write(folder: pathlib.Path, size: str, dtype: str) -> None:
  """Fills the folder, which is new or empty."""
  folder.mkdir(parents=True, exist_ok=True)
  model = Transformer(config(size, dtype))
  base = lm.init(model, jax.random.key(0))
  pretrained.save(folder / 'base', model, base, progress=False)
  for name in ('policy', 'reward'):
    adapter = adapters.init(jax.random.key(1), base, 'lora', rank=work.RANK, alpha=work.ALPHA,
                            head=name == 'reward')
    peft_format.save(folder / name, adapter, base, heads=work.SIZES[size].heads,
                 base_name=str(folder / 'base'))
  np.save(folder / 'score.npy', np.asarray(adapter['head']['kernel'][:, 0], np.float32))


def main() -> None:
  """Writes one size."""
  parser = work.parser(__doc__)
  parser.add_argument('--size', choices=tuple(work.SIZES), required=True)
  parser.add_argument('--dtype', default='', help="float32 or bfloat16; '' is the size's own")
  parser.add_argument('--out', type=pathlib.Path, required=True)
  args = parser.parse_args()
  write(args.out.resolve(), args.size, args.dtype or work.SIZES[args.size].dtype)
  work.report({'folder': str(args.out.resolve())}, 'jax')


if __name__ == '__main__':
  main()
