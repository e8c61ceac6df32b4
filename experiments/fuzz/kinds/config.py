"""config.json of a published checkpoint, of every family; now and then with its tensors."""

import functools
import json
import pathlib
import random
from typing import Any

import numpy as np

from experiments.fuzz import _mutations as mutations
from perl import choices, trees
from perl.hub import families, naming, pretrained, shards, tensors
from perl.models import lm
from perl.models.config import sized
from perl.models.rope import Scaling
from perl.models.transformer import Transformer

SHARE = 25

_SMALL = dict(vocab_size=48, layers=2, width=16, heads=2, kv_heads=1, head_dim=8, mlp_width=24,
              max_positions=64)
_GEMMA = dict(norm_offset=True, activation='gelu_tanh', embed_scale=True)
_OPTIONS = {
  'llama': dict(rope_scaling=Scaling('llama3', 8.0, 32)), 'mistral': dict(window=8),
  'qwen2': dict(qkv_bias=True, rope_scaling=Scaling('yarn', 4.0, 32)), 'qwen3': dict(qk_norm=True),
  'gemma': _GEMMA,
  'gemma2': _GEMMA | dict(post_norm=True, attention_softcap=50.0, final_softcap=30.0, window=8,
                          window_layers=(True, False), query_scale=0.125),
  'gemma3_text': _GEMMA | dict(post_norm=True, qk_norm=True, window=8, window_layers=(True, False),
                               query_scale=0.125, rope_theta=1e6, rope_local_theta=1e4),
  'gpt2': dict(norm='layer', gated=False, qkv_bias=True, out_bias=True, mlp_bias=True, kv_heads=2,
               position='learnt', activation='gelu_tanh', norm_eps=1e-5),
  'gpt_neox': dict(norm='layer', gated=False, qkv_bias=True, out_bias=True, mlp_bias=True,
                   kv_heads=2, parallel=True, activation='gelu', norm_eps=1e-5, rope_fraction=0.25),
}


@functools.cache
def documents() -> dict[str, bytes]:
  """{family: its config.json}."""
  texts = {}
  for name, options in _OPTIONS.items():
    config = sized('nano', **_SMALL | options)
    fields = families.describe(config, name) | {
      'architectures': [families.find(name).ARCHITECTURE + getattr(
        families.find(name), 'CAUSAL', 'ForCausalLM')],
      'torch_dtype': 'float32', 'bos_token_id': 1, 'eos_token_id': [2, 3]}
    texts[name] = json.dumps(fields).encode()
  inner = json.loads(texts['gemma3_text'])
  texts['gemma3'] = json.dumps({
    'model_type': 'gemma3', 'architectures': ['Gemma3ForConditionalGeneration'],
    'text_config': inner, 'vision_config': {'hidden_size': 8}, 'mm_tokens_per_image': 4}).encode()
  assert set(texts) == set(choices.names(families.__name__))
  return texts


@functools.cache
def files() -> dict[str, bytes]:
  """A small Llama with its tensors."""
  config = pretrained_config()
  leaves = trees.flat(lm.abstract(Transformer(config)))
  kind, sources = np.dtype(np.float32), []
  for tensor in naming.tensors(leaves):
    shape = tensor.shape(leaves, config.heads)
    make = lambda shape=shape: np.full(shape, 0.5, np.float32)
    sources += [shards.Source(name, kind, shape, make) for name in tensor.names(leaves)]
  import tempfile
  with tempfile.TemporaryDirectory() as folder:
    for _ in shards.write(pathlib.Path(folder), sources, 2**30):
      pass
    weights = (pathlib.Path(folder) / tensors.SINGLE).read_bytes()
  return {'config.json': documents()['llama'], tensors.SINGLE: weights}


def pretrained_config():
  """Of the tensors."""
  return families.parse(json.loads(documents()['llama']))


def spoil(valid: dict[str, bytes], rng: random.Random) -> dict[str, bytes | None]:
  """config.json of some family."""
  del valid
  text = documents()[rng.choice(sorted(documents()))]
  return {'config.json': mutations.spoilt_json(text, rng)}


def read(folder: pathlib.Path, rng: random.Random) -> Any:
  """The config; of one in twenty the whole checkpoint."""
  config = pretrained.read_config(folder)
  if rng.random() < 0.05:
    pretrained.load(folder, progress=False)
  return config, config.windows
