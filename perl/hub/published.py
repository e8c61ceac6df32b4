"""Published checkpoints, Hugging Face folders and GGUF files: config.json, tensors, base tree."""

from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from perl import documents, trees
from perl.documents import OBJECT, TEXT
from perl.hub import families, gguf, gguf_blocks, naming, reading, tensors
from perl.hub.config_json import Unsupported
from perl.models import config as configs
from perl.models import lm
from perl.models.config import Config
from perl.models.transformer import Transformer
from perl.quantization import quantizable, quantize_tree
from perl.quantized import NATIVE, Scheme
from perl.train import sharding
from perl.types import Tree

_HEADLESS = ('Model', 'ForSequenceClassification')
_ENDS = ('ForCausalLM', 'LMHeadModel', 'ForConditionalGeneration', *_HEADLESS)
"""What the name of an architecture may end in, after the family's and perhaps 'Text'."""


def config_json(place: epath.Path) -> dict[str, Any]:
  """The config.json of a folder, or that which a GGUF file's fields mean.

  Raises:
    FileNotFoundError: there is none.
    CorruptTensors, Unsupported: it is none, or see gguf.config_json.
  """
  if gguf.is_one(place):
    return gguf.config_json(place)
  file = place / 'config.json'
  if not file.is_file():
    names = ', '.join(sorted(p.name for p in place.iterdir())[:8]) if place.is_dir() else ''
    there = f'{names or "nothing"}, no config.json' if place.is_dir() else 'no such folder'
    raise FileNotFoundError(
      f'expected a checkpoint in {place}, found {there}; give the folder that holds config.json '
      'and safetensors, or a GGUF file')
  return documents.read(file, OBJECT, remedy='fetch it again', error=tensors.CorruptTensors)


def entries(place: epath.Path) -> dict[str, tensors.Entry]:
  """{published name: where it lies} of all tensors; raises as tensors.find, gguf.entries."""
  return gguf.entries(place) if gguf.is_one(place) else tensors.find(place)


def config(place: epath.Path, run: dict[str, Any]) -> Config:
  """The `Config` of a checkpoint, with the options that say how it is run; raises as families."""
  return _config(place, config_json(place), run)


def _config(place: epath.Path, about: dict, run: dict[str, Any]) -> Config:
  where = str(place if gguf.is_one(place) else place / 'config.json')
  known = families.find(about.get('model_type', 'no model_type'), where).ARCHITECTURE
  names = documents.check(about.get('architectures') or [], documents.items(TEXT, 64),
                          'architectures', where, error=Unsupported)
  ends = {name: name.removeprefix(known).removeprefix('Text') for name in names}
  for name, end in ends.items():
    if not name.startswith(known) or end not in _ENDS:
      raise Unsupported(
        f'expected the architecture {known}ForCausalLM or {known}ForSequenceClassification in '
        f'{where}, found {name!r:.60}; that is not supported')
  if set(ends.values()) & set(_HEADLESS):
    run = {**run, 'tied': True}  # there is no unembedding, and its logits mean nothing
  return families.parse(about, where=where, **run)


def checked(
  place: epath.Path,
) -> tuple[Config, dict[str, tensors.Entry], list[tuple[naming.Tensor, list[str]]]]:
  """(Config, entries, what `reading.check` says of them); no weights are read.

  Raises:
    CorruptTensors, Unsupported: see reading.check.
  """
  about = config_json(place)
  config, found = _config(place, about, {}), entries(place)
  like = lm.abstract(Transformer(config))
  with tensors.named(place, Unsupported):
    return config, found, reading.check(
      found, like, config.heads, tied=config.tied, vision='text_config' in about)


def load(
  place: epath.Path, stored: np.dtype | None, compute: str | None, mesh: Mesh | None,
  progress: bool, run: dict[str, Any], scheme: Scheme | None,
) -> tuple[Transformer, Tree]:
  """(model, base) of a checkpoint; arguments and errors are those of `pretrained.load`."""
  config, found, plan = checked(place)
  as_it_lies = scheme == NATIVE
  scheme = _native(found, plan) if as_it_lies else scheme
  stored = stored or tensors.widest(
    tensors.DTYPES[found[name].dtype] for _, names in plan for name in names)
  config = run_as(config, compute or stored.name, {**run, 'param_dtype': stored.name})
  like = quantize_tree(lm.abstract(Transformer(config)), scheme, like=True)
  base = reading.fill(found, plan, like, config.heads, shardings(like, mesh), progress,
                      gguf_blocks.read if as_it_lies else None)
  return Transformer(config), base


def native(place: epath.Path) -> Scheme:
  """How a GGUF file has its layers' matrices quantized; raises as gguf_blocks.scheme."""
  if not gguf.is_one(place):
    raise Unsupported(
      f"expected a GGUF file for quantize='native', found {str(place)!r}; give the path of one, or "
      'use nf4, fp4, int8 or int4')
  return _native(*checked(place)[1:])


def _native(found: dict[str, tensors.Entry], plan: list) -> Scheme:
  return gguf_blocks.scheme(found, (
    name for tensor, names in plan for name in names if quantizable(tensor.ours[0])))


def apart(place: epath.Path, base: Tree) -> float:
  """The largest distance of a quantized base's matrices from the checkpoint's numbers."""
  config, found, plan = checked(place)
  leaves, largest = trees.flat(base), 0.0
  for tensor, names in plan:
    for i, name in enumerate(names if quantizable(tensor.ours[0]) else ()):
      parts = tensor.split(tensors.read(name, found[name]), config.heads)
      for path, part in zip(tensor.ours, parts):
        ours = jax.tree.map(lambda x: x[i], leaves[path]).astype('float32').dequantize()  # noqa: B023
        largest = max(largest, float(np.abs(np.asarray(ours) - np.asarray(part, np.float32)).max()))
  return largest


def shardings(like: Tree, mesh: Mesh | None) -> Tree | None:
  """Where a base lies on a mesh; None for the first device."""
  return None if mesh is None else sharding.base_shardings(like, mesh)


def run_as(config: Config, compute: str | None, run: dict[str, Any]) -> Config:
  """The config with the options that say how it is run."""
  run = {**run, **({'dtype': compute} if compute else {})}
  return configs.replace(config, **run)
