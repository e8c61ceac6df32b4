"""Saved bases: dense or quantized, and dense ones that are quantized while they are read."""

import os

import flax.serialization
import jax
from jax.sharding import Mesh

from perl import paths, trees
from perl.quantization import quantizable, quantize, quantize_tree
from perl.quantized import Scheme, scheme_of
from perl.train import sharding, storage
from perl.train.layout import MismatchError
from perl.types import Tree


def save(folder: str | os.PathLike, params: Tree, meta: dict) -> None:
  """Writes the base as it is; of a quantized one codes and scales, and the scheme in the meta.

  Raises:
    DiskFullError, TypeError, ValueError: see storage.save_tree.
  """
  if (scheme := scheme_of(params)) is not None:
    meta = {**meta, 'quantized': scheme._asdict()}
  storage.save_tree(folder, flax.serialization.to_state_dict(params), meta)


def read_scheme(folder: str | os.PathLike) -> Scheme | None:
  """How a saved base is quantized; None is not at all, or nothing is there."""
  folder = paths.absolute(folder)
  meta = storage.read_about(folder)['meta'] if (folder / storage.FILES).exists() else {}
  return Scheme(**meta['quantized']) if meta.get('quantized') else None


def load(
  folder: str | os.PathLike, like: Tree, *, scheme: Scheme | None = None, mesh: Mesh | None = None
) -> tuple[Tree, dict]:
  """(base, meta) of `save`.

  A dense base is read leaf by leaf where it shall be quantized: beside the result there is one
  dense leaf (of all layers) at a time, on the host and on the devices.

  Args:
    folder: of the tree.
    like: the dense base by shapes.
    scheme: quantizes a dense base; None takes it as it is.
    mesh: where it is sharded; None puts it on the first device.

  Raises:
    MismatchError: it is quantized otherwise, or its leaves are not `like`'s.
    FileNotFoundError, CorruptError: see storage.load_tree.
  """
  places = lambda tree: None if mesh is None else sharding.base_shardings(tree, mesh)
  saved = read_scheme(folder)
  if saved is not None and scheme not in (None, saved):
    raise MismatchError(
      f'expected a dense base, or one quantized as {scheme.tag}, in {folder}, found {saved.tag}; '
      "set model.quantize='' to take it as it is, or load the dense base that it was made of")
  if saved is not None:
    shapes, plain = quantize_tree(like, saved, like=True), flax.serialization.to_state_dict
    tree, meta = storage.load_tree(folder, like=plain(shapes), shardings=plain(places(shapes)))
    return flax.serialization.from_state_dict(shapes, tree), meta
  if scheme is None:
    return storage.load_tree(folder, like=like, shardings=places(like))
  spots = trees.flat(places(quantize_tree(like, scheme, like=True)))

  def encode(name: str, x: jax.Array) -> Tree:
    if not quantizable(name):
      return x
    kernel = quantize(x, scheme)
    return jax.block_until_ready(sharding.place(kernel, spots[name]) if spots else kernel)

  return storage.load_tree(folder, like=like, shardings=places(like), change=encode)
