"""Counts the figures of `publications` over abstract bases, and says which of them are right."""

import decimal
import functools
import itertools
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import jax

from experiments.methods import publications
from experiments.methods.publications import Figure, Number
from perl import trees
from perl.models import lm
from perl.models.transformer import Transformer
from perl.peft import adapters
from perl.report import formats
from perl.types import Tree

SCALES: dict[str, Number] = {
  '': 1, 'bits': 1, 'x': 1, '%': Fraction(1, 100), 'K': 10**3, 'M': 10**6, 'B': 10**9,
  'MB': 10**6, 'GB': 10**9,
}
EQUAL, ROUNDED, CUT, SLIPS = 'equal', 'rounded', 'cut', 'slips'
NOTES = [
  'equal: to the last digit. rounded: equal after rounding as printed. cut: equal in the digits '
  'printed, the others cut off. slips: neither.',
  'Ours: `adapters.count` over an abstract base of the published shapes, equal to the form in '
  'every row; for an encoder, over a decoder of the same projections: nothing else counts. NF4: '
  'bytes of a matrix [d, d] as `perl.quantization` lays it out.',
  'L layers, d = h width, m MLP width, r rank, b bottleneck, V vocabulary, P positions.',
  'VeRA: arXiv 2310.11454. LoRA: 2106.09685. Sun et al.: 2309.09055. QLoRA: 2305.14314. S-LoRA: '
  '2311.03285.',
]


@functools.cache
def abstract(model: str) -> Tree:
  """The base of a model of publications.MODELS, by shapes."""
  return lm.abstract(Transformer(publications.MODELS[model]))


def trainable(figure: Figure) -> int:
  """Trainable parameters of the figure's adapters; 0 where it has no method."""
  if not figure.method:
    return 0
  options = ({'rank': figure.rank} if figure.rank else {}) | figure.sizes
  if figure.targets:
    options['targets'] = figure.targets
  make = lambda base: [
    adapters.init(jax.random.key(0), base, figure.method, head=head, **options)
    for head in figure.heads
  ]
  return sum(map(adapters.count, jax.eval_shape(make, abstract(figure.model))))


def verdict(found: Number, printed: str) -> str:
  """EQUAL, ROUNDED (half up), CUT or SLIPS, for '18.4 K'; zeros that end an integer are no digits.

  Raises:
    ValueError: an unknown unit.
  """
  text, _, unit = printed.partition(' ')
  if unit not in SCALES:
    raise ValueError(f'expected a unit among {", ".join(filter(None, SCALES))}, found {unit!r} in '
                     f'{printed!r}; add it to SCALES')
  sign = decimal.Decimal(text)
  _, digits, exponent = (sign.normalize() if '.' not in text else sign).as_tuple()
  value, quantum = Fraction(found) / SCALES[unit], Fraction(10) ** exponent
  if value == Fraction(sign):
    return EQUAL
  steps = value / quantum
  wanted = Fraction(sign) / quantum
  if (steps + Fraction(1, 2)) // 1 == wanted:
    return ROUNDED
  return CUT if steps // 1 == wanted else SLIPS


def evaluate(figure: Figure) -> dict[str, Any]:
  """The figure with what was counted.

  Raises:
    RuntimeError: count and closed form differ.
  """
  count, config = trainable(figure), publications.MODELS[figure.model]
  ours = figure.of(count, trees.count(abstract(figure.model)))
  form = figure.by(config, figure.rank)
  if ours != form:
    raise RuntimeError(f'expected {form} by {figure.form} for {figure.method or "the base"} of '
                       f'{figure.model}, counted {ours}; mend perl/peft or the form')
  symbols = figure.printed.replace(' ', '') == '5r/2h'
  return {
    'publication': figure.source, 'method': figure.method, 'model': figure.model,
    'targets': list(figure.targets), 'rank': figure.rank,
    'sizes': figure.sizes, 'what': figure.what,
    'printed': figure.printed, 'form': figure.form,
    'ours': ours if isinstance(ours, int) else float(ours),
    'verdict': EQUAL if symbols else verdict(ours, figure.printed), 'why': figure.why,
  }


def figures() -> list[dict[str, Any]]:
  """Every figure of `publications`, evaluated."""
  return [evaluate(figure) for figure in publications.FIGURES]


def markdown(found: Sequence[Mapping[str, Any]]) -> str:
  """The figures, those of one form in a line, then the sum of the verdicts and the notes."""
  head = ('publication', 'model', 'figure', 'printed', 'form', 'ours', 'verdict')
  slips = sum(f['verdict'] == SLIPS for f in found)
  return formats.markdown(head, [_line(group) for group in _groups(found)],
                          [f'{len(found)} figures, of which {slips} slip.', *NOTES])


def _groups(found: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
  """Neighbours that differ in rank alone, then single ones that differ in the model alone."""
  form = lambda f: (f['publication'], f['method'], f['form'], f['what'])
  ranks = [list(g) for _, g in itertools.groupby(found, key=lambda f: (form(f), f['model']))]
  alike = lambda group: (form(group[0]), group[0]['rank'], group[0]['model'] * (len(group) > 1))
  return [sum(groups, []) for _, groups in itertools.groupby(ranks, key=alike)]


def _line(group: list[Mapping[str, Any]]) -> list[str]:
  first = group[0]
  each = lambda values: ' / '.join(dict.fromkeys(values))
  asked = [f'{first["method"]} {", ".join(first["targets"])}'.strip()] if first['method'] else []
  asked += [f'{name} {each(str(f["sizes"][name]) for f in group)}' for name in first['sizes']]
  if first['rank']:
    asked += [f'r {each(str(f["rank"]) for f in group)}']
  if first['what'] != Figure._field_defaults['what']:
    asked += [first['what']]
  verdicts = [f['verdict'] for f in group]
  alike = verdicts[:1] if len(set(verdicts)) == 1 else verdicts
  whys = dict.fromkeys(f['why'] for f in group if f['why'])
  return [
    first['publication'], each(f['model'] for f in group), '; '.join(asked),
    ' / '.join(f['printed'] for f in group), first['form'],
    ' / '.join(number(f['ours'], f['printed']) for f in group),
    ': '.join([' / '.join(alike), *([' '.join(whys)] if whys else [])]),
  ]


def number(value: float, printed: str) -> str:
  """Integers with commas; fractions with four digits, in per cent if they are printed so."""
  if isinstance(value, int):
    return f'{value:,}'
  if printed.endswith('%'):
    return f'{value:.4%}'.replace('%', ' %')
  return f'{value:,.0f}' if value >= 1000 else f'{value:.4f}'
