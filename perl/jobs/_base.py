"""Frozen parameters that adapters lie over, and the digest that ties adapters to them."""

import dataclasses
import os
from collections.abc import Callable

import jax
import jax.numpy as jnp

from perl import trees
from perl.hub import pretrained
from perl.jobs._reading import checkpoint_digest
from perl.models.transformer import Transformer
from perl.peft import adapters, composition
from perl.quantized import Scheme
from perl.train import bases, provenance
from perl.types import Tree


@dataclasses.dataclass(frozen=True)
class Base:
  """Frozen parameters on the mesh, their module, and the digest that ties adapters to them."""

  model: Transformer
  params: Tree
  digest: str
  below: Tree = dataclasses.field(default_factory=dict)  # a frozen adapter under every role's own
  former: Callable[[], str] | None = None  # the digest by which older versions knew it

  def renamed(self, meta: dict) -> dict:
    """A saved meta, with today's digest where it has the one by which this base went before."""
    known = meta.get('base_digest')
    if self.former is None or known in (None, self.digest) or known != self.former():
      return meta
    return meta | {'base_digest': self.digest}

  def hint(self, folder: str) -> str:
    """What else may help where an adapter names another base than this one."""
    return '' if self.former is None else (
      f'; an older version named anchors by their merged floats, which differ by machine: if one '
      f'has made {folder}, go on where it was made, or run its stage again in a new --workdir')


def write_base(folder: str | os.PathLike, base: Base, tokenizer: str) -> None:
  """Writes <folder>/base; `tokenizer` is the digest of its tokenizer."""
  meta = {
    'config': dataclasses.asdict(base.model.config), 'digest': base.digest,
    'tokenizer': tokenizer, 'commit': provenance.commit()}
  bases.save(os.path.join(folder, 'base'), base.params, meta)


def digest_of(folder: str, scheme: Scheme | None) -> str:
  """The digest of a checkpoint that is quantized by the scheme, or was when it was saved."""
  digest = checkpoint_digest(folder)
  return digest if scheme is None or pretrained.scheme(folder) else scheme.of(digest)


def over(base: Base, adapter: Tree) -> Tree:
  """The adapter over a copy of what lies frozen over the base: states are donated to their step."""
  if base.below and adapters.members(adapter):
    return adapters.stack([over(base, one) for one in trees.unstack(adapter)])
  below = jax.tree.map(jnp.copy, base.below)
  return composition.over(base.params, below, adapter) if below else adapter
