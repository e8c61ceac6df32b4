"""Closed forms of what is counted, of a shape and a rank, and arithmetic that counts no adapter."""

from fractions import Fraction

import jax
import jax.numpy as jnp

from perl import quantization, quantized
from perl.models.config import Config


def lora_two(c: Config, r: int) -> int:
  """LoRA on two square matrices a layer."""
  return 4 * c.layers * c.width * r


def lora_linear(c: Config, r: int) -> int:
  """LoRA on all seven matrices of a Llama layer."""
  return c.layers * r * (11 * c.width + 3 * c.mlp_width)


def vera_two(c: Config, r: int) -> int:
  """VeRA on two square matrices a layer, without the frozen pair."""
  return 2 * c.layers * (c.width + r)


def vera_linear(c: Config, r: int) -> int:
  """VeRA on all seven matrices of a Llama layer."""
  return c.layers * (7 * r + 5 * c.width + 2 * c.mlp_width)


def gpt_base(c: Config, r: int) -> int:
  """Every parameter of a GPT-2 or GPT-3; nothing depends on r."""
  return (c.vocab_size + c.max_positions + 2) * c.width + c.layers * (12 * c.width + 13) * c.width


def llama_base(c: Config, r: int) -> int:
  """Every parameter of a Llama with an unembedding of its own; nothing depends on r."""
  layer = 4 * c.width**2 + 3 * c.width * c.mlp_width + 2 * c.width
  return (2 * c.vocab_size + 1) * c.width + c.layers * layer


def two_roles(c: Config, r: int) -> int:
  """LoRA on q, k, v, o of policy and value model, and the value head."""
  return 16 * c.layers * c.width * r + c.width + 1


def transfers(r: int, h: int, devices: int = 4) -> Fraction:
  """Numbers a token that tensor parallelism moves for LoRA, over those that it moves for the base.

  An all-gather of n numbers moves (N - 1) n / N, an all-reduce twice that. The base has one
  all-reduce of h numbers; LoRA three all-gathers (q, k, v) and an all-reduce (o) of r.
  """
  gather = Fraction(devices - 1, devices)
  return (3 * gather * r + 2 * gather * r) / (2 * gather * h)


def bits(c: Config, r: int) -> Fraction:
  """Bits a weight of 4-bit codes with a float32 scale for each block of 64."""
  return 4 + Fraction(32, 64)


def bits_twice(c: Config, r: int) -> Fraction:
  """The same with 8-bit scales, a float32 one for 256 of them, and one mean a matrix [d, d]."""
  return 4 + Fraction(8, 64) + Fraction(32, 64 * 256) + Fraction(32, c.width**2)


def quantized_bits(width: int, *, double: bool) -> Fraction:
  """Bits a weight of a matrix [d, d] in NF4 as perl.quantization lays it out, by shapes."""
  scheme = quantized.Scheme('nf4', 64, double)
  kernel = jax.ShapeDtypeStruct((width, width), jnp.float32)
  found = jax.eval_shape(lambda w: quantization.quantize(w, scheme), kernel)
  return Fraction(quantized.bits_per_parameter({'kernel': found}))
