"""Modules of a published model, a layer at a time, and our parameters: stacked, nothing fused.

All formats of PEFT but the prompts' name modules. `lay` brings what they say of each into our tree,
`lift` takes it out; what that is (a *piece*) is the format's own affair.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from perl import trees
from perl.hub import naming, tensors
from perl.hub.config_json import Unsupported
from perl.hub.naming import Tensor
from perl.peft.methods.lntuning import is_norm
from perl.types import Tree


def projections(base: Tree) -> list[Tensor]:
  """The published matrices that an adapter can lie beside."""
  return [t for t in naming.tensors(trees.flat(base)) if t.ours[0].endswith('/kernel')]


def norms(base: Tree) -> list[Tensor]:
  """The published scales and biases of norms."""
  return [t for t in naming.tensors(trees.flat(base)) if is_norm(t.ours[0])]


def name(tensor: Tensor) -> str:
  """'model.layers.{}.self_attn.q_proj'; the unembedding has one name in all of PEFT."""
  plain = tensor.theirs.removesuffix('.weight')
  return 'lm_head' if plain == 'embed_out' else plain


def names(tensor: Tensor, base: Tree) -> list[str]:
  """Its name, or that of each layer."""
  return tensor._replace(theirs=name(tensor)).names(trees.flat(base))


def every(those: Sequence[Tensor], base: Tree) -> dict[str, list[str]]:
  """{module without its layer: its full names}."""
  return {name(t): names(t, base) for t in those}


def by_module(
  arrays: dict[str, np.ndarray], pattern: str, expected: str
) -> dict[str, dict[str, np.ndarray]]:
  """{module: {field: tensor}} of the tensors of a file.

  Args:
    arrays: by name; 'base_model.model.' before it, and the adapter's name in it, may be missing.
    pattern: a regular expression for what follows the module, with one group: the field.
    expected: what such tensors are called, for the error.

  Raises:
    Unsupported: a tensor of another name.
  """
  whole = re.compile(rf'(?:base_model\.model\.)?(.*)\.{pattern}')
  out: dict[str, dict[str, np.ndarray]] = {}
  for full, x in arrays.items():
    match = whole.fullmatch(full)
    if match is None:
      raise Unsupported(
        f'expected tensors called {expected} or score, found {full}; that part of PEFT is not '
        'supported here')
    out.setdefault(match[1], {})[match[2]] = x
  return out


def drop_copies(arrays: dict[str, np.ndarray], base: Tree) -> None:
  """Takes out what PEFT saves of the base itself, beside adapters of the (un)embedding.

  Raises:
    Unsupported: it is not the base's (the vocabulary was extended, or trained).
  """
  leaves = trees.flat(base)
  for tensor in naming.tensors(leaves):
    known = tensor.theirs.replace('embed_out.', 'lm_head.')
    for full in [n for n in arrays if n.replace('.base_layer.', '.').endswith(f'model.{known}')]:
      copy, own = arrays.pop(full), leaves[tensor.ours[0]]
      if isinstance(own, jax.ShapeDtypeStruct):
        continue
      own = np.asarray(tensor.join((own,), 1), np.float32)
      if own.shape != copy.shape or not np.allclose(own, copy, rtol=1e-2, atol=1e-6):
        raise Unsupported(
          f'expected {full} to be the base\'s own, found another: an adapter with an extended or '
          'trained vocabulary is not supported; merge it where it was made, and load that model')


# --- Fused projections


def columns(tensor: Tensor, base: Tree) -> int:
  """How many the published matrix has: those of ours side by side."""
  leaves = trees.flat(base)
  return sum(leaves[path].shape[-1] for path in tensor.ours)


def split(x: np.ndarray, tensor: Tensor, heads: int) -> list[np.ndarray]:
  """x f[r, O] or f[O] of a fused projection -> its columns of queries, keys and values."""
  if len(tensor.ours) == 1:
    return [x]
  if x.shape[-1] % (3 * max(heads, 1)):
    raise tensors.CorruptTensors(
      f'expected B of {tensor.theirs} with rows for {heads} heads, found {x.shape[-1]}; the '
      'adapter is of another base')
  published = x if tensor.form == 'columns' else x.T  # as the base has it
  return [np.asarray(part) for part in tensor.split(published, heads)]


def join(parts: Sequence[np.ndarray], tensor: Tensor, heads: int) -> np.ndarray:
  """The inverse of `split`."""
  if len(tensor.ours) == 1:
    return parts[0]
  joined = np.asarray(tensor.join(tuple(parts), heads))
  return joined if tensor.form == 'columns' else joined.T


def check_heads(tensor: Tensor, heads: int) -> None:
  """Raises ValueError where queries, keys and values are fused by head, and `heads` is 0."""
  if tensor.form == 'heads' and not heads:
    raise ValueError(
      f'expected the number of heads, for {tensor.theirs} holds queries, keys and values by head; '
      'found none, pass heads=model.config.heads')


def check_size(size: int, expected: int, what: str) -> None:
  """Raises CorruptTensors where a vector of a file has another length than the base asks for."""
  if size != expected:
    raise tensors.CorruptTensors(
      f'expected {expected} numbers of {what}, found {size}; it is of another base')


# --- In and out


def lay(
  pieces: dict[str, Any], those: Sequence[Tensor], base: Tree, heads: int, *,
  part: Callable[[Any, Tensor], Sequence[Any]], stack: Callable[[str, list[Any]], Any],
) -> Tree:
  """The tree of the stacked adapters of these modules over a base (shapes suffice).

  Args:
    pieces: by module.
    those: tensors that they may be of.
    base: ours.
    heads: as in hub.adapters.load.
    part: a module's piece -> one for each of our parameters.
    stack: (path of ours, the pieces of its layers, None where there is none) -> the adapter; one
      piece where there is no layer.

  Raises:
    CorruptTensors: a module that the base does not have.
  """
  left, out = dict(pieces), {}
  for tensor in those:
    layers = [_take(left, known) for known in names(tensor, base)]
    if all(piece is None for piece in layers):
      continue
    check_heads(tensor, heads)
    parts = [None if piece is None else part(piece, tensor) for piece in layers]
    for k, path in enumerate(tensor.ours):
      out[path] = stack(path, [p if p is None else p[k] for p in parts])
  if left or not out:
    there = sorted(map(name, those))
    raise tensors.CorruptTensors(
      f'expected an adapter of modules that this base has ({", ".join(there)}), found '
      f'{next(iter(left), "none at all")}; it is of another architecture or depth: load its base')
  return trees.nest(out)


def _take(pieces: dict[str, Any], full: str) -> Any:
  """The module's piece, under its name with or without the root; it is taken out."""
  old = 'embed_out' if full == 'lm_head' else full
  for known in (full, old, full.partition('.')[2]):
    if known in pieces:
      return pieces.pop(known)
  return None


def last(path: str, parts: list[Any]) -> list[Any]:
  """The pieces of a parameter that has them in every layer, or in the last ones alone.

  Raises:
    Unsupported: a layer between has none; unlike LoRA's zeros, what stood there would learn.
  """
  first = next(i for i, piece in enumerate(parts) if piece is not None)
  missing = [i for i, piece in enumerate(parts) if piece is None and i > first]
  if missing:
    raise Unsupported(
      f'expected an adapter of {path} in every layer, or in the last ones alone, found none in '
      f'layer {missing[0]}; merge it where it was made, and load the merged model')
  return parts[first:]


def lift(
  nodes: dict[str, Any], those: Sequence[Tensor], base: Tree, heads: int, *,
  cut: Callable[[str, Any], Any], fuse: Callable[[dict[str, Any], Tensor], Any],
) -> dict[str, Any]:
  """{published module: its piece}, layer by layer, of adapters by path: the inverse of `lay`.

  Args:
    nodes, those, base, heads: as in `lay`; a node may be of the last layers alone.
    cut: (path, the adapter of one layer, in numpy) -> its piece; None leaves it out.
    fuse: the pieces of a fused module, by path -> the module's.

  Raises:
    Unsupported: an adapter of something that the base lacks.
  """
  left, leaves, out = dict(nodes), trees.flat(base), {}
  for tensor in those:
    own = {path: left.pop(path) for path in tensor.ours if path in left}
    if not own:
      continue
    check_heads(tensor, heads)
    own = {path: jax.tree.map(np.asarray, node) for path, node in own.items()}
    depth = leaves[tensor.ours[0]].shape[0]
    for i, full in enumerate(names(tensor, base)):
      there = own
      if tensor.by_layer:
        there = {path: _layer(node, i - depth) for path, node in own.items()}
      parts = {path: cut(path, node) for path, node in there.items() if node is not None}
      parts = {path: piece for path, piece in parts.items() if piece is not None}
      if parts:
        out[full] = fuse(parts, tensor) if len(tensor.ours) > 1 else parts[tensor.ours[0]]
  if left:
    raise Unsupported(
      f'expected adapters of this base\'s projections, found one at {next(iter(left))}; '
      'load the base that it was trained on')
  return out


def _layer(node: Any, from_end: int) -> Any:
  """Layer `from_end`, -1 the last; None where the adapter begins above it."""
  if len(jax.tree.leaves(node)[0]) < -from_end:
    return None
  return jax.tree.map(lambda x: x[from_end], node)
