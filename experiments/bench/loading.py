"""Loading a published checkpoint: seconds and peak memory, ours beside transformers.

    python -m experiments.bench.loading --json=experiments/results/load_1b.json

Writes a random Llama of 1.24 B parameters in four shards, as float32 and as bfloat16, and loads it
by each in turn, in a process of its own, with the files in the page cache. A load has ended when
every weight has been read once more (its sum is taken): transformers maps files, and would else be
done before it has read them. Memory is the process's peak resident set, less what it was before the
load; the weights themselves are part of it.
"""

import json
import os
import pathlib
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable

import numpy as np

from experiments.bench import processes, work

SHARDS = 4
WHO = ('perl', 'transformers')


def write(folder: pathlib.Path, size: str, dtype: str) -> dict:
  """A random checkpoint of that size; returns its bytes, by shard."""
  import jax.numpy as jnp

  from perl import trees
  from perl.hub import families, naming, shards
  from perl.models import lm
  from perl.models.config import sized
  from perl.models.transformer import Transformer

  config, kind = sized(size), jnp.dtype(dtype)
  leaves, rng, sources = trees.flat(lm.abstract(Transformer(config))), np.random.default_rng(0), []
  for tensor in naming.tensors(leaves):
    shape = tensor.shape(leaves, config.heads)
    make = lambda shape=shape: rng.standard_normal(shape, np.float32).astype(kind) * kind.type(0.02)
    sources += [shards.Source(name, kind, shape, make) for name in tensor.names(leaves)]
  total = sum(source.bytes for source in sources)
  for _ in shards.write(folder, sources, -(-total * 103 // (100 * SHARDS))):
    pass
  about = families.describe(config) | {'architectures': ['LlamaForCausalLM'], 'torch_dtype': dtype}
  (folder / 'config.json').write_text(json.dumps(about))
  files = sorted(folder.glob('*.safetensors'))
  return {'bytes': total, 'shards': len(files), 'largest_shard_bytes': max(
    file.stat().st_size for file in files)}


def load_ours(folder: str, dtype: str) -> Callable[[], float]:
  """Returns what loads and reads everything once."""
  import jax
  import jax.numpy as jnp

  from perl.hub import pretrained

  jnp.zeros(1).block_until_ready()  # the backend is up before the clock starts
  total = jax.jit(lambda x: jnp.sum(x, dtype=jnp.float32))

  def run() -> float:
    _, base, _ = pretrained.load(folder, dtype=dtype, progress=False)
    return float(sum(total(x) for x in jax.tree.leaves(base)))

  return run


def load_transformers(folder: str, dtype: str) -> Callable[[], float]:
  """The same by transformers."""
  import torch
  from transformers import AutoModelForCausalLM

  def run() -> float:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    with torch.no_grad():
      return float(sum(p.sum(dtype=torch.float32) for p in model.parameters()))

  return run


def resident() -> int:
  """Bytes of this process in memory now."""
  return int(pathlib.Path('/proc/self/statm').read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE')


class Peak(threading.Thread):
  """The largest resident set while it runs, looked at every 2 ms."""

  def __init__(self) -> None:
    super().__init__(daemon=True)
    self.bytes, self._stop_now = resident(), threading.Event()

  def run(self) -> None:
    """Looks until `close`."""
    while not self._stop_now.wait(0.002):
      self.bytes = max(self.bytes, resident())

  def close(self) -> int:
    """Stops, and returns the peak."""
    self._stop_now.set()
    self.join()
    return self.bytes


def contestant(who: str, folder: str, dtype: str) -> None:
  """Loads once and prints a row."""
  run = {'perl': load_ours, 'transformers': load_transformers}[who](folder, dtype)
  before, peak = resident(), Peak()
  peak.start()
  start = time.perf_counter()
  total = run()
  seconds = time.perf_counter() - start
  row = {'name': who, 'seconds': seconds, 'sum': total, 'peak_bytes': peak.close() - before,
         'after_bytes': resident() - before}
  packages = {'perl': ('jax', 'jaxlib'), 'transformers': ('torch', 'transformers')}[who]
  work.report(row, *packages)


def contest(folder: pathlib.Path, stored: str, dtype: str, about: dict, rounds: int) -> dict:
  """Both in turn, `rounds` times."""
  runs: dict[str, list[dict]] = {who: [] for who in WHO}
  for number in range(rounds):
    for who in WHO:
      for file in folder.glob('*.safetensors'):  # into the page cache
        with open(file, 'rb') as stream:
          while stream.read(2**24):
            pass
      print(f'round {number + 1}/{rounds}: {stored} as {dtype}: {who}', file=sys.stderr, flush=True)
      runs[who].append(processes.run([
        sys.executable, '-m', 'experiments.bench.loading', f'--who={who}',
        f'--folder={folder}', f'--dtype={dtype}']))
  median = lambda who, name: statistics.median(row[name] for row in runs[who])
  base = about['bytes'] * np.dtype(np.float32).itemsize // 2 if stored != dtype else about['bytes']
  ratios = [b['seconds'] / a['seconds'] for a, b in zip(runs['perl'], runs['transformers'])]
  return {
    'suite': 'load', 'size': f'{stored} as {dtype}',
    'stored': stored, 'loaded_as': dtype, **about, 'base_bytes': base, 'runs': runs,
    'seconds': {who: median(who, 'seconds') for who in WHO},
    'peak_bytes': {who: median(who, 'peak_bytes') for who in WHO},
    'speed_against_transformers': statistics.median(ratios),
    'speed_against': {'transformers': statistics.median(ratios)},
    'ratios': {'transformers': ratios},
    'beyond_the_base_over_largest_shard': {
      who: (median(who, 'peak_bytes') - base) / about['largest_shard_bytes'] for who in WHO},
  }


def compete(size: str, rounds: int, scratch: str | None = None) -> list[dict]:
  """The cases: stored as float32 and as bfloat16, loaded as either.

  Args:
    size: of perl/models/config.py.
    rounds: of each case.
    scratch: a folder for the checkpoint, which is removed afterwards.
  """
  cases = []
  for stored, as_dtypes in (('float32', ('float32',)), ('bfloat16', ('bfloat16', 'float32'))):
    with tempfile.TemporaryDirectory(dir=scratch or None) as folder:
      about = write(pathlib.Path(folder), size, stored)
      cases += [contest(pathlib.Path(folder), stored, dtype, about, rounds) for dtype in as_dtypes]
  return cases


def table(cases: list[dict]) -> str:
  """The cases in Markdown."""
  lines = ['| stored | as | ours, s | transformers, s | times its speed | ours, peak beyond the '
           'base, of a shard | transformers |', '|:--|:--|--:|--:|--:|--:|--:|']
  for case in cases:
    beyond = case['beyond_the_base_over_largest_shard']
    lines.append(
      f'| {case["stored"]} | {case["loaded_as"]} | {case["seconds"]["perl"]:.1f} | '
      f'{case["seconds"]["transformers"]:.1f} | {case["speed_against_transformers"]:.2f} | '
      f'{beyond["perl"]:.2f} | {beyond["transformers"]:.2f} |')
  return '\n'.join(lines)


def main() -> None:
  """Prints a table and writes the results."""
  parser = work.parser(__doc__)
  parser.add_argument('--size', default='llama-3.2-1b', help='of perl/models/config.py')
  parser.add_argument('--rounds', type=int, default=3)
  parser.add_argument('--scratch', default='', help='folder for the checkpoint, removed afterwards')
  parser.add_argument('--json', default='', help='write the results to this file')
  parser.add_argument('--who', choices=WHO, help='load once and print a row (used by itself)')
  parser.add_argument('--folder', help='of the checkpoint, with --who')
  parser.add_argument('--dtype', help='to load it as, with --who')
  args = parser.parse_args()
  if args.who:
    contestant(args.who, args.folder, args.dtype)
    return
  cases = compete(args.size, args.rounds, args.scratch)
  print(table(cases))
  if args.json:
    from perl.train import metrics, provenance

    metrics.write_json(args.json, {
      'command': 'python -m experiments.bench.loading', 'size': args.size, 'cases': cases,
      **provenance.record()})


if __name__ == '__main__':
  main()
