"""The reward model that a policy learns from: one adapter, or an ensemble of them over one base.

Where the members of an ensemble disagree, the policy has left what they learnt from: a reward that
falls with their disagreement is harder to exploit (Coste et al. 2023, arXiv 2310.02743).
"""

from typing import Any

import jax

from perl.models import lm
from perl.models.context import Rows
from perl.models.transformer import Transformer
from perl.peft import adapters
from perl.types import Tree

ENSEMBLES = ('mean', 'minimum', 'uncertainty')
"""How the members' scores make one."""


def combine(
  scores: jax.Array, *, how: str = 'mean', penalty: float = 0.0
) -> tuple[jax.Array, jax.Array]:
  """(score f32[B], spread f32[B]: the variance over members, mean_i (r_i - mean r)^2).

  mean:         mean_i r_i
  minimum:      min_i r_i                        (worst-case optimization)
  uncertainty:  mean_i r_i - penalty * spread    (uncertainty-weighted optimization)
  (Coste et al. 2023, section 3.)

  Args:
    scores: f32[n, B], of n members.
    how: of ENSEMBLES.
    penalty: lambda of 'uncertainty'.

  Raises:
    ValueError: an unknown `how`.
  """
  if how not in ENSEMBLES:
    raise ValueError(f'expected rl.ensemble among {", ".join(ENSEMBLES)}, found {how!r}')
  mean, spread = scores.mean(0), scores.var(0)
  combined = {'mean': mean, 'minimum': scores.min(0), 'uncertainty': mean - penalty * spread}
  return combined[how], spread


def scores(
  model: Transformer, base: Tree, adapter: Tree, tokens: jax.Array, mask: jax.Array | Rows,
  **options: Any,
) -> jax.Array:
  """f32[n, B]: lm.score of every member of a stack; n is 1 for a single adapter.

  Args:
    model, base, tokens, mask, options: see models.lm.score.
    adapter: of one reward model, or a stack.
  """
  of_one = lambda one: lm.score(model, base, one, tokens, mask, **options)
  return jax.vmap(of_one)(adapter) if adapters.members(adapter) else of_one(adapter)[None]


def score(
  model: Transformer, base: Tree, adapter: Tree, tokens: jax.Array, mask: jax.Array | Rows, *,
  how: str = 'mean', penalty: float = 0.0, **options: Any,
) -> tuple[jax.Array, jax.Array]:
  """`combine` of `scores`: a single adapter's own score, with spread 0.

  Args:
    model, base, adapter, tokens, mask, options: see `scores`.
    how, penalty: see `combine`.
  """
  each = scores(model, base, adapter, tokens, mask, **options)
  return combine(each, how=how, penalty=penalty)


def align(ensemble: Tree, means: jax.Array) -> Tree:
  """The ensemble with its members' scores brought to one mean, by the biases of their heads.

  Pairs and rankings say nothing of a constant in a score. Unless it is the same in all members,
  the least score is always that of one of them, and the spread says how far they lie apart.

  Args:
    ensemble: a stack.
    means: f32[n], the mean score of each member over the same examples. Their mean, and so the
      mean over members of any score, stays as it is.
  """
  head = ensemble['head']
  bias = head['bias'] - (means - means.mean())[:, None].astype(head['bias'].dtype)
  return {**ensemble, 'head': {**head, 'bias': bias}}
