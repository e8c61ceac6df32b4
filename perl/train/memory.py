"""Memory of a compiled step, from the compiler: nothing is run and nothing measured twice."""

from typing import Any

import jax
import numpy as np

from perl.types import Batch


def analysis(compiled: jax.stages.Compiled) -> dict[str, int]:
  """Bytes per device of a compiled program: arguments, results, temporaries, and their peak.

  Donated arguments share their bytes with results (alias) and count once.
  """
  stats = compiled.memory_analysis()
  parts = {
    'arguments': stats.argument_size_in_bytes,
    'outputs': stats.output_size_in_bytes,
    'temporaries': stats.temp_size_in_bytes,
    'aliases': stats.alias_size_in_bytes,
  }
  total = parts['arguments'] + parts['outputs'] + parts['temporaries'] - parts['aliases']
  return {f'{name}_bytes': int(size) for name, size in parts.items()} | {'total_bytes': int(total)}


def of_step(step: Any, *arguments: Any) -> dict[str, int]:
  """{'peak_memory_bytes': ...} of a jitted step with these arguments (arrays or their shapes)."""
  return {'peak_memory_bytes': analysis(step.lower(*arguments).compile())['total_bytes']}


def longest(batches: list[Batch]) -> Batch:
  """The batch with the most elements."""
  return max(batches, key=lambda b: sum(np.asarray(x).size for x in b.values()))


def resized(batch: Batch, rows: int) -> Batch:
  """The batch with `rows` rows, repeated or cut: for shapes alone."""
  return {k: np.resize(v, (rows, *np.shape(v)[1:])) for k, v in batch.items()}
