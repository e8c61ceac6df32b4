"""Floating-point operations of a traced program: those of its matrix products, loops unrolled.

XLA's own `cost_analysis` counts the body of a loop once, however often it runs, so that a scan over
layers looks like one layer. Here the jaxpr is walked: a scan counts its length, a loop whose length
only the running program knows as often as the caller says, a conditional its dearest branch.
Element-wise work is not counted: in a transformer it is a few per cent, and no peak rate is of it.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn


def count(jaxpr: ClosedJaxpr | Jaxpr, loops: Sequence[int] = ()) -> int:
  """Operations of the products in a jaxpr, two for each multiply-add.

  Args:
    jaxpr: of the program (`jitted.trace(...).jaxpr`).
    loops: how often each `while` that holds products runs, in the program's order, an outer one
      before those inside it (which run so often each time that the outer one does).

  Raises:
    ValueError: `loops` names fewer or more loops than there are.
  """
  times = iter(loops)
  operations = _inside(jaxpr, times)
  if left := list(times):
    raise ValueError(f'expected {len(loops) - len(left)} while loops with matrix products, found '
                     f'{len(loops)} lengths; leave {left} out')
  return operations


def _inside(jaxpr: ClosedJaxpr | Jaxpr, times: Iterator[int]) -> int:
  return sum(_of(equation, times) for equation in getattr(jaxpr, 'jaxpr', jaxpr).eqns)


def _of(equation: JaxprEqn, times: Iterator[int]) -> int:
  name, params = equation.primitive.name, equation.params
  if name == 'dot_general':
    return _product(equation)
  if name == 'scan':
    return params['length'] * _inside(params['jaxpr'], times)
  if name == 'while':
    return _loop(params, times)
  if name == 'cond':
    return max(_inside(branch, times) for branch in params['branches'])
  return sum(_inside(inner, times) for value in params.values() for inner in _jaxprs(value))


def _product(equation: JaxprEqn) -> int:
  """2 times the elements of the result times the length that is summed over."""
  (contracted, _), _ = equation.params['dimension_numbers']
  shape = equation.invars[0].aval.shape
  return 2 * equation.outvars[0].aval.size * math.prod(shape[i] for i in contracted)


def _loop(params: dict[str, Any], times: Iterator[int]) -> int:
  parts = params['cond_jaxpr'], params['body_jaxpr']
  if not any(_has_products(part) for part in parts):
    return 0
  length = next(times, None)
  if length is None:
    raise ValueError(
      'expected loops of known length (scans), found a while loop with matrix products; say how '
      'often it runs (loops=...)')
  return length * sum(_inside(part, times) for part in parts)


def _has_products(jaxpr: ClosedJaxpr | Jaxpr) -> bool:
  return any(
    equation.primitive.name == 'dot_general' or any(
      _has_products(inner) for value in equation.params.values() for inner in _jaxprs(value))
    for equation in getattr(jaxpr, 'jaxpr', jaxpr).eqns)


def _jaxprs(value: Any) -> Iterator[ClosedJaxpr | Jaxpr]:
  """The jaxprs in a parameter of a call: pjit's, remat's, those of hand-written derivatives."""
  if isinstance(value, ClosedJaxpr | Jaxpr):
    yield value
  elif isinstance(value, tuple | list):
    for item in value:
      yield from _jaxprs(item)
