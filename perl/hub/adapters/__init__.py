"""The door for adapters: PEFT's file format (github.com/huggingface/peft), in and out.

`adapter_config.json` and `adapter_model.safetensors`, as PEFT and vLLM read them.

A module of ours is stacked over layers, with one rank: a layer of lower rank, or one that PEFT does
not adapt, has zeros in LoRA's A and B, which get no gradient and stay. A fused projection (GPT-2,
NeoX) is three of ours: read, they share A; written, their ranks add up.
"""

import json
import logging
import os
import re
from types import ModuleType
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath

from perl import documents, paths, trees
from perl.data.text.tokenizer import Tokenizer
from perl.documents import OBJECT, TEXT, Fields
from perl.hub import shards, tensors, writing
from perl.hub.adapters import _config as config_file
from perl.hub.adapters import _modules as modules
from perl.hub.adapters import ia3, ln_tuning, lora, prefix_tuning, prompt_tuning, vera
from perl.hub.config_json import Unsupported
from perl.peft import adapters
from perl.peft.methods.prefix import Reparametrised
from perl.types import Tree

WEIGHTS = 'adapter_model.safetensors'
CONFIG = config_file.CONFIG
OWN = 'perl.json'
"""What PEFT has no place for: the digest of the base, and the bias of the head."""

FORMATS: dict[str, ModuleType] = {
  'LORA': lora, 'VERA': vera, 'IA3': ia3, 'LN_TUNING': ln_tuning, 'PREFIX_TUNING': prefix_tuning,
  'PROMPT_TUNING': prompt_tuning,
}
"""PEFT's peft_type -> the file that reads and writes it, in which there are

  NODES                       the adapters that have a place in the format; where, says AT(path)
  load(saved, base, heads)    the tree of stacked adapters; raises as `load` below
  save(nodes, base, heads)    (fields of adapter_config.json, tensors) of adapters by path
"""

_PREFIX = 'base_model.model.'
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
    a tree of the method that the file is of, float32, with a 'head' where it has a score.

  Raises:
    FileNotFoundError: no such files (a pickle in their place is named).
    tensors.CorruptTensors: a file cut short, or a shape that the base does not have.
    Unsupported: a method or an option of PEFT that is not known, by name.
  """
  folder = paths.of(folder)
  about = config_file.parse(folder / CONFIG)
  entries = tensors.find(folder, WEIGHTS)
  own = _own(folder)
  digest = own.get('base_digest', TEXT, base_digest)
  if base_digest and digest != base_digest:
    raise tensors.CorruptTensors(
      f'expected an adapter over the base with digest {base_digest[:12]}, found one over '
      f'{digest[:12]!r} in {own.where}; load the base that it was trained on')
  arrays = {name: tensors.read(name, entry).astype(np.float32) for name, entry in entries.items()}
  if bad := [name for name, x in arrays.items() if not np.isfinite(x).all()]:
    logging.warning('expected finite weights in %s, found NaN or infinity in %s', folder, bad[0])
  with tensors.named(folder, Unsupported):
    head = _read_head(arrays, own, base)
    modules.drop_copies(arrays, base)
    form = FORMATS.get(about.get('peft_type'), lora)  # which refuses what is not known
    adapter = form.load(config_file.Saved(arrays, about, folder / CONFIG), base, heads)
  return adapter if head is None else {**adapter, 'head': head}


def save(
  folder: str | os.PathLike, adapter: Tree, base: Tree, *, heads: int = 0, base_name: str = '',
  base_digest: str = '', uniform: bool = False, tokenizer: Tokenizer | None = None,
) -> None:
  """Writes an adapter as PEFT would; a head makes it one for sequence classification.

  Args:
    folder: new or empty; it holds all or nothing.
    adapter: a tree of one method, perhaps with a 'head' that reads the last hidden state. What is
      LoRA by another name is written as LoRA (AdaLoRA, PiSSA, ...), a prefix that a network
      makes as what it makes.
    base: what it lies over (shapes suffice).
    heads: as in `load`.
    base_name: base_model_name_or_path, where PEFT and vLLM find the base.
    base_digest: kept in perl.json, to be compared when it is loaded here.
    uniform: one rank and one scale for all modules, by padding with zeros and scaling B: for
      servers that read neither rank_pattern nor alpha_pattern (vLLM); LoRA's alone.
    tokenizer: written beside it, with what ends a response: servers take it from there. With a
      head it pads with a token that ends none (Tokenizer.padding_apart), and who loads the base for
      sequence classification says so: pad_token_id=tokenizer.pad_token_id.

  Raises:
    Unsupported: a method that PEFT's format has no place for, several methods in one tree, or a
      head that transformers cannot have.
    FileExistsError: the folder holds something.
  """
  head = adapter.get('head')
  if head is not None:
    writing.check_head(head)
    if tokenizer is not None:
      tokenizer = writing.padding_apart(
        tokenizer, trees.flat(base)['embed/embedding'].shape[-2])
  form, nodes = _form(adapter, base)
  if uniform and form is not lora:
    raise Unsupported(
      f'expected LoRA for the uniform layout, whose readers know nothing else, found '
      f'{type(next(iter(nodes.values()))).__name__}; save it without uniform')
  fields, written = form.save(nodes, base, heads, **({'uniform': True} if uniform else {}))
  about = fields | {
    'task_type': 'CAUSAL_LM' if head is None else 'SEQ_CLS', 'inference_mode': True,
    'base_model_name_or_path': base_name or None,
    'modules_to_save': None if head is None else ['score'],
  }
  virtual = form in (prefix_tuning, prompt_tuning)  # which have no layers to put adapters into
  rooted = lambda name: name if virtual or name.startswith('base_model.') else f'{_PREFIX}{name}'
  arrays = {rooted(name): x for name, x in written.items()}
  own = {'base_digest': base_digest} if base_digest else {}
  if head is not None:
    score = 'base_model.score.weight' if virtual else f'{_PREFIX}score.weight'
    arrays[score] = np.asarray(head['kernel'], np.float32).T
    own['head_bias'] = float(head['bias'][0])

  def write(new: epath.Path) -> None:
    (new / CONFIG).write_text(json.dumps(about, indent=2) + '\n')
    if own:
      (new / OWN).write_text(json.dumps(own, indent=2) + '\n')
    if tokenizer is not None:
      tokenizer.publish(new)
    sources = [shards.Source(n, np.dtype(np.float32), x.shape, lambda x=x: x)
               for n, x in sorted(arrays.items())]
    for _ in shards.write(new, sources, 2**62, WEIGHTS):
      pass

  writing.into_folder(folder, write)


def inspect(folder: str | os.PathLike) -> tuple[dict[str, dict[str, Any]], int | None]:
  """({module: {parameters}}, parameters of the head or None) of an adapter's folder.

  LoRA's modules tell {rank, scale, parameters}.

  Raises:
    FileNotFoundError, CorruptTensors, Unsupported: as `load`.
  """
  folder = paths.of(folder)
  about, entries = config_file.parse(folder / CONFIG), tensors.find(folder, WEIGHTS)
  shape = lambda entry: np.broadcast_to(np.float32(0), entry.shape)  # nothing is read
  shapes = {name: shape(entry) for name, entry in entries.items()}
  head = [shapes.pop(name).size for name in list(shapes) if _HEAD.search(name)]
  if (kind := about.get('peft_type')) not in FORMATS or kind == 'LORA':
    with tensors.named(folder, Unsupported):
      own = lora.inspect(config_file.Saved(shapes, about, folder / CONFIG))
  else:
    own = {}
    for name, x in shapes.items():
      module = re.split(r'\.(?:vera_lambda|ia3_l|ln_tuning)', name.removeprefix(_PREFIX))[0]
      if not name.startswith('base_model.vera_'):  # the frozen pair
        own.setdefault(module, {'parameters': 0})['parameters'] += int(x.size)
  return own, int(sum(head)) if head else None


def _form(adapter: Tree, base: Tree) -> tuple[ModuleType, dict[str, Any]]:
  """(the format that has a place for all of the tree's adapters, those by path)."""
  rest = {name: node for name, node in adapter.items() if name != 'head'}
  if any(isinstance(node, Reparametrised) for node in rest.values()):
    rest = trees.spread(base, rest)
  nodes = adapters.nodes(rest)
  for path, node in nodes.items():
    if not any(_fits(form, path, node) for form in FORMATS.values()):
      remedy = 'merge it into the base and save that: pretrained.save'
      if not hasattr(node, 'merge') and not hasattr(node, 'spread'):
        remedy = 'the base has none either: keep it as its stage saved it'
      raise Unsupported(
        f'expected LoRA adapters or others of {", ".join(FORMATS)}, found {type(node).__name__} at '
        f'{path}, which PEFT\'s format has no place for; {remedy}')
  for form in FORMATS.values():
    if all(_fits(form, path, node) for path, node in nodes.items()):
      return form, nodes
  kinds = sorted({type(node).__name__ for node in nodes.values()})
  raise Unsupported(
    f'expected adapters of one method, found {", ".join(kinds)} in one tree, which PEFT\'s format '
    'has no place for; save them apart, or merge what can be merged: pretrained.save')


def _own(folder: epath.Path) -> Fields:
  options = dict(remedy='save the adapter again', error=tensors.CorruptTensors)
  file = folder / OWN
  return Fields(documents.read(file, OBJECT, **options) if file.is_file() else {}, file, **options)


def _read_head(arrays: dict[str, np.ndarray], own: Fields, base: Tree) -> Tree | None:
  """Takes the score out of what was found."""
  names = [name for name in arrays if _HEAD.search(name)]
  if not names:
    return None
  kernel, width = arrays.pop(names[0]), trees.flat(base)['final_norm/scale'].shape[-1]
  if kernel.shape != (1, width):
    raise tensors.CorruptTensors(
      f'expected {names[0]} of shape {[1, width]}, one label over this base, found '
      f'{list(kernel.shape)}; it is of another base, or no reward model')
  bias = jnp.asarray([own.get('head_bias', documents.number(), 0.0)], jnp.float32)
  return {'kernel': jnp.array(kernel.T), 'bias': bias}


def _fits(form: ModuleType, path: str, node: Any) -> bool:
  """Whether the adapter at this path has a place in the format."""
  return isinstance(node, form.NODES) and getattr(form, 'AT', bool)(path)
