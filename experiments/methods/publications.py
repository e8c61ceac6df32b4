"""What publications print of counts and bytes, as data: shapes, settings, figures.

VeRA: arXiv 2310.11454. LoRA: arXiv 2106.09685. Sun et al.: arXiv 2309.09055. QLoRA: arXiv
2305.14314. S-LoRA: arXiv 2311.03285.

The count of an adapter over given projections depends on their shapes alone. So an encoder stands
here as a decoder with the same projections, and GPT-2's fused c_attn as the three matrices in it.
"""

from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

from experiments.methods import forms
from perl.models.config import Config

_LIKE_GPT_2 = dict(
  norm='layer', position='learnt', gated=False, activation='gelu_tanh', qkv_bias=True,
  out_bias=True, mlp_bias=True,
)


def _gpt(layers: int, width: int, heads: int, vocab_size: int, positions: int) -> Config:
  return Config(
    vocab_size=vocab_size, layers=layers, width=width, heads=heads, kv_heads=heads,
    head_dim=width // heads, mlp_width=4 * width, max_positions=positions, **_LIKE_GPT_2)


def _llama(layers: int, width: int, mlp_width: int) -> Config:
  heads = width // 128
  return Config(
    vocab_size=32_000, layers=layers, width=width, heads=heads, kv_heads=heads, head_dim=128,
    mlp_width=mlp_width, tied=False)


MODELS: dict[str, Config] = {
  # Encoders: their projections; the rest of these bases is a decoder's and is not counted.
  'RoBERTa base': _gpt(12, 768, 12, 50_265, 512),
  'RoBERTa large': _gpt(24, 1024, 16, 50_265, 512),
  'DeBERTa XXL': _gpt(48, 1536, 24, 128_100, 512),
  # Decoders, whole.
  'GPT-2 M': _gpt(24, 1024, 16, 50_257, 1024),
  'GPT-2 L': _gpt(36, 1280, 20, 50_257, 1024),
  'GPT-3': _gpt(96, 12_288, 96, 50_257, 2048),
  'LLaMA 7B': _llama(32, 4096, 11_008),
  'LLaMA 13B': _llama(40, 5120, 13_824),
  'LLaMA 65B': _llama(80, 8192, 22_016),
}

Number = int | Fraction


class Figure(NamedTuple):
  """One printed figure and how it is counted here.

  `of` makes the figure of (trainable parameters, the base's); `by` is the closed form that `form`
  spells, of (shape, rank). They are to agree exactly, whatever is printed.
  """

  source: str  # publication, and where in it
  model: str  # of MODELS
  printed: str  # number, blank, unit
  form: str  # L layers, d width, m MLP width, r rank, V vocabulary, P positions
  by: Callable[[Config, int], Number]
  method: str = ''  # a file of perl/peft; '' where only the base is counted
  targets: tuple[str, ...] = ()
  rank: int = 0
  sizes: dict[str, int] = {}  # what else the method is asked for
  heads: tuple[bool, ...] = (False,)  # an adapter each, with a scalar head or without
  of: Callable[[int, int], Number] = lambda trainable, base: trainable
  what: str = 'trainable parameters'
  why: str = ''  # one sentence on what the verdict leaves open


QV, LINEAR = ('q', 'v'), ('attn/.*', 'mlp/.*')
"""Two attention matrices; every matrix of the layers, without the unembedding."""


def _lora(source: str, model: str, rank: int, printed: str, **more: Any) -> Figure:
  """LoRA on queries and values."""
  options = dict(form='4 L d r', by=forms.lora_two, method='lora', targets=QV, rank=rank)
  return Figure(source, model, printed, **{**options, **more})


_TABLE, _RANKS = 'VeRA, Table 1', (1, 16, 256)


def _vera_rows(model: str, lora: tuple[str, ...], vera: tuple[str, ...],
               why: tuple[str, ...] = ('', '', '')) -> list[Figure]:
  """A model's lines in VeRA's Table 1, which speaks of two matrices a layer."""
  own = dict(form='2 L (d + r)', by=forms.vera_two, method='vera', targets=QV)
  return [
    *(_lora(_TABLE, model, r, text) for r, text in zip(_RANKS, lora)),
    *(Figure(_TABLE, model, text, rank=r, why=reason, **own)
      for r, text, reason in zip(_RANKS, vera, why)),
  ]


_SHARED = ('The frozen A and B, one pair for all layers, are counted too: with their 2 d r it is '
           '2,384,064 / 2,755,584 / 8,699,904.')
VERA = [
  *_vera_rows('RoBERTa base', ('36.8 K', '589.8 K', '9437.1 K'), ('18.4 K', '18.8 K', '24.5 K')),
  *_vera_rows(
    'RoBERTa large', ('98.3 K', '1572.8 K', '25165.8 K'), ('49.2 K', '49.5 K', '61.4 K'),
    ('', 'The 195 KB printed beside it are 49,920 numbers of 4 bytes.', '')),
  *_vera_rows(
    'GPT-3', ('4.7 M', '75.5 M', '1207.9 M'), ('2.4 M', '2.8 M', '8.7 M'),
    (_SHARED, _SHARED, _SHARED)),
]

_BENCH = 'VeRA, MT-Bench'
_ALL_LORA = dict(form='L r (11 d + 3 m)', by=forms.lora_linear, method='lora', targets=LINEAR,
                 rank=64)
_ALL_VERA = dict(form='L (7 r + 5 d + 2 m)', by=forms.vera_linear, method='vera', targets=LINEAR,
                 rank=1024)
_WITHOUT = 'Without the unembedding.'
MT_BENCH = [
  Figure(_BENCH, 'LLaMA 7B', '159.9 M', why=_WITHOUT, **_ALL_LORA),
  Figure(_BENCH, 'LLaMA 13B', '250.3 M', why=_WITHOUT, **_ALL_LORA),
  Figure(_BENCH, 'LLaMA 7B', '1.6 M', why=_WITHOUT, **_ALL_VERA),
  Figure(_BENCH, 'LLaMA 13B', '2.4 M', why=_WITHOUT, **_ALL_VERA),
]

_HU = 'LoRA'


def _houlsby(bottleneck: int, printed: str) -> Figure:
  """Two bottlenecks a layer, biases included, norms not."""
  return Figure(
    f'{_HU}, Table 4', 'GPT-3', printed, form='2 L (2 b d + d + b)', method='houlsby',
    by=lambda c, r: 2 * c.layers * ((2 * bottleneck + 1) * c.width + bottleneck),
    sizes={'bottleneck': bottleneck})


_COPIED = ('Each is a thousandth of its model, as the table has it for prefix-tuning too; the '
           'file released for M, 1.5 MB, holds 393,216 float32.')
_FULL_GPT = dict(form='(V + P + 2) d + L (12 d + 13) d', by=forms.gpt_base,
                 of=lambda trainable, base: base, what='parameters')
LORA = [
  _lora(f'{_HU}, Table 2', 'RoBERTa base', 8, '0.3 M'),
  _lora(f'{_HU}, Table 2', 'RoBERTa large', 8, '0.8 M'),
  _lora(f'{_HU}, Table 2', 'DeBERTa XXL', 16, '4.7 M'),
  _lora(f'{_HU}, its repository', 'RoBERTa base', 8, '0.8 M',
        why='As many as RoBERTa large has; the paper prints 0.3 M.'),
  _lora(f'{_HU}, Table 3', 'GPT-2 M', 4, '0.35 M', why=_COPIED),
  _lora(f'{_HU}, Table 3', 'GPT-2 L', 4, '0.77 M', why=_COPIED),
  Figure(f'{_HU}, Table 3', 'GPT-2 M', '354.92 M', **_FULL_GPT,
         why='The shapes give 354.82 M.'),
  Figure(f'{_HU}, Table 3', 'GPT-2 L', '774.03 M', **_FULL_GPT),
  Figure(f'{_HU}, Table 4', 'GPT-3', '175255.8 M', **_FULL_GPT,
         why='Its published shapes give 174.6 B.'),
  _lora(f'{_HU}, Table 4', 'GPT-3', 1, '4.7 M'),
  _lora(f'{_HU}, Table 4', 'GPT-3', 8, '37.7 M'),
  _houlsby(1, '7.1 M'),
  _houlsby(8, '40.1 M'),
  Figure(f'{_HU}, Table 4', 'GPT-3', '14.2 M', form='11 L d + d', method='bitfit',
         by=lambda c, r: (11 * c.layers + 1) * c.width,
         why='A layer has 11 d biases (4 in attention, 5 in the MLP, 2 in norms); 12 d would fit.'),
  _lora(f'{_HU}, Table 5', 'GPT-3', 4, '18 M',
        why='18.87 M, cut to the million.'),
  _lora(f'{_HU}, 4.2', 'GPT-3', 4, '35 MB', form='2 bytes x 4 L d r', what='bytes in fp16',
        by=lambda c, r: 2 * forms.lora_two(c, r), of=lambda trainable, base: 2 * trainable,
        why='37.7 MB, or 36 MiB exactly.'),
  _lora(f'{_HU}, 4.2', 'GPT-3', 4, '350 GB', form='2 bytes x the base', what='bytes in fp16',
        by=lambda c, r: 2 * forms.gpt_base(c, r), of=lambda trainable, base: 2 * base,
        why='Of 175 B sharp.'),
  _lora(f'{_HU}, 4.2', 'GPT-3', 4, '10000 x', form='base / 4 L d r', what='times smaller',
        by=lambda c, r: Fraction(forms.gpt_base(c, r), forms.lora_two(c, r)),
        of=lambda trainable, base: Fraction(base, trainable),
        why='"Roughly".'),
]

_SUN = 'Sun et al.'
_SUN_SETTING = dict(method='lora', targets=('q', 'k', 'v', 'o'), rank=8, heads=(False, True))
SUN = [
  Figure(_SUN, 'LLaMA 7B', '16781313', form='2 x 8 L d r + d + 1', by=forms.two_roles,
         **_SUN_SETTING, why='Policy, value model, value head.'),
  Figure(_SUN, 'LLaMA 7B', '0.249 %', form='(16 L d r + d + 1) / base', what='share of the base',
         by=lambda c, r: Fraction(forms.two_roles(c, r), forms.llama_base(c, r)),
         of=lambda trainable, base: Fraction(trainable, base), **_SUN_SETTING),
]

_QLORA = 'QLoRA'
OTHERS = [
  Figure(_QLORA, 'LLaMA 65B', '780 GB', form='12 bytes x the base', what='bytes, 16-bit tuning',
         by=lambda c, r: 12 * forms.llama_base(c, r), of=lambda trainable, base: 12 * base,
         why='"More than": 65 B sharp; the model has 65.29 B.'),
  Figure(_QLORA, 'LLaMA 65B', '4.5 bits', form='4 + 32 / 64', by=forms.bits,
         what='NF4, bits a parameter',
         of=lambda trainable, base: forms.quantized_bits(8192, double=False)),
  Figure(_QLORA, 'LLaMA 65B', '4.127 bits', form='4 + 8 / 64 + 32 / (64 x 256) + 32 / d d',
         by=forms.bits_twice, what='with double quantization', why='Ours adds a mean a matrix.',
         of=lambda trainable, base: forms.quantized_bits(8192, double=True)),
  Figure('S-LoRA', 'LLaMA 7B', '5r/2h', form='(3 + 2) r / 2 h', rank=8,
         by=lambda c, r: Fraction(5 * r, 2 * c.width), what='numbers moved, over the base\'s',
         of=lambda trainable, base: forms.transfers(8, 4096),
         why='The same on any number of devices.'),
]

FIGURES: list[Figure] = [*VERA, *MT_BENCH, *LORA, *SUN, *OTHERS]
