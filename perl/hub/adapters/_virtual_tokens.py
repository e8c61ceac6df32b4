"""What PEFT keeps of virtual tokens, whatever made them: one tensor, `prompt_embeddings`."""

import numpy as np

from perl.hub import tensors
from perl.hub.adapters import _config as config
from perl.hub.adapters._config import Saved
from perl.hub.config_json import Unsupported

NAME = 'prompt_embeddings'
FIELDS = ('num_virtual_tokens', 'token_dim', 'num_attention_heads', 'num_layers')


def read(saved: Saved, columns: int, fields: tuple[str, ...]) -> np.ndarray:
  """f32[P, columns].

  Args:
    saved: as a format's `load` has it.
    columns: of the tensor.
    fields: of adapter_config.json, beside FIELDS, that the format has.

  Raises:
    Unsupported, CorruptTensors: see hub.adapters.load.
  """
  config.check(saved.about, saved.file, {
    'num_transformer_submodules': lambda x: x in (None, 1),
  }, read=(*FIELDS, *fields))
  if set(saved.tensors) != {NAME}:
    raise Unsupported(
      f'expected the tensor {NAME} or score, found {sorted(saved.tensors)[:4]}; that part of PEFT '
      'is not supported here')
  x, tokens = saved.tensors[NAME], saved.about.get('num_virtual_tokens')
  if x.ndim != 2 or x.shape[1] != columns or tokens not in (None, len(x)):
    raise tensors.CorruptTensors(
      f'expected {NAME} [{tokens or "P"}, {columns}] over this base, found {list(x.shape)}; it is '
      'of another base, or of another adapter_config.json')
  return x
