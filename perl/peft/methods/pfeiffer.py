"""Bottleneck adapters after the MLP alone (Pfeiffer et al., arXiv 2005.00247)."""

from collections.abc import Mapping, Sequence

import jax

from perl.peft.methods import houlsby
from perl.peft.methods.houlsby import Bottleneck, init, parameters

__all__ = ['Bottleneck', 'init', 'parameters', 'places']


def places(leaves: Mapping[str, jax.Array], targets: Sequence[str]) -> dict[str, str]:
  """One site a layer, whatever the targets."""
  return {houlsby.MLP: houlsby.places(leaves, targets)[houlsby.MLP]}
