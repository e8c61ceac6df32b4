"""Gemma's own Orbax checkpoints (github.com/google-deepmind/gemma) into our base tree.

Names are nested dicts, or joined by '/' (as released), perhaps under 'params' or 'transformer';
here 'layer_0/attn/q_einsum' stands for all of these. gemma_layout.py says what they hold.
"""

import contextlib
import dataclasses
import hashlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import traverse_util

from perl import paths, trees
from perl.hub import gemma_layout, reading, tensors
from perl.hub.config_json import Unsupported
from perl.hub.gemma_layout import Leaf, Part
from perl.hub.naming import Tensor
from perl.hub.tensors import CorruptTensors
from perl.models import lm
from perl.models.config import Config
from perl.models.transformer import Transformer
from perl.quantization import quantize_tree
from perl.quantized import Scheme
from perl.types import Tree

_ROOT = re.compile(r'(params/)?(transformer/)?')
_PASSED = re.compile(
  # What sees, and what else a training of theirs saves beside 'params'.
  r'(SigLiPFromPatches_0|vision_encoder)/.*|embedder/mm_.*|(opt_state|collections|step)(/.*)?')
_BROKEN = (ValueError, OSError, KeyError, TypeError, RuntimeError)
"""What Orbax and TensorStore raise where files are missing or cut short."""


def is_one(folder: epath.Path) -> bool:
  """Whether the folder is an Orbax tree of arrays, and neither a published folder nor ours."""
  has = lambda *names: any((paths.of(folder) / name).exists() for name in names)
  return has('_METADATA', 'manifest.ocdbt', 'checkpoint') and not has('config.json', 'files.json')


def plan(
  folder: epath.Path, *, config: Config | None = None, dtype: Any = None, progress: bool = True
) -> tuple[Config, Callable[..., Tree]]:
  """(the model's Config, a function that reads the base); no weights are read.

  The function takes the base's shardings, or None, and how to quantize it, if at all.

  Args:
    folder: see `is_one`.
    config: the model's; None finds it among the published sizes.
    dtype: the Config's, computed and stored; None is what the checkpoint has (the widest).
    progress: show a bar where reading takes seconds, on a terminal.

  Raises:
    CorruptTensors: an array is missing or has another shape, or the store is not whole.
    Unsupported: there are arrays that nobody reads, quantized ones, or a shape that was never
      published.
  """
  folder = paths.absolute(folder)
  leaves = _leaves(folder)
  with tensors.named(folder, Unsupported):
    shape = gemma_layout.measure(leaves)
    if config is None:
      config = gemma_layout.published(shape)
    gemma_layout.check_config(config, shape)
    name = jnp.dtype(dtype or tensors.widest(leaf.dtype for leaf in leaves.values())).name
    config = dataclasses.replace(config, dtype=name, param_dtype=name)
    like = lm.abstract(Transformer(config))
    parts = gemma_layout.parts(trees.flat(like), leaves, config)

  def place(shardings: Tree | None, scheme: Scheme | None = None) -> Tree:
    stream = _stream(folder, leaves, parts, config.layers)
    total = sum(leaf.bytes for leaf in leaves.values())
    wanted = quantize_tree(like, scheme, like=True)
    return reading.pour(stream, wanted, config.heads, shardings, total, progress)

  return config, place


def digest(folder: epath.Path) -> str:
  """What ties adapters to it: sha256 over name, dtype, shape and bytes of every array of the text
  model, however they are nested.

  Raises:
    CorruptTensors, Unsupported: as `plan`.
  """
  folder = paths.absolute(folder)
  leaves = _leaves(folder)
  sha = hashlib.sha256()
  with _reader() as reader:
    for name in sorted(leaves):
      x = np.ascontiguousarray(_restore(reader, folder, leaves, [name])[name])
      sha.update(f'{name}:{x.dtype}:{x.shape}:'.encode())
      sha.update(x.reshape(-1).view(np.uint8))
  return sha.hexdigest()


def _leaves(folder: epath.Path) -> dict[str, Leaf]:
  """The arrays of the text model by name; that there are no others is checked."""
  with _whole(folder), contextlib.closing(ocp.PyTreeCheckpointHandler()) as handler:
    stored = jax.tree_util.tree_leaves_with_path(handler.metadata(folder).tree)
  leaves: dict[str, Leaf] = {}
  for path, leaf in stored:
    whole = trees.path_string(path)
    name = whole[_ROOT.match(whole).end() :].removesuffix('/w')
    if _PASSED.fullmatch(name):
      continue
    kind = str(getattr(leaf, 'dtype', type(leaf).__name__))
    known = [d for d in tensors.DTYPES.values() if d.name == kind]
    if not gemma_layout.is_known(name) or name in leaves or not known:
      raise Unsupported(
        f'expected only the weights of the text model of Gemma 1, 2 or 3 in {folder}, found '
        f'{whole} of dtype {kind}; {_remedy(name, name in leaves)}')
    leaves[name] = Leaf(tuple(key.key for key in path), tuple(leaf.shape), known[0])
  return leaves


def _remedy(name: str, twice: bool) -> str:
  if twice:
    return 'it is there under two roots, leave one of them'
  if 'lora' in name.lower():
    return 'merge the LoRA into the weights, and save these alone'
  if 'quantize' in name.lower() or gemma_layout.is_known(name):
    return 'quantized checkpoints are not supported, use the one in bfloat16'
  return 'that architecture is not supported'


@contextlib.contextmanager
def _whole(folder: epath.Path) -> Iterator[None]:
  try:
    yield
  except _BROKEN as error:
    reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
    raise CorruptTensors(
      f'{folder}: expected a whole Orbax checkpoint, found {reason}; fetch the checkpoint again'
    ) from error


def _reader() -> ocp.Checkpointer:
  return ocp.Checkpointer(ocp.PyTreeCheckpointHandler())


def _restore(
  reader: ocp.Checkpointer, folder: epath.Path, leaves: dict[str, Leaf], names: list[str]
) -> dict[str, np.ndarray]:
  """These arrays, on the host; no other is read."""
  how = traverse_util.unflatten_dict(
    {leaves[name].keys: ocp.RestoreArgs(restore_type=np.ndarray) for name in names})
  args = ocp.args.PyTreeRestore(item=how, restore_args=how, partial_restore=True)
  with _whole(folder):
    arrays = traverse_util.flatten_dict(reader.restore(folder, args=args))
  return {name: arrays[leaves[name].keys] for name in names}


def _stream(
  folder: epath.Path, leaves: dict[str, Leaf], parts: list[Part], layers: int
) -> Iterator[tuple[tuple[Tensor, int, str], np.ndarray]]:
  """What `reading.pour` takes: the arrays outside of the layers one by one, then layer by layer."""
  inner = [part for part in parts if part.tensor.by_layer]
  groups = [(0, [part]) for part in parts if not part.tensor.by_layer]
  with _reader() as reader:
    for i, group in [*groups, *((i, inner) for i in range(layers))]:
      names = [part.tensor.theirs.format(i) for part in group]
      arrays = _restore(reader, folder, leaves, list(dict.fromkeys(names)))
      for part, name in zip(group, names):
        yield (part.tensor, i, name), part.matrix(arrays[name])
      arrays.clear()  # or two layers would be on the host
