"""Layer-norm tuning: the norms' scales (and biases) alone (Zhao et al., arXiv 2312.11420)."""

from collections.abc import Mapping, Sequence

import jax

from perl.peft.methods.full import Full, init, parameters

__all__ = ['Full', 'init', 'is_norm', 'parameters', 'places']


def is_norm(path: str) -> bool:
  """Whether a path is of a norm's parameter."""
  return '/' in path and path.split('/')[-2].endswith('norm')


def places(leaves: Mapping[str, jax.Array], targets: Sequence[str]) -> dict[str, str]:
  """The parameters of norms, those of queries and keys and the last one among them."""
  del targets
  return {name: name for name in leaves if is_norm(name)}
