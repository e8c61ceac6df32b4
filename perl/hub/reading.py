"""A published folder into our base tree: tensor by tensor, straight to where each shard shall lie.

On the host there is one tensor, and the one being read after it; on the devices the tree itself and
one tensor of one layer. (On CPU the devices' memory is the host's.)
"""

import functools
import logging
import re
from collections.abc import Callable, Container, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, Sharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from perl import trees
from perl.hub import naming, tensors
from perl.hub.config_json import Unsupported
from perl.hub.naming import Tensor
from perl.hub.tensors import CorruptTensors, Entry
from perl.quantization import encoder
from perl.quantized import Quantized
from perl.types import Tree

SCORE = 'score.weight'
"""The head of a published model for sequence classification, [labels, D]."""

_IGNORED = re.compile(
  # Buffers of older releases: masks and frequencies, which are computed here.
  r'.*\.(attn|attention)\.(bias|masked_bias)|.*rotary_emb\.inv_freq')
_VISION = re.compile(r'(model\.)?(vision_tower|multi_modal_projector)\..*')


def renaming(names: Container[str], wanted: list[Tensor]) -> Callable[[str], str]:
  """How this file's names follow from a convention's: with all of them, or without a root.

  NeoX's unembedding has two names; the one that is there counts.

  Args:
    names: the tensors of the file.
    wanted: those of the convention.

  Raises:
    CorruptTensors: no embedding under any name.
  """
  embedding = next(t.theirs for t in wanted if 'embed/embedding' in t.ours)
  ways = (
    lambda name: name,
    lambda name: name.partition('.')[2] if '.' in name else name,  # saved without its head
    lambda name: f'language_model.{name}',  # the text model of one that sees (Gemma 3)
    lambda name: re.sub(r'^model\.', 'model.language_model.', name),
  )

  def known(name: str) -> str:
    other = name.replace('embed_out.', 'lm_head.')
    return other if name not in names and other in names else name

  for way in ways:
    if way(embedding) in names:
      return lambda name: known(way(name))
  raise CorruptTensors(
    f'expected a tensor {embedding}, found {", ".join(sorted(names)[:4]) or "none"}; '
    'config.json and the tensors are of different models')


def check(
  entries: dict[str, Entry], like: Tree, heads: int, *, tied: bool, vision: bool
) -> list[tuple[Tensor, list[str]]]:
  """[(published tensor, its name in this folder by layer)], if all are there with their shapes.

  Args:
    entries: the folder's.
    like: our base tree by shapes.
    heads: of queries; fused projections are laid out by head.
    tied: an unembedding beside the embedding may then be there, and must be the same.
    vision: the folder may hold a vision tower, which is passed over.

  Raises:
    CorruptTensors: a tensor is missing or has another shape.
    Unsupported: there are tensors that nobody reads, or a dtype that is not a weight's.
  """
  leaves = trees.flat(like)
  wanted = naming.tensors(leaves)
  way = renaming(entries, wanted)
  plan, used = [], set()
  for tensor in wanted:
    shape = tensor.shape(leaves, heads)
    names = [way(name) for name in tensor.names(leaves)]
    for name in names:
      _check_one(name, entries.get(name), shape)
    plan.append((tensor, names))
    used.update(names)
  _check_rest(entries, used, way, tied, vision)
  return plan


def _check_one(name: str, entry: Entry | None, shape: tuple[int, ...]) -> None:
  if entry is None:
    raise CorruptTensors(
      f'expected a tensor {name}, found none of that name; config.json and the tensors are of '
      'different models, or a shard is missing: fetch the checkpoint again')
  if entry.dtype not in tensors.DTYPES:
    raise Unsupported(
      f'expected {name} of dtype {", ".join(tensors.DTYPES)}, found {entry.dtype}; quantized '
      'checkpoints are not supported, use the one in bfloat16')
  if entry.shape != shape:
    raise CorruptTensors(
      f'expected {name} of shape {list(shape)}, found {list(entry.shape)} in {entry.file}; '
      'config.json and the tensors are of different models')


def _check_rest(entries, used, way, tied, vision) -> None:
  free = {way('lm_head.weight'), 'lm_head.weight', 'embed_out.weight'} & (set(entries) - used)
  if tied and free:
    _check_tied(entries, sorted(free)[0], used)
    used = used | free
  rest = [n for n in sorted(entries) if n not in used and n != SCORE and not _IGNORED.fullmatch(n)]
  rest = [n for n in rest if not (vision and _VISION.fullmatch(n))]
  if rest:
    more = f' and {len(rest) - 4} more' if len(rest) > 4 else ''
    raise Unsupported(
      f'expected only tensors that the model has, found also {", ".join(rest[:4])}{more}; that '
      'architecture is not supported, or config.json is of another model')


def _check_tied(entries: dict[str, Entry], name: str, used: set[str]) -> None:
  """An unembedding that is there although it is tied says the same, or the file is ambiguous."""
  embedding = next(n for n in used if re.search(r'(embed_tokens|wte|embed_in)\.weight$', n))
  one, other = (tensors.read(n, entries[n]) for n in (name, embedding))
  if one.shape != other.shape or not np.array_equal(one, other):
    raise CorruptTensors(
      f'expected {name} to be {embedding}, for config.json says tie_word_embeddings, found another '
      'tensor; set that field to false')


def fill(
  entries: dict[str, Entry], plan: list[tuple[Tensor, list[str]]], like: Tree, heads: int,
  shardings: Tree | None, progress: bool, blocks: Callable[[str, Entry], Quantized] | None = None,
) -> Tree:
  """The base tree, in the dtypes of `like`, on the devices of `shardings` (None: the first one).

  Weights that are not finite are named in a warning. `blocks` reads those that `like` has quantized
  as they lie; None quantizes what is read.
  """
  order = [(tensor, i, name) for tensor, names in plan for i, name in enumerate(names)]
  leaves = trees.flat(like)
  way = lambda tensor: blocks if blocks and isinstance(
    leaves[tensor.ours[0]], Quantized) else tensors.read
  steps = [(way(tensor), name, entries[name]) for tensor, _, name in order]
  total = sum(entry.bytes for _, _, entry in steps)
  return pour(zip(order, _ahead(steps)), like, heads, shardings, total, progress)


def pour(
  stream: Iterable[tuple[tuple[Tensor, int, str], np.ndarray | Quantized]], like: Tree, heads: int,
  shardings: Tree | None, total: int, progress: bool,
) -> Tree:
  """The base tree of a stream of ((tensor, layer, its name in a warning), published array).

  Args:
    stream: every parameter of `like` in one tensor, those by layer once a layer; a quantized one
      is in our layout, with the outputs of several parameters side by side.
    like: our base tree by shapes; its dtypes are the result's. Where it has a quantized kernel,
      each layer is quantized when it has come.
    heads: of queries.
    shardings: where it shall lie; None for the first device.
    total: bytes of the arrays, for the bar.
    progress: show one.
  """
  leaves = trees.flat(like)
  one = SingleDeviceSharding(jax.devices()[0])
  places = trees.flat(jax.tree.map(lambda _: one, like) if shardings is None else shardings)
  out, finite, lost = {}, [], []
  with tensors.bar(total, 'weights', progress) as bar:
    for (tensor, i, name), x in stream:
      if isinstance(x, Quantized):
        parts = _columns(x, len(tensor.ours))
        finite.append((name, _finite(x.scale)))
      else:
        placed = _place(x, _published(places[tensor.ours[0]], tensor))
        parts = _split(placed, tensor, heads)
        finite.append((name, _finite(placed)))
        del placed
      for path, part in zip(tensor.ours, parts):
        if isinstance(like := leaves[path], Quantized) and not isinstance(part, Quantized):
          dense, part = part, encoder(like.scheme, like.dtype)(part)
          lost.append(_lost(dense, part))
          del dense
        out[path] = _store(out.get(path), part, i, leaves[path], places[path], tensor.by_layer)
      del parts
      # Or the queue of what is to be done would fill the memory.
      jax.block_until_ready([finite[-1], *(out[path] for path in tensor.ours)])
      bar.update(sum(array.nbytes for array in jax.tree.leaves(x)))
  _warn_of(dict.fromkeys(name for name, ok in finite if not ok))
  _tell_of(lost)
  return trees.nest({path: out[path] for path in leaves})


def _warn_of(bad: Iterable[str]) -> None:
  if bad := list(bad):
    logging.warning(
      'expected finite weights, found NaN or infinity in %d tensors, first %s; the checkpoint is '
      'damaged, its outputs will be NaN', len(bad), ', '.join(bad[:4]))


@jax.jit
def _lost(dense: jax.Array, quantized: Quantized) -> jax.Array:
  """f32[2]: the sums of squares of what quantization takes away, and of the kernel."""
  dense = dense.astype(jnp.float32)
  apart = quantized.astype(jnp.float32).dequantize() - dense
  return jnp.stack([jnp.sum(jnp.square(apart)), jnp.sum(jnp.square(dense))])


def _tell_of(lost: list[jax.Array]) -> None:
  if lost:
    apart, whole = np.sum(np.asarray(lost, np.float64), 0)
    logging.info('quantized matrices are %.4f of their RMS away from the checkpoint\'s',
                 (apart / max(whole, 1e-30)) ** 0.5)


def _ahead(steps: list[tuple[Callable, str, Entry]]) -> Iterator[np.ndarray | Quantized]:
  """What is read, in order; the next while one is used."""
  with ThreadPoolExecutor(1) as pool:
    coming = pool.submit(*steps[0])
    for step in [*steps[1:], None]:
      x = coming.result()
      if step is not None:
        coming = pool.submit(*step)
      yield x


def _columns(x: Quantized, count: int) -> list[Quantized]:
  """The outputs of so many parameters, which lie side by side."""
  cut = lambda i: jax.tree.map(lambda array: np.split(array, count, -1)[i], x)
  return [cut(i) for i in range(count)]


def _published(place: Tree, tensor: Tensor) -> Sharding:
  """Where the published tensor lies, so that turning it into ours moves nothing between devices."""
  place = jax.tree.leaves(place)[0]  # of a quantized kernel, that of its codes
  if not isinstance(place, NamedSharding):
    return place
  spec = tuple(place.spec)[1 if tensor.by_layer else 0 :]
  if tensor.form == 'same':
    return NamedSharding(place.mesh, P(*spec))
  if tensor.form == 'transposed' and len(spec) == 2:
    return NamedSharding(place.mesh, P(*spec[::-1]))
  return NamedSharding(place.mesh, P())


def _place(x: np.ndarray, place: Sharding) -> jax.Array:
  return jax.make_array_from_callback(x.shape, place, lambda index: x[index])


# A program each: in one with anything else, XLA on CPU transposes at a third of the speed.


@functools.partial(jax.jit, static_argnums=(1, 2))
def _split(x: jax.Array, tensor: Tensor, heads: int) -> tuple[jax.Array, ...]:
  return tensor.split(x, heads)


@jax.jit
def _finite(x: jax.Array) -> jax.Array:
  return jnp.isfinite(jnp.max(jnp.abs(x)))


def _store(buffer, part, i: int, like, place: Tree, by_layer: bool) -> jax.Array | Quantized:
  if not by_layer:
    same = part.dtype == like.dtype and part.sharding == place
    return part if same else _cast(like.dtype, place)(part)
  if buffer is None:
    buffer = jax.tree.map(lambda x, p: _empty(x.shape, x.dtype, p)(), like, place)
  return jax.tree.map(lambda b, x, p: _update(p)(b, x, i), buffer, part, place)


@functools.lru_cache(maxsize=64)
def _cast(dtype, place):
  return jax.jit(lambda x: x.astype(dtype), out_shardings=place)


@functools.lru_cache(maxsize=64)
def _empty(shape, dtype, place):
  return jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=place)


@functools.lru_cache(maxsize=64)
def _update(place):
  def update(buffer, x, i):
    return jax.lax.dynamic_update_index_in_dim(buffer, x.astype(buffer.dtype), i, 0)

  return jax.jit(update, donate_argnums=0, out_shardings=place)
