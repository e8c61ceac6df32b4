"""LN tuning: PEFT's LN_TUNING, whole copies of the norms' parameters, as the base stores them."""

import jax.numpy as jnp
import numpy as np

from perl import trees
from perl.hub.adapters import _config as config
from perl.hub.adapters import _modules as modules
from perl.hub.adapters._config import Saved, Written
from perl.hub.naming import Tensor
from perl.peft.methods.full import Full
from perl.peft.methods.lntuning import is_norm
from perl.types import Tree

NODES = (Full,)
AT = is_norm

_SITE = 'ln_tuning_layers'


def load(saved: Saved, base: Tree, heads: int) -> Tree:
  """The tree of stacked copies."""
  config.check(saved.about, saved.file, {}, read=())
  leaves = trees.flat(base)

  def part(x: np.ndarray, tensor: Tensor) -> list[np.ndarray]:
    modules.check_size(x.size, leaves[tensor.ours[0]].shape[-1], tensor.theirs)
    return [x.reshape(-1)]

  def stack(path: str, parts: list[np.ndarray | None]) -> Full:
    parts = modules.last(path, parts)
    return Full(jnp.array(np.stack(parts) if path.startswith('layers/') else parts[0]))

  fields = modules.by_module(
    saved.tensors, rf'{_SITE}(?:\.default)?\.(weight|bias)', f'{_SITE}.weight, .bias')
  pieces = {module if field == 'weight' else f'{module}.{field}': x
            for module, own in fields.items() for field, x in own.items()}
  return modules.lay(pieces, modules.norms(base), base, heads, part=part, stack=stack)


def save(nodes: dict[str, Full], base: Tree, heads: int) -> Written:
  """Fields and tensors of the copies."""
  those = modules.norms(base)
  # No norm is of a fused projection: nothing is ever fused.
  pieces = modules.lift(nodes, those, base, heads, cut=lambda path, node: node.w, fuse=None)
  split = {name: (name.removesuffix('.bias'), 'bias' if name.endswith('.bias') else 'weight')
           for name in pieces}
  every = {template: full for template, full in modules.every(those, base).items()
           if not template.endswith('.bias')}
  return {
    'peft_type': 'LN_TUNING',
    'target_modules': config.targets({module for module, _ in split.values()}, every),
  }, {f'{module}.{_SITE}.{field}': pieces[name] for name, (module, field) in split.items()}
