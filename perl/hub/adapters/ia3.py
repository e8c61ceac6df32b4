"""IA3: PEFT's. A feedforward module has its input scaled, another its output, the bias too."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from perl import trees
from perl.hub import naming, tensors
from perl.hub.adapters import _config as config
from perl.hub.adapters import _modules as modules
from perl.hub.adapters._config import Saved, Written
from perl.hub.config_json import Unsupported
from perl.hub.naming import Tensor
from perl.peft.methods.ia3 import Inputs, Outputs
from perl.types import Tree

NODES = (Inputs, Outputs)


class Piece(NamedTuple):
  """IA3 of one published module in one layer."""

  factors: np.ndarray  # f32[I] or f32[O]
  feedforward: bool  # of the input


def load(saved: Saved, base: Tree, heads: int) -> Tree:
  """The tree of stacked factors: of inputs where their shape is [1, I], of outputs where [O, 1]."""
  config.check(saved.about, saved.file, {}, read=('feedforward_modules', 'init_ia3_weights'))
  leaves = trees.flat(base)

  def part(fields: dict[str, np.ndarray], tensor: Tensor) -> list[Piece]:
    (x,) = fields.values()
    if x.ndim != 2 or 1 not in x.shape:
      raise tensors.CorruptTensors(
        f'expected ia3_l [1, I] or [O, 1] of {tensor.theirs}, found {list(x.shape)}; save it again')
    rows, columns = leaves[tensor.ours[0]].shape[-2], modules.columns(tensor, base)
    feedforward = x.shape[0] == 1
    modules.check_size(x.size, rows if feedforward else columns, f'ia3_l of {tensor.theirs}')
    x = x.reshape(-1)
    if feedforward:
      return [Piece(x, True)] * len(tensor.ours)
    return [Piece(y, False) for y in modules.split(x, tensor, heads)]

  def stack(path: str, parts: list[Piece | None]) -> Inputs | Outputs:
    parts = modules.last(path, parts)
    if len({p.feedforward for p in parts}) > 1:
      raise Unsupported(
        f'expected factors of the inputs of {path}, or of its outputs, in all layers, found both; '
        'merge such an adapter where it was made, and load the merged model')
    x = np.stack([p.factors for p in parts])
    factors = jnp.array(x if path.startswith('layers/') else x[0])
    return Inputs(factors) if parts[0].feedforward else Outputs(factors)

  pieces = modules.by_module(saved.tensors, r'(ia3_l)(?:\.default)?', 'ia3_l')
  return modules.lay(pieces, modules.projections(base), base, heads, part=part, stack=stack)


def save(nodes: dict[str, Inputs | Outputs], base: Tree, heads: int) -> Written:
  """Fields and tensors of the factors.

  Raises:
    Unsupported: a fused projection of which some inputs alone are scaled.
  """
  those, leaves = modules.projections(base), trees.flat(base)

  def cut(path: str, node: Inputs | Outputs) -> Piece:
    del path
    inputs = isinstance(node, Inputs)
    return Piece(node.inputs if inputs else node.outputs, inputs)

  def fuse(parts: dict[str, Piece], tensor: Tensor) -> Piece:
    if not any(p.feedforward for p in parts.values()):
      ones = lambda path: Piece(np.ones(leaves[path].shape[-1], np.float32), False)
      x = [parts.get(path, ones(path)).factors for path in tensor.ours]
      return Piece(modules.join(x, tensor, heads), False)
    first = next(iter(parts.values()))
    if len(parts) < 3 or not all(
        p.feedforward and np.array_equal(p.factors, first.factors) for p in parts.values()):
      raise Unsupported(
        f'expected the inputs of queries, keys and values scaled alike, for they are one module of '
        f'the base, {tensor.theirs}, found them otherwise; merge it into the base and save that: '
        'pretrained.save')
    return first

  pieces = modules.lift(nodes, those, base, heads, cut=cut, fuse=fuse)
  every = modules.every(those, base)
  return {
    'peft_type': 'IA3',
    'target_modules': config.targets(pieces, every),
    'feedforward_modules': config.targets((n for n, p in pieces.items() if p.feedforward), every),
    'fan_in_fan_out': naming.convention(leaves).matrix == 'same',
  }, {f'{name}.ia3_l': p.factors[None] if p.feedforward else p.factors[:, None]
      for name, p in pieces.items()}
