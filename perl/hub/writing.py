"""Our base tree into a published folder: config.json and safetensors, a tensor at a time."""

import errno
import functools
import logging
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from perl import paths, trees
from perl.data.text.tokenizer import Tokenizer
from perl.hub import families, naming, published, shards, tensors
from perl.hub.config_json import Unsupported
from perl.hub.naming import Tensor
from perl.hub.reading import SCORE, renaming
from perl.models import lm
from perl.models.config import RUN_FIELDS, Config, differences
from perl.products import dense
from perl.types import Tree


def config_json(config: Config, source: str, *, head: bool, dtype: np.dtype) -> dict[str, Any]:
  """The config.json of a model, with what the source's says beside the mathematics.

  Args:
    config: the model's.
    source: the folder or GGUF file it was read from, whose family and other fields are kept; ''
      for none.
    head: it is a model for sequence classification, with one label.
    dtype: of the weights.

  Raises:
    Unsupported: no family has these options, or the source is of another model.
  """
  theirs = published.config_json(paths.of(source)) if source else {}
  if theirs and 'text_config' not in theirs:
    run = {name: getattr(config, name) for name in RUN_FIELDS}
    apart = differences(config, families.parse(theirs, **run))
    if apart not in ([], ['tied: True, False']):  # a classifier lacks the unembedding
      raise Unsupported(
        f'expected {source} to be of the same model, found other options ({"; ".join(apart)}); '
        'give the folder that the base was read from')
    written, family = dict(theirs), families.find(theirs['model_type'])
  else:
    written = families.describe(config, theirs.get('model_type', ''))
    family = families.find(written['model_type'])
  written.pop('dtype', None)
  written['torch_dtype'] = dtype.name
  kind = 'ForSequenceClassification' if head else getattr(family, 'CAUSAL', 'ForCausalLM')
  written['architectures'] = [family.ARCHITECTURE + kind]
  if head:
    written |= {'num_labels': 1, 'id2label': {'0': 'LABEL_0'}, 'label2id': {'LABEL_0': 0}}
  return written


def sources(
  base: Tree, heads: int, names: dict[str, tensors.Entry], dtype: np.dtype | None, head: Tree | None
) -> list[shards.Source]:
  """Every tensor that is to be written, in order.

  Args:
    base: our tree.
    heads: of queries.
    names: the tensors of the source: each is written in the dtype that it has there.
    dtype: of all tensors, in place of the source's or the base's own.
    head: a reward head, written as `score.weight`.
  """
  leaves = trees.flat(base)
  wanted = naming.tensors(leaves)
  way = renaming(names, wanted) if names else lambda name: name
  result = []
  for tensor in wanted:
    parts, shape = [leaves[path] for path in tensor.ours], tensor.shape(leaves, heads)
    for i, name in enumerate(tensor.names(leaves)):
      entry = names.get(way(name))
      kept = tensors.DTYPES[entry.dtype] if entry else np.dtype(parts[0].dtype)
      kind = np.dtype(dtype or kept)
      make = functools.partial(_fetch, parts, tensor, i, heads, kind)
      result.append(shards.Source(name, kind, shape, make))
  if head is not None:
    kernel = np.asarray(head['kernel'], np.float32).T
    kind = np.dtype(dtype or leaves['final_norm/scale'].dtype)
    result.append(shards.Source(SCORE, kind, kernel.shape, lambda: kernel.astype(kind)))
  return result


def _fetch(parts, tensor: Tensor, i: int, heads: int, dtype: np.dtype) -> np.ndarray:
  """The whole tensor on every host, wherever its shards lie."""
  first = jax.tree.leaves(parts[0])[0]
  place = first.sharding if isinstance(first, jax.Array) else None
  whole = NamedSharding(place.mesh, P()) if isinstance(place, NamedSharding) else None
  x = _joined(tensor, heads, whole)(i, *parts)
  return np.asarray(x.addressable_data(0) if whole is not None else x).astype(dtype)


@functools.lru_cache(maxsize=64)
def _joined(tensor: Tensor, heads: int, place):
  def join(i, *parts):
    picked = parts
    if tensor.by_layer:
      picked = jax.tree.map(
        lambda p: jax.lax.dynamic_index_in_dim(p, i, 0, keepdims=False), parts)
    return tensor.join(tuple(map(dense, picked)), heads)

  return jax.jit(join, out_shardings=place)


def check_head(head: Tree) -> None:
  """Requires a head that transformers can have; warns of a bias, which it has no place for.

  Raises:
    Unsupported: it reads more than the last hidden state.
  """
  if reads := lm.head_reads(head):
    raise Unsupported(
      f'expected a head that reads the last hidden state alone, found one that reads '
      f'{", ".join(reads)} too, which transformers has no place for; train it with '
      '--config.reward.reads="()"')
  if float(jnp.abs(head['bias']).max()) > 0:
    logging.warning(
      'the head has a bias of %.4g, and score.weight has none: scores of transformers will be '
      'lower by it; comparisons of scores are the same', float(head['bias'][0]))


def padding_apart(tokenizer: Tokenizer, rows: int) -> Tokenizer:
  """`Tokenizer.padding_apart` of a reward model's tokenizer; warns where there is no such pad."""
  apart = tokenizer.padding_apart(rows)
  if 'pad_token' not in apart.special_tokens:
    logging.warning(
      'the vocabulary has no token to pad a reward model with but those that end a response, which '
      'transformers would read its scores before: none is written, and transformers will score '
      'rows one by one')
  return apart


def special_ids(tokenizer: Tokenizer | None, about: dict[str, Any]) -> dict[str, Any]:
  """bos, eos and pad ids, which config.json holds too."""
  if tokenizer is not None:
    return tokenizer.special_ids(about)
  return {name: about.get(name) for name in ('bos_token_id', 'eos_token_id', 'pad_token_id')}


def check_new(folder: str | os.PathLike) -> epath.Path:
  """The folder, absolute.

  Raises:
    FileExistsError: it holds something.
  """
  folder = paths.absolute(folder)
  if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
    raise FileExistsError(
      f'expected a new or empty folder, found {folder} with something in it; name another one, or '
      'remove it')
  return folder


def into_folder(folder: str | os.PathLike, write: Callable[[epath.Path], None]) -> None:
  """Runs write(a new folder), which becomes `folder` when it is whole, or nothing at all.

  Raises:
    FileExistsError: the folder holds something.
    OSError: among others, no space was left; what had been written is removed.
  """
  folder = check_new(folder)
  new = folder.parent / f'{folder.name}.new'
  new.rmtree(missing_ok=True)
  new.mkdir(parents=True)
  try:
    write(new)
    if folder.exists():
      folder.rmdir()
    new.rename(folder)
  except OSError as error:
    if error.errno == errno.ENOSPC:
      raise OSError(
        errno.ENOSPC, f'expected room for the checkpoint in {folder.parent}, found its device full;'
        ' free space there, or name another folder') from error
    raise
  finally:
    new.rmtree(missing_ok=True)


def save_tensors(
  folder: epath.Path, what: list[shards.Source], shard_bytes: int, progress: bool
) -> None:
  """Writes the shards, with a bar where it takes seconds."""
  total = sum(source.bytes for source in what)
  with tensors.bar(total, 'writing', progress) as bar:
    for done in shards.write(folder, what, shard_bytes):
      bar.update(done)
