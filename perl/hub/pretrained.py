"""The door for whole models: published folders, our own Orbax trees and Gemma's, in; folders, out.

No code of a checkpoint is ever run: config.json decides by name, weights are safetensors or Orbax.
"""

import functools
import json
import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh

from perl import documents, paths, trees
from perl.data.text import tokenizer as tokenizers
from perl.data.text import tokenizer_files
from perl.documents import OBJECT
from perl.hub import (
  gemma_orbax,
  gguf,
  published,
  reading,
  scored_token,
  shards,
  tensors,
  writing,
)
from perl.hub.config_json import Unsupported
from perl.models import config as configs
from perl.models import lm
from perl.models.config import Config
from perl.models.transformer import Transformer
from perl.quantization import quantize_tree
from perl.quantized import Scheme
from perl.train import bases, storage
from perl.types import Tree


def load(
  folder: str | os.PathLike, *, dtype: Any = None, mesh: Mesh | None = None,
  param_dtype: Any = None, config: Config | None = None, progress: bool = True,
  quantize: Scheme | None = None, **run: Any,
) -> tuple[Transformer, Tree, tokenizers.Tokenizer | None]:
  """(model, base, tokenizer or None) of a checkpoint.

  Args:
    folder: a Hugging Face folder (config.json, safetensors); a GGUF file; a pretrain stage of ours
      or the Orbax tree in it; or Gemma's own Orbax checkpoint.
    dtype: of the computation, and of the stored base unless param_dtype says otherwise; None is
      what the checkpoint has (of several, the widest).
    mesh: where the base is sharded; None puts it on the first device.
    param_dtype: of the stored base.
    config: the model's, for a Gemma Orbax checkpoint of a shape that was never published.
    progress: show a bar where it takes seconds, on a terminal.
    quantize: the layers' projections as they come: dense there is one of them at a time (of our
      own trees, one of all layers). A base that was saved quantized is read as it is. NATIVE takes
      the blocks of a GGUF file as they lie.
    **run: remat, scan_unroll.

  Raises:
    FileNotFoundError: nothing that can be read; names pickles that are there in its place.
    CorruptTensors: something is missing, cut short or of another shape.
    Unsupported: an architecture, field or tensor that is not known, by name.
    MismatchError: it was saved quantized otherwise.
  """
  folder = paths.of(folder)
  stored = jnp.dtype(param_dtype or dtype) if param_dtype or dtype else None
  compute = jnp.dtype(dtype).name if dtype else None
  if (own := _own_tree(folder)) is not None:
    model, base = _load_own(own, stored, compute, mesh, run, quantize)
  elif gemma_orbax.is_one(folder):
    options = dict(config=config, dtype=stored, progress=progress)
    config, place = gemma_orbax.plan(folder, **options)
    config = published.run_as(config, compute, run)
    model = Transformer(config)
    like = quantize_tree(lm.abstract(model), quantize, like=True)
    base = place(published.shardings(like, mesh), quantize)
  else:
    model, base = published.load(
      folder, stored, compute, mesh, progress, run, quantize)
  return model, base, load_tokenizer(folder)


def load_tokenizer(folder: str | os.PathLike) -> tokenizers.Tokenizer | None:
  """The tokenizer in a checkpoint's folder, or beside it if it is an Orbax tree; None if none."""
  folder = paths.of(folder)
  if gguf.is_one(folder):
    return gguf.tokenizer(folder)
  places = [folder]
  if _own_tree(folder) is not None:  # the stage's sibling
    places += [folder.parent / 'tokenizer', folder.parent.parent / 'tokenizer']
  elif gemma_orbax.is_one(folder):
    places += [folder.parent]
  for place in places:
    try:
      return tokenizers.load(place)
    except FileNotFoundError:
      continue
  return None


def read_config(folder: str | os.PathLike, **run: Any) -> Config:
  """The `Config` of a published folder or an own tree; no weights are read.

  Raises:
    FileNotFoundError, Unsupported: as `load`.
  """
  folder = paths.of(folder)
  if (own := _own_tree(folder)) is not None:
    return published.run_as(configs.from_dict(_about(own)['config']), None, run)
  if gemma_orbax.is_one(folder):
    return published.run_as(gemma_orbax.plan(folder)[0], None, run)
  return published.config(folder, run)


def load_head(folder: str | os.PathLike) -> Tree | None:
  """The scalar head {kernel f32[D, 1], bias f32[1]} of a published reward model; None without one.

  TRL's reward models are such: `...ForSequenceClassification` with one label. One that pads with
  its eos leaves that `unread` (scored_token.py).

  Raises:
    Unsupported: it has several labels.
  """
  folder = paths.of(folder)
  if _own_tree(folder) is not None or gemma_orbax.is_one(folder):
    return None
  entry = published.entries(folder).get(reading.SCORE)
  if entry is None:
    return None
  if entry.shape[0] != 1:
    raise Unsupported(
      f'expected a reward model with one label, found {entry.shape[0]} in {folder}; train one with '
      'num_labels=1')
  kernel = tensors.read(reading.SCORE, entry).astype(np.float32).T
  head = {'kernel': jnp.array(kernel), 'bias': jnp.zeros((1,), jnp.float32)}
  return scored_token.head(head, folder, '', tokenizer_files.stops(folder))


def stored_dtype(folder: str | os.PathLike) -> str:
  """The dtype of a checkpoint's weights; of several, the widest."""
  folder = paths.of(folder)
  if _own_tree(folder) is not None or gemma_orbax.is_one(folder):
    return read_config(folder).param_dtype
  kinds = {e.dtype for e in published.entries(folder).values()}
  return tensors.widest(tensors.DTYPES[kind] for kind in kinds & set(tensors.DTYPES)).name


def scheme(folder: str | os.PathLike) -> Scheme | None:
  """How a checkpoint is quantized already: only own trees may be; None is not at all."""
  own = _own_tree(paths.of(folder))
  return None if own is None else bases.read_scheme(own)


def native(file: str | os.PathLike) -> Scheme:
  """How a GGUF file has its layers' matrices quantized: what NATIVE stands for.

  Raises:
    Unsupported: not all alike, or not in blocks that we have.
  """
  return published.native(paths.of(file))


def digest(folder: str | os.PathLike) -> str:
  """What ties adapters to a checkpoint: sha256 over its tensors, however they are sharded.

  For an own tree that which it was saved with.
  """
  folder = paths.of(folder)
  if (own := _own_tree(folder)) is not None:
    return _about(own)['digest']
  if gemma_orbax.is_one(folder):
    return gemma_orbax.digest(folder)
  return tensors.digest(published.entries(folder))


def save(
  folder: str | os.PathLike, model: Transformer, base: Tree, *,
  tokenizer: tokenizers.Tokenizer | None = None, head: Tree | None = None,
  source: str | os.PathLike = '', dtype: Any = None, shard_bytes: int = 5 * 10**9,
  progress: bool = True,
) -> None:
  """Writes a Hugging Face folder: config.json, safetensors with their index, the tokenizer.

  Args:
    folder: new or empty; it holds all or nothing.
    model, base: what is written (merge an adapter before: adapters.merge).
    tokenizer: written beside it; what ends a response of it is what generation stops at, in
      config.json, generation_config.json and tokenizer_config.json.
    head: a scalar head: makes it a model for sequence classification (a reward model), padded with
      a token that ends no response (Tokenizer.padding_apart).
    source: the folder or GGUF file that the base was read from: its family, its other fields, and
      the dtype of each tensor are kept, so that load and save give the same bytes.
    dtype: of all tensors, in place of theirs.
    shard_bytes: the most that a file holds.
    progress: show a bar where it takes seconds, on a terminal.

  Raises:
    Unsupported: no published family has these options; the head reads more than transformers' can.
    FileExistsError: the folder holds something.
  """
  if head is not None:
    writing.check_head(head)
  source = paths.of(source) if source else None
  names = published.entries(source) if source else {}
  kind = jnp.dtype(dtype or base['final_norm']['scale'].dtype)
  about = writing.config_json(
    model.config, str(source or ''), head=head is not None, dtype=kind)
  if head is not None and tokenizer is not None:
    tokenizer = writing.padding_apart(tokenizer, model.config.vocab_size)
  about |= writing.special_ids(tokenizer, about)
  what = writing.sources(
    base, model.config.heads, names, jnp.dtype(dtype) if dtype else None, head)

  def write(new: epath.Path) -> None:
    (new / 'config.json').write_text(json.dumps(about, indent=2) + '\n')
    file = source / 'generation_config.json' if source else None
    generation = file.read_bytes() if file and file.is_file() else None
    if tokenizer is not None:
      tokenizer.publish(new, generation and documents.parse(
        generation, source / 'generation_config.json', OBJECT))
    elif generation is not None:
      (new / file.name).write_bytes(generation)
    writing.save_tensors(new, what, shard_bytes, progress)

  storage.on_first_host(lambda: writing.into_folder(folder, write))


def publish(
  source: str | os.PathLike, folder: str | os.PathLike, *, dtype: Any = None,
  beside: Mapping[str, bytes] | None = None, shard_bytes: int = 5 * 10**9, progress: bool = True,
) -> None:
  """Writes a published checkpoint, a GGUF file above all, as a Hugging Face folder.

  A tensor at a time, each as it is published: the digest of the folder is the source's.

  Args:
    source: a Hugging Face folder or a GGUF file.
    folder: new or empty; it holds all or nothing.
    dtype: of all tensors, in place of theirs.
    beside: {name: content} of other files for the folder.
    shard_bytes, progress: as for `save`.

  Raises:
    FileExistsError: the folder holds something.
    CorruptTensors, Unsupported: as `load`.
  """
  source = paths.of(source)
  _, entries, plan = published.checked(source)
  kind = lambda entry: jnp.dtype(dtype) if dtype else tensors.DTYPES[entry.dtype]
  what = [
    shards.Source(name, kind(entry), entry.shape, functools.partial(tensors.read, name, entry))
    for name, entry in ((name, entries[name]) for _, names in plan for name in names)]
  about = published.config_json(source)
  about['torch_dtype'] = tensors.widest(one.dtype for one in what).name
  tokenizer = load_tokenizer(source)

  def write(new: epath.Path) -> None:
    (new / 'config.json').write_text(json.dumps(about, indent=2) + '\n')
    for name, content in (beside or {}).items():
      (new / name).write_bytes(content)
    if tokenizer is not None:
      tokenizer.publish(new)
    writing.save_tensors(new, what, shard_bytes, progress)

  storage.on_first_host(lambda: writing.into_folder(folder, write))


# --- Our own trees


def _own_tree(folder: epath.Path) -> epath.Path | None:
  """The Orbax tree of a pretrain stage, given the stage's folder or the tree's own."""
  for place in (folder / 'base', folder):
    if (place / storage.FILES).is_file():
      return place
  return None


def _about(folder: epath.Path) -> dict:
  return storage.read_about(paths.absolute(folder))['meta']


def _load_own(folder, stored, compute, mesh, run, scheme) -> tuple[Transformer, Tree]:
  config = published.run_as(configs.from_dict(_about(folder)['config']), compute, run)
  base, _ = bases.load(folder, lm.abstract(Transformer(config)), scheme=scheme, mesh=mesh)
  if stored is not None and stored.name != config.param_dtype:
    base = trees.cast(base, stored)
    config = configs.replace(config, param_dtype=stored.name)
  return Transformer(config), jax.block_until_ready(base)
