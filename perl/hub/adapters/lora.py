"""LoRA and DoRA: PEFT's LORA. What is a LoRA by another name is written as one.

rsLoRA, LoRA+ and LoRA-FA are; AdaLoRA and PiSSA (of rank 2 r, as PEFT itself converts it) by
their `to_lora`.
"""

from collections import Counter
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from perl import trees
from perl.hub import naming, tensors
from perl.hub.adapters import _config as config_file
from perl.hub.adapters import _modules as modules
from perl.hub.adapters._config import LoraConfig, Saved, Written
from perl.hub.config_json import Unsupported
from perl.hub.naming import Tensor
from perl.peft.methods.adalora import AdaLoRA
from perl.peft.methods.dora import DoRA
from perl.peft.methods.lora import LoRA
from perl.peft.methods.pissa import PiSSA
from perl.types import Tree

NODES = (LoRA, DoRA, PiSSA, AdaLoRA)


class Piece(NamedTuple):
  """LoRA or DoRA of one published module in one layer."""

  a: np.ndarray  # f32[I, r]
  b: np.ndarray  # f32[r, O]
  scale: float
  m: np.ndarray | None = None  # f32[O], DoRA's

  @property
  def size(self) -> int:
    """How many numbers are trained."""
    return self.a.size + self.b.size + (0 if self.m is None else self.m.size)


# --- Reading


def load(saved: Saved, base: Tree, heads: int) -> Tree:
  """The tree of stacked LoRA, or DoRA."""
  config = config_file.lora(saved.about, saved.file)
  leaves = trees.flat(base)
  return modules.lay(
    from_tensors(saved.tensors, config), modules.projections(base), base, heads,
    part=lambda piece, tensor: _split(piece, tensor, heads),
    stack=lambda path, parts: _stack(path, parts, leaves[path].shape, config))


def inspect(saved: Saved) -> dict[str, dict[str, Any]]:
  """{module: {rank, scale, parameters}}."""
  sides = {name: x for name, x in saved.tensors.items() if '.lora_' in name}
  return {name: {'rank': p.a.shape[1], 'scale': p.scale, 'parameters': p.size}
          for name, p in from_tensors(sides, config_file.lora(saved.about, saved.file)).items()}


def from_tensors(arrays: dict[str, np.ndarray], config: LoraConfig) -> dict[str, Piece]:
  """{module: its LoRA} of the tensors, with the rank and alpha that the config gives it.

  Raises:
    Unsupported: a tensor that is no side of a LoRA, or a DoRA without its lengths.
    CorruptTensors: a side is missing, or of another rank.
  """
  pattern, expected = r'lora_(A|B)\.(?:default\.)?weight', 'lora_A, lora_B'
  if config.dora:
    pattern = r'lora_(A|B|magnitude_vector)(?:\.default)?(?:\.weight)?'
    expected = 'lora_A, lora_B, lora_magnitude_vector'
  pieces, named = {}, modules.by_module(arrays, pattern, expected)
  for module, (rank, scale) in config.of(named).items():
    sides = named[module]
    m = sides.pop('magnitude_vector', None)
    shapes = {side: x.shape for side, x in sides.items()}
    whole = all(len(shape) == 2 for shape in shapes.values()) and set(shapes) == {'A', 'B'}
    if not whole or shapes['A'][0] != rank or shapes['B'][1] != rank:
      raise tensors.CorruptTensors(
        f'expected A [{rank}, I] and B [O, {rank}] of {module}, found '
        f'{ {side: list(shape) for side, shape in sorted(shapes.items())} }; the tensors do '
        f'not fit {config.where}')
    if config.dora:
      _check_magnitude(module, m, shapes['B'][0], config.where)
    pieces[module] = Piece(sides['A'].T, sides['B'].T, scale, m)
  return pieces


def _check_magnitude(module: str, m: np.ndarray | None, columns: int, where: str) -> None:
  if m is None:
    raise Unsupported(
      f'expected lora_magnitude_vector of {module}, for use_dora is true in {where}, found none; '
      'that is not supported: merge such an adapter where it was made, and load the merged model')
  if m.shape != (columns,):
    raise tensors.CorruptTensors(
      f'expected lora_magnitude_vector [{columns}] of {module}, found {list(m.shape)}; the tensors '
      'do not fit one another')


def _split(piece: Piece, tensor: Tensor, heads: int) -> list[Piece]:
  """One piece for each of our parameters; those of a fused projection share A."""
  b = modules.split(piece.b, tensor, heads)
  m = [None] * len(b) if piece.m is None else modules.split(piece.m, tensor, heads)
  return [piece._replace(b=x, m=y) for x, y in zip(b, m)]


def _stack(path: str, parts: list[Piece | None], shape, config: LoraConfig) -> LoRA | DoRA:
  """[L, ...] of the layers' pieces; of a LoRA zeros where there is none, which never learn."""
  if config.dora:
    parts = modules.last(path, parts)
  *_, rows, columns = shape
  rank = max(p.a.shape[1] for p in parts if p is not None)
  a = np.zeros((len(parts), rows, rank), np.float32)
  b = np.zeros((len(parts), rank, columns), np.float32)
  scale = np.full(len(parts), config.default_scale, np.float32)
  for i, piece in enumerate(parts):
    if piece is None:
      continue
    if piece.a.shape[0] != rows or piece.b.shape[1] != columns:
      raise tensors.CorruptTensors(
        f'expected an adapter of {path.removesuffix("/kernel")}, {rows} x {columns}, found one of '
        f'{piece.a.shape[0]} x {piece.b.shape[1]}; it is of another base')
    r = piece.a.shape[1]
    a[i, :, :r], b[i, :r], scale[i] = piece.a, piece.b, piece.scale
  by_layer = path.startswith('layers/')
  pick = (lambda x: jnp.array(x)) if by_layer else (lambda x: jnp.array(x[0]))
  fields = dict(a=pick(a), b=pick(b), scale=pick(scale), dropout=config.dropout)
  if config.dora:
    return DoRA(m=pick(np.stack([p.m for p in parts])), **fields)
  return LoRA(**fields)


# --- Writing


def save(nodes: dict[str, Any], base: Tree, heads: int, *, uniform: bool = False) -> Written:
  """Fields and tensors; `uniform` as in hub.adapters.save, raises as `disassemble`."""
  pieces = disassemble(nodes, base, heads)
  if uniform:
    pieces = _uniform(pieces)
  lengths = {f'{name}.lora_magnitude_vector': p.m for name, p in pieces.items() if p.m is not None}
  about = config_file.describe(
    {name: (piece.a.shape[1], piece.scale) for name, piece in pieces.items()},
    every=modules.every(modules.projections(base), base),
    dropout=next((node.dropout for node in nodes.values()), 0.0), dora=bool(lengths),
    fan_in_fan_out=naming.convention(trees.flat(base)).matrix == 'same')
  return about, lengths | {f'{name}.lora_{side}.weight': x for name, piece in pieces.items()
                           for side, x in (('A', piece.a.T), ('B', piece.b.T))}


def disassemble(nodes: dict[str, Any], base: Tree, heads: int) -> dict[str, Piece]:
  """{published module: its LoRA or DoRA}, layer by layer; what does nothing is left out.

  Raises:
    Unsupported: LoRA and DoRA in one tree, or an adapter of something that the base lacks.
  """
  leaves = trees.flat(base)
  nodes = {path: node if isinstance(node, (LoRA, DoRA)) else node.to_lora(leaves.get(path))
           for path, node in nodes.items()}
  if len({isinstance(node, DoRA) for node in nodes.values()}) > 1:
    raise Unsupported(
      'expected LoRA alone or DoRA alone, which is one flag of PEFT\'s format, found both in one '
      'tree; merge it into the base and save that: pretrained.save')

  def cut(path: str, node: LoRA | DoRA) -> Piece | None:
    del path
    piece = _trim(Piece(node.a, node.b, float(node.scale), getattr(node, 'm', None)))
    return piece if piece.a.shape[1] else None

  return modules.lift(
    nodes, modules.projections(base), base, heads, cut=cut,
    fuse=lambda parts, tensor: _fuse(parts, tensor, leaves, heads))


def _trim(piece: Piece) -> Piece:
  """Without the last components that are zero in A and in B: they never learn."""
  used = np.flatnonzero(np.any(piece.a != 0, 0) | np.any(piece.b != 0, 1))
  rank = used[-1] + 1 if used.size else int(piece.m is not None)
  return piece._replace(a=piece.a[:, :rank], b=piece.b[:rank])


def _fuse(parts: dict[str, Piece], tensor: Tensor, leaves, heads: int) -> Piece:
  """Queries, keys and values side by side: W + sum of s A B of each, in one product."""
  pieces = [parts.get(path) for path in tensor.ours]
  there = [p for p in pieces if p is not None]
  alike = len(there) == 3 and len({p.scale for p in there}) == 1 and all(
    np.array_equal(p.a, there[0].a) for p in there)
  scale = there[0].scale if len({p.scale for p in there}) == 1 else 1.0
  rank = there[0].a.shape[1] if alike else sum(p.a.shape[1] for p in there)
  blocks, start = [], 0
  for path, piece in zip(tensor.ours, pieces):
    block = np.zeros((rank, leaves[path].shape[-1]), np.float32)
    if piece is not None:
      rows = slice(0, rank) if alike else slice(start, start + piece.a.shape[1])
      block[rows] = piece.b * (1.0 if scale == piece.scale else piece.scale)
      start = rows.stop
    blocks.append(block)
  a = there[0].a if alike else np.concatenate([p.a for p in there], 1)
  return Piece(a, modules.join(blocks, tensor, heads), scale, _fused_lengths(pieces, tensor, heads))


def _fused_lengths(pieces: list[Piece | None], tensor: Tensor, heads: int) -> np.ndarray | None:
  lengths = [None if p is None else p.m for p in pieces]
  if all(m is None for m in lengths):
    return None
  if any(m is None for m in lengths):
    raise Unsupported(
      f'expected DoRA of queries, keys and values alike, which are one module of the base, '
      f'{tensor.theirs}, found some of them; merge it into the base and save that: pretrained.save')
  return modules.join(lengths, tensor, heads)


def _uniform(pieces: dict[str, Piece]) -> dict[str, Piece]:
  """The same functions with the largest rank and the commonest scale."""
  if not pieces:
    return pieces
  rank = max(p.a.shape[1] for p in pieces.values())
  scale = Counter(p.scale for p in pieces.values()).most_common(1)[0][0]
  widen = lambda x, axis: np.pad(
    x, [(0, rank - n if i == axis else 0) for i, n in enumerate(x.shape)])
  scaled = lambda p: p.b if p.scale == scale else p.b * np.float32(p.scale / scale)
  return {name: Piece(widen(p.a, 1), widen(scaled(p), 0), scale, p.m)
          for name, p in pieces.items()}
