"""Adapters as a tree beside the base: make, merge, unmerge, head, stack, count, split."""

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from perl import trees
from perl.options import taken
from perl.peft.protocol import COMMON, Kind, check_options, classes, fixed_of, is_adapter, kernels
from perl.peft.protocol import find as find
from perl.products import dense
from perl.types import HEAD_READS, Tree


def projections(base: Tree) -> list[str]:
  """The paths of the matrices that a pattern can name: 'layers/block/attn/q', ..."""
  return [n.removesuffix('/kernel') for n in trees.flat(base) if n.endswith('/kernel')]


def init(
  key: jax.Array,
  base: Tree,
  method: str,
  *,
  targets: Sequence[str] = ('attn/(q|k|v|o)',),
  head: bool = False,
  reads: Sequence[str] = (),
  top_layers: int = 0,
  **options,
) -> Tree:
  """A fresh adapter: the base's function exactly (for methods that can), plus a head if asked.

  Args:
    key: typed PRNG key.
    base: the frozen parameters (their shapes suffice for methods that do not copy them).
    method: a file of perl/peft/methods.
    targets: patterns over `projections(base)`; methods that have places of their own ignore them.
    head: add a reward or value head.
    reads: what else the head reads of a response, of HEAD_READS; see models.lm.score.
    top_layers: adapt the last so many layers alone; 0: the method's own choice, mostly all.
    **options: the methods' own (rank, alpha, ...); those that this one does not take are ignored.

  Returns:
    a tree of the base's nesting that holds an adapter object at each adapted parameter.

  Raises:
    ValueError: a pattern matches nothing, nothing would be trained, an option that no method has.
  """
  check_options(options)
  module, leaves = find(method), trees.flat(base)
  top = _top(module, leaves, top_layers)
  known = {**options, 'targets': targets, 'top_layers': top}
  places = _places(module, leaves, targets, options)
  keys = dict(zip(places, jax.random.split(jax.random.fold_in(key, 0), max(len(places), 1))))
  adapter = trees.nest({
    name: _make(module, keys[name], source, leaves, known)
    for name, source in places.items()})
  if head:
    width = leaves['final_norm/scale'].shape[-1]
    adapter['head'] = init_head(jax.random.fold_in(key, 1), width, reads=reads)
  if trees.count(split(adapter)[0]) == 0:
    raise ValueError(
      f'expected something to train, found no trainable leaf for {method!r} with targets {targets};'
      f' what can be matched: {", ".join(projections(base))}')
  return adapter


def _places(module: ModuleType, leaves: dict, targets: Sequence[str], options: Mapping) -> dict:
  if not leaves:
    return {}
  if hasattr(module, 'places'):
    return module.places(leaves, targets, **taken(module.places, options))
  return {name: name for name in kernels(leaves, targets)}


def _top(module: ModuleType, leaves: Mapping[str, Any], count: int) -> int:
  """How many of the last layers are adapted; 0: all."""
  layers = next((x.shape[0] for n, x in leaves.items() if n.startswith('layers/')), 0)
  if count > layers > 0:
    raise ValueError(f'expected at most {layers} layers of this model, found {count}; lower '
                     'config.peft.top_layers')
  chosen = count or getattr(module, 'top', lambda layers: 0)(layers)
  return 0 if chosen == layers else chosen


def _make(
  module: ModuleType, key: jax.Array, source: Any, leaves: Mapping[str, Any],
  known: Mapping[str, Any],
) -> Any:
  """One adapter, of the parameter or parameters at `source`."""
  options = taken(module.init, {**known, 'path': source})
  if not isinstance(source, str):
    return module.init(key, {name: leaves[name] for name in source}, **options)
  weight = leaves[source]
  if source.startswith('layers/'):
    weight = _last(weight, known['top_layers'])
  return module.init(key, weight, **options)


def _last(weight: Any, layers: int) -> Any:
  """The last so many of a stack; 0: all."""
  if not layers:
    return weight
  if isinstance(weight, jax.ShapeDtypeStruct):
    return jax.ShapeDtypeStruct((layers, *weight.shape[1:]), weight.dtype)
  return jax.tree.map(lambda x: x[-layers:], weight)


def optimizer(
  method: str, tx: optax.GradientTransformation, *, steps: int, **options
) -> optax.GradientTransformation:
  """The optimizer of a method that trains otherwise than by `tx`; else `tx`.

  Args:
    method: a file of perl/peft/methods.
    tx: an optax chain.
    steps: T, of the whole training.
    **options: as in `init`.

  Raises:
    ValueError: an option that no method has.
  """
  check_options({name: value for name, value in options.items() if name not in COMMON})
  wrap = getattr(find(method), 'optimizer', None)
  return tx if wrap is None else wrap(tx, **taken(wrap, {**options, 'steps': steps}))


def init_head(key: jax.Array, width: int, *, reads: Sequence[str] = ()) -> Tree:
  """A scalar head: kernel normal with std 1 / sqrt(D + 1), bias 0 (Stiennon et al. 2020).

  Weights of the `reads` are 0 at init.

  Raises:
    ValueError: something to read that is not in HEAD_READS.
  """
  if unknown := [name for name in reads if name not in HEAD_READS]:
    raise ValueError(f'expected a head to read some of {HEAD_READS}, found {unknown[0]!r}')
  kernel = jax.random.normal(key, (width, 1), jnp.float32) / np.sqrt(width + 1)
  head = {'kernel': kernel, 'bias': jnp.zeros((1,), jnp.float32)}
  weights = dict(zip(HEAD_READS, (2 * width, 2 * width, 4)))
  return head | {name: jnp.zeros((weights[name],), jnp.float32) for name in reads}


def rebuild(tree: Tree, method: str, options: Mapping[str, Any]) -> Tree:
  """The adapter of a saved tree, flax.serialization.to_state_dict's: nested dicts of arrays.

  Args:
    tree: as it was read.
    method: the file of perl/peft/methods that made it.
    options: holds the method's static fields (dropout); others are passed over.
  """
  kinds = [Kind.of(c, options) for c in classes(find(method))]

  def visit(node: Any) -> Any:
    if not isinstance(node, dict):
      return node
    for kind in kinds:
      if set(node) == kind.arrays:
        return kind.make(**node, **kind.static)
    return {name: visit(child) for name, child in node.items()}

  return visit(tree)


def nodes(adapter: Tree) -> dict[str, Any]:
  """{path of the parameter: the adapter object beside it}; a head is none."""
  places = jax.tree_util.tree_leaves_with_path(
    {k: v for k, v in adapter.items() if k != 'head'}, is_leaf=is_adapter)
  return {trees.path_string(path): node for path, node in places}


def split(adapter: Tree) -> tuple[Tree, Tree]:
  """(what is trained, what is fixed data such as LoRA's scale); trees.combine is the inverse."""
  fixed = [f'{path}/{field}' for path, node in nodes(adapter).items() for field in fixed_of(node)]
  names, folders = set(fixed), tuple(f'{name}/' for name in fixed)
  return trees.partition(adapter, lambda name: name not in names and not name.startswith(folders))


def merge(base: Tree, adapter: Tree) -> Tree:
  """The base with every adapter folded in, computed in float32, in the base's dtypes.

  A quantized kernel under an adapter becomes a dense one: nothing is quantized again.
  A head stays with the adapter: it has no place in the base.
  """
  return _fold(base, adapter, 'merge')


def unmerge(merged: Tree, adapter: Tree) -> Tree:
  """The inverse of `merge`, up to rounding, for methods that have one.

  Raises:
    ValueError: the method cannot be taken out again (full tuning forgets the base).
  """
  return _fold(merged, adapter, 'unmerge')


def swap(merged: Tree, old: Tree, new: Tree) -> Tree:
  """Merged weights with another adapter in place of the one that is in them, up to rounding.

  (Without merging nothing has to be done: the adapter is an argument of every compiled program.)

  Raises:
    ValueError: the old one cannot be taken out, or the new one not be merged.
  """
  return merge(unmerge(merged, old), new)


def mergeable(base: Tree, adapter: Tree) -> bool:
  """Whether every adapter of the tree can be folded into the base; both may be shapes."""
  can: list[bool] = []

  def look(base: Tree, adapter: Tree) -> None:
    whole = nodes(trees.spread(base, adapter)).values()
    can.extend(hasattr(part, 'merge') for node in whole for part in parts_of(node))

  jax.eval_shape(look, base, adapter)
  return all(can)


def _fold(base: Tree, adapter: Tree, how: str) -> Tree:
  deltas = nodes(trees.spread(base, adapter))
  leaves = trees.flat(base)
  for name, delta in deltas.items():
    parts = parts_of(delta)
    for part in parts if how == 'merge' else reversed(parts):
      _check_foldable(name, part, leaves, how)
      leaves[name] = _folded(name, getattr(part, how), leaves[name], part)
      bias = f'{name.removesuffix("/kernel")}/bias'
      if bias in leaves and hasattr(part, f'{how}_bias'):
        leaves[bias] = _folded(bias, getattr(part, f'{how}_bias'), leaves[bias], part)
  return trees.nest(leaves)


def parts_of(node: Any) -> Sequence[Any]:
  """An adapter, or those that lie one over the other, from the lowest."""
  return getattr(node, 'parts', (node,))


def _check_foldable(name: str, delta: Any, leaves: Mapping[str, Any], how: str) -> None:
  if not hasattr(delta, 'merge'):
    raise ValueError(
      f'expected adapters that can be folded into the base, found {type(delta).__name__} at '
      f'{name}, for which the base has no place; keep the adapter apart: model.apply takes both')
  if not hasattr(delta, how):
    raise ValueError(
      'expected a method that can be taken out of merged weights, found '
      f'{type(delta).__name__}; load the base again')
  if name not in leaves:
    raise ValueError(
      f'expected an adapter made for this base, found {name!r}, which the base lacks; '
      'load the base that the adapter was trained on')


def _folded(name: str, fold: Any, leaf: Any, delta: Any) -> jax.Array:
  """fold(leaf) in float32, of the last layers alone where the adapter has no others."""
  weight = dense(leaf.astype(jnp.float32))
  first = 0
  if name.startswith('layers/'):
    first = len(weight) - len(jax.tree.leaves(delta)[0])
  folded = fold(weight[first:]) if first else fold(weight)
  return (jnp.concatenate([weight[:first], folded]) if first else folded).astype(leaf.dtype)


def stack(adapters: list[Tree]) -> Tree:
  """N adapters of one structure -> one with a leading axis of n, to be mapped with jax.vmap.

  Raises:
    ValueError: the structures or shapes differ.
  """
  shapes = [jax.tree.map(jnp.shape, a) for a in adapters]
  if any(s != shapes[0] for s in shapes[1:]):
    raise ValueError(
      'expected adapters of one structure and one set of shapes, found several; '
      'stack runs of the same method, targets and (largest) rank')
  return trees.stack(adapters)


def members(adapter: Tree) -> int:
  """How many adapters with a head are stacked here; 0 where it is one, or has no head."""
  kernel = adapter.get('head', {}).get('kernel')
  return kernel.shape[0] if kernel is not None and kernel.ndim == 3 else 0


def count(adapter: Tree) -> int:
  """Trainable elements, the head's included."""
  return trees.count(split(adapter)[0])


def size_bytes(adapter: Tree) -> int:
  """Bytes of everything an adapter's checkpoint holds."""
  return trees.size_bytes(adapter)
