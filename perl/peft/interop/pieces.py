"""LoRA of published modules, a layer at a time, and ours: stacked over layers, nothing fused."""

import re
from collections import Counter
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from perl import trees
from perl.models import naming, tensors
from perl.models.families.fields import Unsupported
from perl.models.naming import Tensor
from perl.peft import adapters
from perl.peft.interop.config import LoraConfig
from perl.peft.lora import LoRA
from perl.types import Tree


class Piece(NamedTuple):
  """LoRA of one published module in one layer."""

  a: np.ndarray  # f32[I, r]
  b: np.ndarray  # f32[r, O]
  scale: float


def drop_copies(found: dict[str, np.ndarray], base: Tree) -> None:
  """Takes out what PEFT saves of the base itself, beside adapters of the (un)embedding.

  Raises:
    Unsupported: it is not the base's (the vocabulary was extended, or trained).
  """
  leaves = trees.flat(base)
  for tensor in naming.tensors(leaves):
    known = tensor.theirs.replace('embed_out.', 'lm_head.')
    for name in [n for n in found if n.replace('.base_layer.', '.').endswith(f'model.{known}')]:
      copy, own = found.pop(name), leaves[tensor.ours[0]]
      if isinstance(own, jax.ShapeDtypeStruct):
        continue
      own = np.asarray(tensor.join((own,), 1), np.float32)
      if own.shape != copy.shape or not np.allclose(own, copy, rtol=1e-2, atol=1e-6):
        raise Unsupported(
          f'expected {name} to be the base\'s own, found another: an adapter with an extended or '
          'trained vocabulary is not supported; merge it where it was made, and load that model'
        )


def from_tensors(found: dict[str, np.ndarray], config: LoraConfig) -> dict[str, Piece]:
  """{module: its LoRA} of the tensors, with the rank and alpha that the config gives it.

  Raises:
    Unsupported: a tensor that is no side of a LoRA.
    CorruptTensors: a side is missing, or of another rank.
  """
  pattern = re.compile(r'(?:base_model\.model\.)?(.*)\.lora_(A|B)\.(?:default\.)?weight')
  sides: dict[str, dict[str, np.ndarray]] = {}
  for name, x in found.items():
    match = pattern.fullmatch(name)
    if match is None:
      raise Unsupported(
        f'expected tensors called lora_A, lora_B or score, found {name}; that part of PEFT is not '
        'supported here'
      )
    sides.setdefault(match[1], {})[match[2]] = x
  pieces = {}
  for module, pair in sides.items():
    rank = config.rank(module)
    if set(pair) != {'A', 'B'} or pair['A'].shape[0] != rank or pair['B'].shape[1] != rank:
      raise tensors.CorruptTensors(
        f'expected A [{rank}, I] and B [O, {rank}] of {module}, found '
        f'{ {side: list(x.shape) for side, x in sorted(pair.items())} }; the tensors do not fit '
        f'adapter_config.json'
      )
    pieces[module] = Piece(pair['A'].T, pair['B'].T, config.scale(module))
  return pieces


def assemble(pieces: dict[str, Piece], base: Tree, heads: int, config: LoraConfig) -> Tree:
  """The tree of stacked LoRA over a base (shapes suffice); `heads` as in interop.load.

  Raises:
    CorruptTensors: a module or a shape that the base does not have.
  """
  leaves, left = trees.flat(base), dict(pieces)
  out = {}
  for tensor in _projections(base):
    layers = [_take(left, name) for name in _modules(tensor, leaves)]
    if not any(layers):
      continue
    _check_heads(tensor, heads)
    split = [_split(piece, tensor, heads) for piece in layers]
    for k, path in enumerate(tensor.ours):
      parts = [parts[k] if parts else None for parts in split]
      out[path] = _stack(path, parts, leaves[path].shape, tensor.by_layer, config)
  if left or not out:
    names = sorted(_module(t) for t in _projections(base))
    raise tensors.CorruptTensors(
      f'expected an adapter of modules that this base has ({", ".join(names)}), found '
      f'{next(iter(left), "none at all")}; it is of another architecture or depth: load its base'
    )
  return trees.nest(out)


def _projections(base: Tree) -> list[Tensor]:
  """The published matrices that an adapter can lie beside."""
  return [t for t in naming.tensors(trees.flat(base)) if t.ours[0].endswith('/kernel')]


def _module(tensor: Tensor) -> str:
  """'model.layers.{}.self_attn.q_proj'; the unembedding has one name in all of PEFT."""
  name = tensor.theirs.removesuffix('.weight')
  return 'lm_head' if name == 'embed_out' else name


def _modules(tensor: Tensor, leaves: dict) -> list[str]:
  """Its name, or that of each layer."""
  return tensor._replace(theirs=_module(tensor)).names(leaves)


def _take(pieces: dict[str, Piece], name: str) -> Piece | None:
  """The module's piece, under its name with or without the root; it is taken out."""
  old = 'embed_out' if name == 'lm_head' else name
  for known in (name, old, name.partition('.')[2]):
    if known in pieces:
      return pieces.pop(known)
  return None


def _check_heads(tensor: Tensor, heads: int) -> None:
  if tensor.form == 'heads' and not heads:
    raise ValueError(
      f'expected the number of heads, for {tensor.theirs} holds queries, keys and values by head; '
      'found none, pass heads=model.config.heads'
    )


def _split(piece: Piece | None, tensor: Tensor, heads: int) -> list[Piece] | None:
  """One piece for each of our parameters; those of a fused projection share A."""
  if piece is None:
    return None
  if len(tensor.ours) == 1:
    return [piece]
  if piece.b.shape[1] % (3 * max(heads, 1)):
    raise tensors.CorruptTensors(
      f'expected B of {tensor.theirs} with rows for {heads} heads, found {piece.b.shape[1]}; the '
      'adapter is of another base'
    )
  published = piece.b if tensor.form == 'columns' else piece.b.T  # a matrix as the base has it
  return [Piece(piece.a, np.asarray(b), piece.scale) for b in tensor.split(published, heads)]


def _stack(path: str, parts: list[Piece | None], shape, by_layer: bool, config) -> LoRA:
  """[L, ...] of the layers' pieces, zeros where there is none."""
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
        f'{piece.a.shape[0]} x {piece.b.shape[1]}; it is of another base'
      )
    r = piece.a.shape[1]
    a[i, :, :r], b[i, :r], scale[i] = piece.a, piece.b, piece.scale
  pick = (lambda x: jnp.array(x)) if by_layer else (lambda x: jnp.array(x[0]))
  return LoRA(a=pick(a), b=pick(b), scale=pick(scale), dropout=config.dropout)


# --- Writing


def _adapted(adapter: Tree) -> dict[str, LoRA]:
  found = adapters.nodes(adapter)
  for path, node in found.items():
    if not isinstance(node, LoRA):
      raise Unsupported(
        f'expected LoRA adapters, found {type(node).__name__} at {path}, which PEFT\'s format has '
        'no place for; merge it into the base and save that: pretrained.save'
      )
  return found


def dropout(adapter: Tree) -> float:
  """Of the adapter's input."""
  return next((node.dropout for node in _adapted(adapter).values()), 0.0)


def every_module(base: Tree) -> dict[str, list[str]]:
  """{module without its layer: its full names}, for all projections of the base."""
  leaves = trees.flat(base)
  return {_module(t): _modules(t, leaves) for t in _projections(base)}


def disassemble(adapter: Tree, base: Tree, heads: int) -> dict[str, Piece]:
  """{published module: its LoRA}, layer by layer; what does nothing is left out.

  Raises:
    Unsupported: another method, or an adapter of something that the base lacks.
  """
  nodes, leaves, out = _adapted(adapter), trees.flat(base), {}
  for tensor in _projections(base):
    own = {path: nodes.pop(path) for path in tensor.ours if path in nodes}
    if not own:
      continue
    _check_heads(tensor, heads)
    own = {path: jax.tree.map(np.asarray, node) for path, node in own.items()}
    for i, name in enumerate(_modules(tensor, leaves)):
      pick = (lambda x, i=i: x[i]) if tensor.by_layer else (lambda x: x)
      parts = {path: _trim(Piece(pick(n.a), pick(n.b), float(pick(n.scale))))
               for path, n in own.items()}
      piece = _fuse(parts, tensor, leaves, heads) if len(tensor.ours) > 1 else parts[tensor.ours[0]]
      if piece.a.shape[1]:
        out[name] = piece
  if nodes:
    raise Unsupported(
      f'expected adapters of this base\'s projections, found one at {next(iter(nodes))}; '
      'load the base that it was trained on'
    )
  return out


def _trim(piece: Piece) -> Piece:
  """Without the last components that are zero in A and in B: they never learn."""
  used = np.flatnonzero(np.any(piece.a != 0, 0) | np.any(piece.b != 0, 1))
  rank = used[-1] + 1 if used.size else 0
  return Piece(piece.a[:, :rank], piece.b[:rank], piece.scale)


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
  joined = np.asarray(tensor.join(tuple(blocks), heads))
  return Piece(a, joined if tensor.form == 'columns' else joined.T, scale)


def uniform(pieces: dict[str, Piece]) -> dict[str, Piece]:
  """The same functions with the largest rank and the commonest scale."""
  if not pieces:
    return pieces
  rank = max(p.a.shape[1] for p in pieces.values())
  scale = Counter(p.scale for p in pieces.values()).most_common(1)[0][0]
  widen = lambda x, axis: np.pad(
    x, [(0, rank - n if i == axis else 0) for i, n in enumerate(x.shape)])
  scaled = lambda p: p.b if p.scale == scale else p.b * np.float32(p.scale / scale)
  return {name: Piece(widen(p.a, 1), widen(scaled(p), 0), scale) for name, p in pieces.items()}
