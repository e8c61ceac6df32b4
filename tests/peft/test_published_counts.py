"""What publications print of trainable parameters and bytes, counted over bases of their shapes.

The table is experiments/results/methods_published.json (publication, model, method and options,
printed figure, closed form, our count, verdict). Left to others: bits of NF4 (test_quantized.py),
and what S-LoRA moves between devices, which counts no adapter.
"""

import decimal
import functools
import json
import re
from fractions import Fraction

import documents
import jax
import pytest

from perl import trees
from perl.models import lm
from perl.models.config import Config
from perl.models.transformer import Transformer
from perl.peft import adapters

FILE = documents.ROOT / 'experiments/results/methods_published.json'
FIGURES = [figure for figure in json.loads(FILE.read_text())['figures']
           if 'bits' not in figure['printed'] and figure['publication'] != 'S-LoRA']
SCALES = {'': 1, 'x': 1, '%': Fraction(1, 100), 'K': 10**3, 'M': 10**6, 'MB': 10**6, 'GB': 10**9}


def gpt(layers, width, heads, vocab_size=50_257, positions=1024):
  return Config(
    vocab_size=vocab_size, layers=layers, width=width, heads=heads, kv_heads=heads,
    head_dim=width // heads, mlp_width=4 * width, max_positions=positions, norm='layer',
    position='learnt', gated=False, activation='gelu_tanh', qkv_bias=True, out_bias=True,
    mlp_bias=True)


def llama(layers, width, mlp_width):
  return Config(
    vocab_size=32_000, layers=layers, width=width, heads=width // 128, kv_heads=width // 128,
    head_dim=128, mlp_width=mlp_width, tied=False)


# The count of an adapter depends on the shapes of its projections alone. So an encoder stands here
# as a decoder with the same ones, and GPT-2's fused c_attn as the three matrices in it.
MODELS = {
  'RoBERTa base': gpt(12, 768, 12), 'RoBERTa large': gpt(24, 1024, 16),
  'DeBERTa XXL': gpt(48, 1536, 24), 'GPT-2 M': gpt(24, 1024, 16), 'GPT-2 L': gpt(36, 1280, 20),
  'GPT-3': gpt(96, 12_288, 96, positions=2048), 'LLaMA 7B': llama(32, 4096, 11_008),
  'LLaMA 13B': llama(40, 5120, 13_824), 'LLaMA 65B': llama(80, 8192, 22_016),
}


def gpt_base(s):
  return (s['V'] + s['P'] + 2) * s['d'] + s['L'] * (12 * s['d'] + 13) * s['d']


def llama_base(s):
  return (2 * s['V'] + 1) * s['d'] + s['L'] * (4 * s['d']**2 + 3 * s['d'] * s['m'] + 2 * s['d'])


FORMS = {  # as the file spells them; L layers, d width, m MLP width, r rank, b bottleneck
  '4 L d r': lambda s: 4 * s['L'] * s['d'] * s['r'],
  '2 L (d + r)': lambda s: 2 * s['L'] * (s['d'] + s['r']),
  'L r (11 d + 3 m)': lambda s: s['L'] * s['r'] * (11 * s['d'] + 3 * s['m']),
  'L (7 r + 5 d + 2 m)': lambda s: s['L'] * (7 * s['r'] + 5 * s['d'] + 2 * s['m']),
  '2 L (2 b d + d + b)': lambda s: 2 * s['L'] * (2 * s['b'] * s['d'] + s['d'] + s['b']),
  '11 L d + d': lambda s: 11 * s['L'] * s['d'] + s['d'],
  '(V + P + 2) d + L (12 d + 13) d': gpt_base,
  '2 bytes x 4 L d r': lambda s: 2 * 4 * s['L'] * s['d'] * s['r'],
  '2 bytes x the base': lambda s: 2 * gpt_base(s),
  'base / 4 L d r': lambda s: Fraction(gpt_base(s), 4 * s['L'] * s['d'] * s['r']),
  '2 x 8 L d r + d + 1': lambda s: 16 * s['L'] * s['d'] * s['r'] + s['d'] + 1,
  '(16 L d r + d + 1) / base': lambda s: Fraction(
    16 * s['L'] * s['d'] * s['r'] + s['d'] + 1, llama_base(s)),
  '12 bytes x the base': lambda s: 12 * llama_base(s),
}
FIGURE = {  # of trainable parameters and the base's, by what is printed
  'trainable parameters': lambda trained, base: trained, 'parameters': lambda trained, base: base,
  'times smaller': lambda trained, base: Fraction(base, trained),
  'share of the base': lambda trained, base: Fraction(trained, base),
  'bytes in fp16': lambda trained, base: 2 * (trained or base),
  'bytes, 16-bit tuning': lambda trained, base: 12 * base,
}


@functools.cache
def abstract(model):
  return lm.abstract(Transformer(MODELS[model]))


@functools.cache
def trainable(model, method, heads, **options):
  """Parameters of the adapters, one a head; `heads` tells which have a scalar one."""
  options['targets'] = tuple(options.pop('targets').split()) or None
  options = {name: value for name, value in options.items() if value}
  make = lambda base: [adapters.init(jax.random.key(0), base, method, head=head, **options)
                       for head in heads]
  return sum(map(adapters.count, jax.eval_shape(make, abstract(model))))


def verdict(value, printed):
  """equal, rounded (half up), cut, or slips; zeros that end an integer are no digits."""
  text, _, unit = printed.partition(' ')
  number = decimal.Decimal(text)
  exponent = (number.normalize() if '.' not in text else number).as_tuple().exponent
  steps, wanted = (Fraction(x) / Fraction(10)**exponent for x in (
    Fraction(value) / SCALES[unit], number))
  if steps == wanted:
    return 'equal'
  if (steps + Fraction(1, 2)) // 1 == wanted:
    return 'rounded'
  return 'cut' if steps // 1 == wanted else 'slips'


@pytest.mark.parametrize('figure', FIGURES, ids=lambda f: f'{f["publication"]}: {f["printed"]}')
def test_a_published_figure_is_counted_again(figure):
  config, of_base = MODELS[figure['model']], 'the base' in figure['form'] or not figure['method']
  heads = (False, True) if figure['publication'] == 'Sun et al.' else (False,)
  trained = 0 if of_base else trainable(
    figure['model'], figure['method'], heads, targets=' '.join(figure['targets']),
    rank=figure['rank'], **figure['sizes'])
  ours = FIGURE[figure['what']](trained, trees.count(abstract(figure['model'])))
  shape = {'L': config.layers, 'd': config.width, 'm': config.mlp_width, 'V': config.vocab_size,
           'P': config.max_positions, 'r': figure['rank'], 'b': figure['sizes'].get('bottleneck')}
  assert ours == FORMS[figure['form']](shape)
  assert float(ours) == figure['ours'] and verdict(ours, figure['printed']) == figure['verdict']
  assert figure['verdict'] != 'slips' or figure['why']


def test_every_published_figure_is_among_them():
  assert len(FIGURES) == 43 and {figure['form'] for figure in FIGURES} == set(FORMS)
  text = documents.published()
  assert all(re.search(rf'[|/] {re.escape(f["printed"])} [|/]', text) for f in FIGURES)


def test_the_frozen_matrices_of_vera_explain_its_row_of_gpt_3():
  for rank, printed in ((1, '2.4 M'), (16, '2.8 M'), (256, '8.7 M')):
    ours = trainable('GPT-3', 'vera', (False,), targets='q v', rank=rank)
    assert verdict(ours + 2 * MODELS['GPT-3'].width * rank, printed) == 'rounded'


@pytest.mark.parametrize('value, printed, expected', [
  (16_781_313, '16781313', 'equal'), (49_200, '49.2 K', 'equal'), (589_824, '589.8 K', 'rounded'),
  (36_864, '36.8 K', 'cut'), (49_920, '49.5 K', 'slips'), (783_427, '780 K', 'rounded'),
  (783_427, '781 K', 'slips'), (Fraction(1, 400), '0.25 %', 'equal'), (0, '0', 'equal'),
])
def test_verdicts(value, printed, expected):
  assert verdict(value, printed) == expected
