"""What a PEFT method is: a file of this folder with these names in it.

    init(key, weight, **options)    the adapter of one parameter: a flax.struct.PyTreeNode
    parameters(shape, **options)    how many numbers are trained beside a parameter of that shape
    places(leaves, targets)         {path of an adapter: path of the parameter that `init` is given,
                                    or the paths of several}; without it, the kernels of the targets
    optimizer(tx, **options)        how the method trains, where it trains otherwise
    top(layers)                     how many of the last layers, where config.peft.top_layers is 0
    IDENTITY = False                for one that does not begin as the base's function

An adapter beside a kernel has ``project(x, w, key)``, beside another parameter ``merge(w)``, at a
site of a layer ``act(y)``, as a prefix ``keys_values(heads)``; at the root of the tree it has
``spread(base)``, which gives {path: adapter}. With ``merge`` (and ``unmerge``) it can be folded
into the base. FIXED names fields that are data and never trained. Below 'layers/' arrays are
stacked by layer, [L, ...], or of the last layers alone. `find(name)` imports the file: there is no
registry.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import jax
from flax import struct

from perl import choices, trees
from perl.options import check, declared

METHODS = 'perl.peft.methods'
"""The folder of methods."""

COMMON = ('targets', 'top_layers')
"""Options of `adapters.init` itself."""


def find(method: str) -> ModuleType:
  """The module of a method.

  Raises:
    ValueError: no such file; the known ones are listed.
  """
  return choices.find(METHODS, method)


EVERY = 'all-linear'
"""PEFT's name for the matrices of all layers: every projection but the output's."""


def kernels(leaves: Mapping[str, Any], targets: Sequence[str]) -> list[str]:
  """The paths of the matrices that the targets name, in the order of the leaves."""
  names = [n.removesuffix('/kernel') for n in leaves if n.endswith('/kernel')]
  targets = ['layers/.*' if target == EVERY else target for target in targets]
  return [f'{n}/kernel' for n in trees.match(names, targets)]


def check_options(options: Mapping[str, Any]) -> None:
  """Raises ValueError for an option that no method has."""
  check(options, known_options(), 'a method')


@functools.cache
def known_options() -> frozenset[str]:
  """The options of all methods."""
  return declared(METHODS, ('init', 'places', 'optimizer')) - {'path', 'steps', *COMMON}


class Additive:
  """What adds `change(w)` to a parameter w; for an adapter that says what that is."""

  def merge(self, w: jax.Array) -> jax.Array:
    """W with the change."""
    return w + self.change(w)

  def unmerge(self, w: jax.Array) -> jax.Array:
    """The inverse of `merge`."""
    return w - self.change(w)


class Kind(NamedTuple):
  """A class of a method, as it is made again."""

  make: type
  arrays: set[str]
  static: dict[str, Any]

  @classmethod
  def of(cls, kind: type, options: Mapping[str, Any]) -> 'Kind':
    """With those of its fields that are no arrays, as the options say."""
    fields = {f.name: f.metadata.get('pytree_node', True) for f in dataclasses.fields(kind)}
    plain = lambda value: tuple(value) if isinstance(value, list) else value
    static = {n: plain(options[n]) for n, is_array in fields.items()
              if not is_array and n in options}
    return cls(kind, {n for n, is_array in fields.items() if is_array}, static)


def classes(module: ModuleType) -> list[type]:
  """Of a method's adapters: its own, or where it has none those that it takes from another."""
  kinds = [c for c in vars(module).values() if isinstance(c, type) and is_adapter(c)]
  return [c for c in kinds if c.__module__ == module.__name__] or kinds


def is_adapter(node: Any) -> bool:
  """True for an object of the protocol, or its class; False for arrays and dicts."""
  return isinstance(node, struct.PyTreeNode) or (
    isinstance(node, type) and issubclass(node, struct.PyTreeNode))


def fixed_of(node: Any) -> list[str]:
  """The fields of an adapter that are never trained, or paths of fields of what it is made of."""
  own = getattr(node, 'fixed', None)
  return list(getattr(node, 'FIXED', ())) if own is None else own()
