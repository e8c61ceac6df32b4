"""The door for adapters: LoRA in PEFT's file format (github.com/huggingface/peft), in and out.

`adapter_config.json` and `adapter_model.safetensors`, as PEFT and vLLM read them. Its address is in
a wing, but it stands above them: it looks into models (names, tensors), and no wing may import it.

A module of ours is stacked over layers, with one rank: a layer of lower rank, or one that PEFT does
not adapt, has zeros in A and in B, which get no gradient and stay. A fused projection (GPT-2,
NeoX) is three of ours: read, they share A; written, their ranks add up.
"""

import json
import logging
import os
import pathlib
import re
from typing import Any

import jax.numpy as jnp
import numpy as np

from perl import trees
from perl.models import naming, tensors, writing
from perl.peft.interop import config as config_file
from perl.peft.interop import pieces
from perl.types import Tree

WEIGHTS = 'adapter_model.safetensors'
CONFIG = 'adapter_config.json'
OWN = 'perl.json'
"""What PEFT has no place for: the digest of the base, and the bias of the head."""

_PREFIX = 'base_model.model.'
_SCORE = f'{_PREFIX}score.weight'
_HEAD = re.compile(r'(^|\.)score\.(modules_to_save\.)?weight$')


def load(
  folder: str | os.PathLike, base: Tree, *, heads: int = 0, base_digest: str = ''
) -> Tree:
  """An adapter in PEFT's format, over our base; it can be trained on.

  Args:
    folder: holds adapter_config.json and adapter_model.safetensors.
    base: what it was trained over (shapes suffice).
    heads: of queries (config.heads); needed where the three projections are fused by head (NeoX).
    base_digest: the base's, compared with that of an adapter which was saved here.

  Returns:
    a tree of LoRA beside the base's kernels, float32, with a 'head' where the file has a score.

  Raises:
    FileNotFoundError: no such files (a pickle in their place is named).
    tensors.CorruptTensors: a file cut short, or a shape that the base does not have.
    Unsupported: a method or an option of PEFT that is not known, by name.
  """
  folder = pathlib.Path(folder).expanduser()
  config = config_file.read(folder / CONFIG)
  entries = tensors.find(folder, WEIGHTS)
  own = _own(folder)
  if base_digest and own.get('base_digest', base_digest) != base_digest:
    raise tensors.CorruptTensors(
      f'expected an adapter over the base with digest {base_digest[:12]}, found one over '
      f'{own["base_digest"][:12]} in {folder}; load the base that it was trained on'
    )
  found = {name: tensors.read(name, entry).astype(np.float32) for name, entry in entries.items()}
  if bad := [name for name, x in found.items() if not np.isfinite(x).all()]:
    logging.warning('expected finite weights in %s, found NaN or infinity in %s', folder, bad[0])
  head = _read_head(found, own, base)
  pieces.drop_copies(found, base)
  adapter = pieces.assemble(pieces.from_tensors(found, config), base, heads, config)
  return adapter if head is None else {**adapter, 'head': head}


def save(
  folder: str | os.PathLike, adapter: Tree, base: Tree, *, heads: int = 0, base_name: str = '',
  base_digest: str = '', uniform: bool = False,
) -> None:
  """Writes an adapter as PEFT would; a head makes it one for sequence classification.

  Args:
    folder: new or empty; it holds all or nothing.
    adapter: a tree of LoRA, perhaps with a 'head' that reads the last hidden state.
    base: what it lies over (shapes suffice).
    heads: as in `load`.
    base_name: base_model_name_or_path, where PEFT and vLLM find the base.
    base_digest: kept in perl.json, to be compared when it is loaded here.
    uniform: one rank and one scale for all modules, by padding with zeros and scaling B: for
      servers that read neither rank_pattern nor alpha_pattern (vLLM).

  Raises:
    Unsupported: another method than LoRA, or a head that transformers cannot have.
    FileExistsError: the folder holds something.
  """
  head = adapter.get('head')
  if head is not None:
    writing.check_head(head)
  found = pieces.disassemble(adapter, base, heads)
  if uniform:
    found = pieces.uniform(found)
  about = config_file.describe(
    {name: (piece.a.shape[1], piece.scale) for name, piece in found.items()},
    every=pieces.every_module(base), dropout=pieces.dropout(adapter), base_name=base_name,
    head=head is not None, fan_in_fan_out=naming.convention(trees.flat(base)).matrix == 'same',
  )
  arrays = {f'{_PREFIX}{name}.lora_{side}.weight': x
            for name, piece in found.items() for side, x in (('A', piece.a.T), ('B', piece.b.T))}
  own = {'base_digest': base_digest} if base_digest else {}
  if head is not None:
    arrays[_SCORE] = np.asarray(head['kernel'], np.float32).T
    own['head_bias'] = float(head['bias'][0])

  def write(new: pathlib.Path) -> None:
    (new / CONFIG).write_text(json.dumps(about, indent=2) + '\n')
    if own:
      (new / OWN).write_text(json.dumps(own, indent=2) + '\n')
    sources = [tensors.Source(n, np.dtype(np.float32), x.shape, lambda x=x: x)
               for n, x in sorted(arrays.items())]
    for _ in tensors.write(new, sources, 2**62, WEIGHTS):
      pass

  writing.into_folder(folder, write)


def inspect(folder: str | os.PathLike) -> tuple[dict[str, dict[str, Any]], int | None]:
  """({module: {rank, scale, parameters}}, parameters of the head or None) of an adapter's folder.

  Raises:
    FileNotFoundError, CorruptTensors, Unsupported: as `load`.
  """
  folder = pathlib.Path(folder).expanduser()
  config, entries = config_file.read(folder / CONFIG), tensors.find(folder, WEIGHTS)
  head = [np.prod(e.shape) for name, e in entries.items() if _HEAD.search(name)]
  shape = lambda entry: np.broadcast_to(np.float32(0), entry.shape)  # nothing is read
  found = {n: shape(e) for n, e in entries.items() if '.lora_' in n}
  modules = {
    name: {'rank': p.a.shape[1], 'scale': p.scale, 'parameters': p.a.size + p.b.size}
    for name, p in pieces.from_tensors(found, config).items()
  }
  return modules, int(sum(head)) if head else None


def _own(folder: pathlib.Path) -> dict[str, Any]:
  return json.loads((folder / OWN).read_text('utf-8')) if (folder / OWN).is_file() else {}


def _read_head(found: dict[str, np.ndarray], own: dict, base: Tree) -> Tree | None:
  """Takes the score out of what was found."""
  names = [name for name in found if _HEAD.search(name)]
  if not names:
    return None
  kernel, width = found.pop(names[0]), trees.flat(base)['final_norm/scale'].shape[-1]
  if kernel.shape != (1, width):
    raise tensors.CorruptTensors(
      f'expected {names[0]} of shape {[1, width]}, one label over this base, found '
      f'{list(kernel.shape)}; it is of another base, or no reward model'
    )
  bias = jnp.asarray([own.get('head_bias', 0.0)], jnp.float32)
  return {'kernel': jnp.array(kernel.T), 'bias': bias}
