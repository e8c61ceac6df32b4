"""Floating-point operations of a traced program: those of its matrix products, loops unrolled.

XLA's own `cost_analysis` counts the body of a loop once, however often it runs, so that a scan over
layers looks like one layer. Here the jaxpr is walked: a scan counts its length, a loop whose length
only the running program knows as often as the caller says, a conditional its dearest branch.
Element-wise work is not counted: in a transformer it is a few per cent, and no peak rate is of it.
"""

import math
from collections.abc import Iterator
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn


def count(jaxpr: ClosedJaxpr | Jaxpr, loops: int | None = None) -> int:
  """Operations of the products in a jaxpr, two for each multiply-add.

  Args:
    jaxpr: of the program (`jitted.trace(...).jaxpr`).
    loops: iterations of every `while` whose length is not known; None where there is none.

  Raises:
    ValueError: such a loop holds products, and `loops` does not say how often it runs.
  """
  jaxpr = getattr(jaxpr, 'jaxpr', jaxpr)
  return sum(_of(equation, loops) for equation in jaxpr.eqns)


def _of(equation: JaxprEqn, loops: int | None) -> int:
  name, params = equation.primitive.name, equation.params
  if name == 'dot_general':
    return _product(equation)
  if name == 'scan':
    return params['length'] * count(params['jaxpr'], loops)
  if name == 'while':
    return _loop(params, loops)
  if name == 'cond':
    return max(count(branch, loops) for branch in params['branches'])
  return sum(count(inner, loops) for value in params.values() for inner in _jaxprs(value))


def _product(equation: JaxprEqn) -> int:
  """2 times the elements of the result times the length that is summed over."""
  (contracted, _), _ = equation.params['dimension_numbers']
  shape = equation.invars[0].aval.shape
  return 2 * equation.outvars[0].aval.size * math.prod(shape[i] for i in contracted)


def _loop(params: dict[str, Any], loops: int | None) -> int:
  once = count(params['body_jaxpr'], loops) + count(params['cond_jaxpr'], loops)
  if once and loops is None:
    raise ValueError(
      'expected loops of known length (scans), found a while loop with matrix products; say how '
      'often it runs (loops=...)'
    )
  return once * (loops or 0)


def _jaxprs(value: Any) -> Iterator[ClosedJaxpr | Jaxpr]:
  """The jaxprs in a parameter of a call: pjit's, remat's, those of hand-written derivatives."""
  if isinstance(value, ClosedJaxpr | Jaxpr):
    yield value
  elif isinstance(value, tuple | list):
    for item in value:
      yield from _jaxprs(item)
