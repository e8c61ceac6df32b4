"""The optimizer's state in the host's memory between updates (QLoRA's paged optimizers, section 3).

jax places an array by device and kind of memory: 'device', or 'pinned_host', which the device reads
without a copy in between. A step fetches the state, updates it and sends it back, in one program.
Adapters stay on the device: rollouts and evaluations read them too.
"""

import jax
from jax.sharding import Mesh

from perl.types import Tree

KINDS = ('device', 'pinned_host')


def page(opt_state: Tree, places: Tree, mesh: Mesh, kind: str) -> Tree:
  """The placements of an optimizer's state, in that kind of memory.

  Scalars (the count of updates) stay on the device: there is nothing to win.

  Args:
    opt_state: arrays or their shapes.
    places: a NamedSharding for each.
    mesh: whose devices are asked.
    kind: of KINDS.

  Raises:
    ValueError: the platform has no such memory.
  """
  if kind == 'device':
    return places
  check(mesh, kind)
  return jax.tree.map(
    lambda x, place: place.with_memory_kind(kind) if x.ndim else place, opt_state, places)


def fetch(opt_state: Tree, places: Tree) -> Tree:
  """The state on the device, within a step whose argument has those placements."""
  def one(x, place):
    if place.memory_kind in (None, 'device'):
      return x
    return jax.device_put(x, place.with_memory_kind('device'))

  return jax.tree.map(one, opt_state, places)


def check(mesh: Mesh, kind: str) -> None:
  """Requires that every device of the mesh can address that kind of memory.

  Raises:
    ValueError: one cannot; what it has is listed.
  """
  if kind not in KINDS:
    raise ValueError(
      f'expected mesh.optimizer_memory among {KINDS}, found {kind!r}; choose one')
  for device in mesh.local_devices:
    kinds = sorted(memory.kind for memory in device.addressable_memories())
    if kind not in kinds:
      raise ValueError(
        f'expected a platform with the memory {kind} for mesh.optimizer_memory, found '
        f'{", ".join(kinds)} on {device.platform} ({device.device_kind}); set '
        'mesh.optimizer_memory=device')
