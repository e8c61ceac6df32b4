"""VeRA: PEFT's VERA. One pair A [r, I], B [O, r] for all modules, cut to the size of each.

Here the pair of a module is what its adapter holds, or draws. What are cuts of one pair are written
as it is; several pairs lie side by side in one of their summed rank, and d is 0 in the others'.
"""

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
from perl.peft.methods.vera import VeRA
from perl.types import Tree

NODES = (VeRA,)

_PAIR = ('base_model.vera_A', 'base_model.vera_B')
_READ = ('vera_dropout', 'd_initial', 'init_weights', 'projection_prng_key')


class Piece(NamedTuple):
  """VeRA of one published module in one layer."""

  d: np.ndarray  # f32[r]
  scale: np.ndarray  # f32[O], b
  a: np.ndarray  # f32[I, r]
  b: np.ndarray  # f32[r, O]


def load(saved: Saved, base: Tree, heads: int) -> Tree:
  """The tree of stacked VeRA, each with its cut of the pair."""
  config.check(saved.about, saved.file, {
    'r': config.RANK.fits,
    # Without it the pair is what torch's generator draws from projection_prng_key.
    'save_projection': lambda x: x in (None, True),
  }, read=_READ)
  arrays = {name.removesuffix('.default'): x for name, x in saved.tensors.items()}
  rank, pair = saved.about['r'], [arrays.pop(name, None) for name in _PAIR]
  if any(x is None or x.ndim != 2 for x in pair) or (
      not len(pair[0]) == pair[1].shape[1] == rank):
    raise tensors.CorruptTensors(
      f'expected {_PAIR[0]} [{rank}, I] and {_PAIR[1]} [O, {rank}] in {saved.file.parent}, found '
      f'{[None if x is None else list(x.shape) for x in pair]}; save it again')
  leaves, dropout = trees.flat(base), float(saved.about.get('vera_dropout') or 0.0)

  def part(piece: dict[str, np.ndarray], tensor: Tensor) -> list[Piece]:
    rows, columns = leaves[tensor.ours[0]].shape[-2], modules.columns(tensor, base)
    for field, size in (('d', rank), ('b', columns)):
      modules.check_size(piece.get(field, np.zeros(0)).size, size, f'vera_lambda_{field}')
    if pair[0].shape[1] < rows or len(pair[1]) < columns:
      raise tensors.CorruptTensors(
        f'expected a pair for {rows} x {columns} of {tensor.theirs}, found one for '
        f'{pair[0].shape[1]} x {len(pair[1])}; it is of another base')
    a, b = pair[0][:, :rows].T, pair[1][:columns].T
    return [Piece(piece['d'], *cut, a, wide) for *cut, wide in zip(
      modules.split(piece['b'], tensor, heads), modules.split(b, tensor, heads))]

  def stack(path: str, parts: list[Piece | None]) -> VeRA:
    d, scale, a, b = (np.stack(x) for x in zip(*modules.last(path, parts)))
    pick = lambda x: jnp.array(x if path.startswith('layers/') else x[0])
    return VeRA(d=pick(d), b=pick(scale), shared_a=pick(a), shared_b=pick(b), dropout=dropout)

  pieces = modules.by_module(arrays, r'vera_lambda_(b|d)(?:\.default)?', 'vera_lambda_b, _d')
  return modules.lay(pieces, modules.projections(base), base, heads, part=part, stack=stack)


def save(nodes: dict[str, VeRA], base: Tree, heads: int) -> Written:
  """Fields and tensors of the adapters and their pair.

  Raises:
    Unsupported: a fused projection whose parts have a d each.
  """
  those, leaves = modules.projections(base), trees.flat(base)
  pieces = modules.lift(
    {path: _with_pair(node, leaves[path].shape) for path, node in nodes.items() if path in leaves},
    those, base, heads, cut=lambda path, node: Piece(node.d, node.b, node.shared_a, node.shared_b),
    fuse=lambda parts, tensor: _fuse(parts, tensor, heads))
  pairs, owner = _pairs(pieces)
  starts = np.cumsum([0, *(a.shape[1] for a, _ in pairs)])
  arrays = dict(zip(_PAIR, _side_by_side(pairs)))
  for name, piece in pieces.items():
    d = np.zeros(starts[-1], np.float32)
    d[starts[owner[name]]:starts[owner[name] + 1]] = piece.d
    arrays |= {f'{name}.vera_lambda_d': d, f'{name}.vera_lambda_b': piece.scale}
  return {
    'peft_type': 'VERA', 'r': int(starts[-1]), 'save_projection': True, 'bias': 'none',
    'vera_dropout': next(iter(nodes.values())).dropout, 'projection_prng_key': 0,
    'target_modules': config.targets(pieces, modules.every(those, base)),
    'fan_in_fan_out': naming.convention(leaves).matrix == 'same',
  }, arrays


def _with_pair(node: VeRA, shape: tuple[int, ...]) -> VeRA:
  """Its pair written out, [L, ...] by views of one."""
  lead = node.d.shape[:-1]
  wide = [np.broadcast_to(np.asarray(x), (*lead, *x.shape[-2:]))
          if x.ndim == 2 else np.asarray(x) for x in node.pair(shape[-2])]
  return node.replace(shared_a=wide[0], shared_b=wide[1])


def _fuse(parts: dict[str, Piece], tensor: Tensor, heads: int) -> Piece:
  pieces = [parts.get(path) for path in tensor.ours]
  first = pieces[0]
  if any(p is None or not np.array_equal(p.d, first.d) or not np.array_equal(p.a, first.a)
         for p in pieces):
    raise Unsupported(
      f'expected VeRA of queries, keys and values with one d, for they are one module of the base, '
      f'{tensor.theirs}, found several, or only some of the three; merge it into the base and save '
      'that: pretrained.save')
  wide = [modules.join([getattr(p, field) for p in pieces], tensor, heads)
          for field in ('scale', 'b')]
  return Piece(first.d, wide[0], first.a, wide[1])


def _pairs(
  pieces: dict[str, Piece]
) -> tuple[list[tuple[np.ndarray, np.ndarray]], dict[str, int]]:
  """(the pairs that all are cuts of, {module: which})."""
  pairs: list[tuple[np.ndarray, np.ndarray]] = []
  owner = {}
  for name, piece in pieces.items():
    for i, (a, b) in enumerate(pairs):
      if len(piece.d) == a.shape[1] and _agree(a, piece.a) and _agree(b.T, piece.b.T):
        pairs[i] = max(a, piece.a, key=len), max(b.T, piece.b.T, key=len).T
        owner[name] = i
        break
    else:
      owner[name] = len(pairs)
      pairs.append((piece.a, piece.b))
  return pairs, owner


def _agree(x: np.ndarray, y: np.ndarray) -> bool:
  """Whether one begins as the other is."""
  rows = min(len(x), len(y))
  return np.array_equal(x[:rows], y[:rows])


def _side_by_side(pairs: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
  """(A f32[R, I], B f32[O, R]) of all pairs, of the largest I and O."""
  rows, columns = max(len(a) for a, _ in pairs), max(b.shape[1] for _, b in pairs)
  widen = lambda x, to: np.pad(x, ((0, 0), (0, to - x.shape[1])))
  return (np.concatenate([widen(a.T, rows) for a, _ in pairs]),
          np.concatenate([widen(b, columns) for _, b in pairs]).T)
