"""One mesh ('data', 'fsdp', 'tensor'): the base sharded, adapters replicated, batches spread.

The same program runs on one device and on many: only the placements below differ.
"""

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from perl import trees
from perl.types import Batch, Tree

AXES = ('data', 'fsdp', 'tensor')

_RULES = (
  # (last names of the path, axes of the last two dimensions); a method's field may follow.
  (('embed', 'embedding'), ('tensor', 'fsdp')),
  (('o', 'kernel'), ('tensor', 'fsdp')),
  (('down', 'kernel'), ('tensor', 'fsdp')),
  (('kernel',), ('fsdp', 'tensor')),
)


def mesh(
  *, data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Sequence[jax.Device] | None = None
) -> Mesh:
  """The mesh of all devices.

  Args:
    data: replicas that share the batch; -1 for all devices that the other axes leave.
    fsdp: shards of the base along its rows (the batch is spread over them too).
    tensor: shards of heads and of the MLP's width.
    devices: the devices; None for all.

  Raises:
    ValueError: the sizes do not multiply to the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  sizes = [data, fsdp, tensor]
  if sizes.count(-1) == 1:
    known = -int(np.prod(sizes))
    sizes[sizes.index(-1)] = len(devices) // max(known, 1)
  if int(np.prod(sizes)) != len(devices) or min(sizes) < 1:
    raise ValueError(
      f'expected mesh axes {AXES} whose product is the {len(devices)} devices, found {sizes}; '
      'set one of config.mesh.* to -1')
  return jax.make_mesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def base_spec(name: str, shape: tuple[int, ...], mesh: Mesh) -> P:
  """The placement of the base parameter called `name`; an axis that does not divide is left out."""
  parts = name.split('/')
  axes = next((axes for last, axes in _RULES if tuple(parts[-len(last) :]) == last), None)
  if axes is None or len(shape) < 2:
    return P()
  spec = [None] * (len(shape) - 2) + list(axes)
  return P(*(a if a and shape[i] % mesh.shape[a] == 0 else None for i, a in enumerate(spec)))


def base_shardings(base: Tree, mesh: Mesh) -> Tree:
  """A NamedSharding for every array of the base (arrays or their shapes).

  A quantized kernel is cut between blocks: codes lie with their scales. What it has by layer, and
  not by block, is replicated.
  """

  def place(path, leaf):
    grid = leaf.scale.shape if trees.is_leaf(leaf) else leaf.shape
    spec = base_spec(trees.path_string(path), grid, mesh)
    return jax.tree.map(
      lambda x: NamedSharding(mesh, spec if len(x.shape) == len(grid) else P()), leaf)

  return jax.tree_util.tree_map_with_path(place, base, is_leaf=trees.is_leaf)


def state_shardings(state: Tree, base: Tree, mesh: Mesh) -> Tree:
  """Placements of a train state: leaves as large as their base parameter are placed like it, and
  copies of the last layers alone as those layers are.

  Low-rank adapters and their optimizer state are replicated; full tuning's copies, gradients and
  moments are sharded with the base, or they would not fit where the base does.
  """
  shapes = {name: leaf.shape for name, leaf in trees.flat(base).items()}

  def place(path, leaf):
    name = trees.path_string(path)
    for known, shape in shapes.items():
      layers = known.startswith('layers/') and leaf.shape[1:] == shape[1:]
      if f'/{known}/' in f'/{name}/' and (leaf.shape == shape or layers):
        return NamedSharding(mesh, base_spec(known, leaf.shape, mesh))
    return NamedSharding(mesh, P())

  return jax.tree_util.tree_map_with_path(place, state)


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Rows over 'data' and 'fsdp'."""
  return NamedSharding(mesh, P(('data', 'fsdp')))


def check_rows(rows: int, mesh: Mesh) -> None:
  """Raises ValueError where so many rows do not divide over the mesh."""
  spread = mesh.shape['data'] * mesh.shape['fsdp']
  if rows % spread:
    raise ValueError(
      f'expected a batch that divides over the {spread} devices of the mesh, found {rows} rows; '
      'change batch_size, or config.mesh.data and config.mesh.fsdp')


def place_batch(batch: Batch, mesh: Mesh) -> Batch:
  """This process's rows -> global arrays spread over the mesh.

  Raises:
    ValueError: the rows do not divide over the mesh.
  """
  check_rows(len(next(iter(batch.values()))) * jax.process_count(), mesh)
  sharding = batch_sharding(mesh)
  put = lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x))
  return {name: put(x) for name, x in batch.items()}


def place(tree: Tree, shardings: Tree) -> Tree:
  """The tree on its devices."""
  return jax.tree.map(jax.device_put, tree, shardings)
