"""GGUF's blocks as ours, without a dense copy in between: codes, scales and minima as they lie.

Where a tensor has blocks of 32 inputs of one output, they are those of perl/quantized.py
(ggml/src/ggml-common.h), d and m being float16:

  Q4_0  w = d (q - 8), q of 4 bits         'int4', whose codes are q - 8
  Q4_1  w = d q + m                        'uint4', with m as the minimum
  Q8_0  w = d q, q of 8 bits, signed       'int8'

Entry i and entry i + 16 of a block share a byte there as here. What the file has turned about
(`gguf_tensors`) are rows, which are our columns: blocks stay whole.
"""

from collections.abc import Iterable, Mapping

import numpy as np

from perl.hub.config_json import Unsupported
from perl.hub.gguf_tensors import Entry, read_bytes, unturned
from perl.quantized import Quantized, Scheme

BLOCK = 32
SCHEMES = {'Q4_0': Scheme('int4', BLOCK), 'Q4_1': Scheme('uint4', BLOCK),
           'Q8_0': Scheme('int8', BLOCK)}
"""Type of a tensor -> how it is quantized in our terms."""


def scheme(entries: Mapping[str, Entry], names: Iterable[str]) -> Scheme:
  """How the tensors of these names are quantized, all alike.

  Raises:
    Unsupported: one of them is otherwise, by name.
  """
  names = list(names)
  kinds = {getattr(entries[name], 'place', None) and entries[name].place.kind: name
           for name in names}
  if len(kinds) != 1 or not kinds.keys() <= SCHEMES.keys():
    other = next((n for kind, n in kinds.items() if kind not in SCHEMES), list(kinds.values())[-1])
    found = getattr(entries[other], 'place', None)
    raise Unsupported(
      f'expected a GGUF file whose layers have all their matrices in one of {", ".join(SCHEMES)}, '
      f'found {other} of {found.kind if found else entries[other].dtype} and '
      f'{len(kinds)} types in all; use another quantize, which starts from the numbers, or another '
      'file')
  return SCHEMES[next(iter(kinds))]


def read(name: str, entry: Entry) -> Quantized:
  """The matrix, in numpy arrays and our layout [I, O].

  Raises:
    CorruptTensors: the file was cut meanwhile.
  """
  kind, rows = entry.place.kind, entry.place.shape[0]
  content = read_bytes(entry.file, name, entry.place)
  blocks = content.reshape(rows, entry.place.shape[1] // BLOCK, -1)
  if entry.turn == 'rows':
    blocks = unturned(blocks, entry.heads)
  halves = np.ascontiguousarray(blocks[..., : 4 if kind == 'Q4_1' else 2]).view(np.float16)
  codes = blocks[..., 2 * halves.shape[-1] :]
  codes = codes.view(np.int8) if kind == 'Q8_0' else codes ^ np.uint8(0x88 if kind == 'Q4_0' else 0)
  ours = lambda x: np.ascontiguousarray(x.reshape(rows, -1).T)  # [O, I / b, n] -> [I / b n, O]
  scales = halves.astype(np.float32)
  return Quantized(
    ours(codes), ours(scales[..., :1]), None, None, SCHEMES[kind], np.dtype(np.float32),
    ours(scales[..., 1:]) if kind == 'Q4_1' else None)
