"""A compiler that does not try hard: nearly all that these tests cost is compilation.

What a program computes is the same to rounding, however well it is compiled; what has to be the
same to the bit asks for the fixture `optimized`.
"""

import importlib.metadata
import os
import tempfile

EMITTERS = ('--xla_cpu_use_fusion_emitters=false', '--xla_cpu_parallel_codegen_split_count=1')
"""The older of two generators of code takes half the time; from jaxlib 0.11.1 on it is no more."""


def flags() -> tuple[str, ...]:
  """Those of EMITTERS that this jaxlib has: an unknown one would end the process."""
  version = tuple(int(n) for n in importlib.metadata.version('jaxlib').split('.')[:3])
  return EMITTERS if version < (0, 11, 1) else EMITTERS[1:]


ENVIRON = {
  'JAX_PLATFORMS': 'cpu',
  'JAX_DISABLE_MOST_OPTIMIZATIONS': 'True',
  'JAX_COMPILATION_CACHE_DIR': f'{tempfile.gettempdir()}/perl-tests-xla-{os.getuid()}',
  'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
  'JAX_TRACEBACK_IN_LOCATIONS_LIMIT': '0',
  'XLA_FLAGS': ' '.join(flags()),
}
"""For a process on one device: slower programs in a fifth of the time, and each of them once."""
