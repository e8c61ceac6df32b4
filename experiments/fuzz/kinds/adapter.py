"""Adapters in PEFT's format: adapter_config.json, perl.json, their tensors, and how these fit."""

import functools
import json
import pathlib
import random
import tempfile
from typing import Any

import jax
import numpy as np

from experiments.fuzz import _mutations as mutations
from experiments.fuzz.kinds import safetensors
from perl.hub import adapters as peft_format
from perl.models import lm
from perl.models.config import sized
from perl.models.transformer import Transformer
from perl.peft import adapters

SHARE = 10

_METHODS = {'lora': dict(rank=2, alpha=4.0), 'dora': dict(rank=2, alpha=4.0), 'vera': dict(rank=2),
            'ia3': {}, 'lntuning': {}, 'prompt': {}, 'prefix': {}}
_PATTERNS = {'rank_pattern': {r'.*\.0\..*q_proj': 2, 'o_proj': 2}, 'alpha_pattern': {'q_proj': 4}}


@functools.cache
def _base() -> tuple[Any, Any]:
  model = Transformer(sized('nano', vocab_size=48, layers=2, width=16, heads=2, kv_heads=1,
                            head_dim=8, mlp_width=24))
  return model.config, lm.init(model, jax.random.key(0))


@functools.cache
def _saved() -> dict[str, dict[str, bytes]]:
  """{method: the files of an adapter}."""
  config, base = _base()
  folders = {}
  for name, options in _METHODS.items():
    options = dict(targets=('attn/(q|o)',), **options) if name in ('lora', 'dora', 'vera', 'ia3'
                                                                   ) else options
    tree = adapters.init(jax.random.key(1), base, name, head=name == 'lora', **options)
    with tempfile.TemporaryDirectory() as scratch:
      folder = pathlib.Path(scratch) / 'a'
      peft_format.save(folder, tree, base, heads=config.heads, base_digest='d' * 64)
      files = {file.name: file.read_bytes() for file in folder.iterdir()}
    if name == 'lora':
      about = json.loads(files[peft_format.CONFIG]) | _PATTERNS
      files[peft_format.CONFIG] = json.dumps(about).encode()
    folders[name] = files
  return folders


def files() -> dict[str, bytes]:
  """LoRA with patterns and a head."""
  return _saved()['lora']


def spoil(valid: dict[str, bytes], rng: random.Random) -> dict[str, bytes | None]:
  """An adapter of some method with a document spoilt."""
  there = dict(_saved()[rng.choice(sorted(_saved()))])
  if rng.random() < 0.25:
    there[peft_format.WEIGHTS] = safetensors.spoilt_file(there[peft_format.WEIGHTS], rng)
  else:
    documents = [name for name in there if name.endswith('.json')]
    there |= mutations.spoilt_one(there, rng, sorted(documents))
  return dict.fromkeys(valid.keys() - there.keys()) | there


def read(folder: pathlib.Path, rng: random.Random) -> Any:
  """The adapter over a small base."""
  del rng
  config, base = _base()
  peft_format.inspect(folder)
  return peft_format.load(folder, base, heads=config.heads, base_digest='d' * 64)


def check(folder: pathlib.Path, value: Any) -> None:
  """Numbers are finite, as those of the tensors are."""
  del folder
  assert all(np.isfinite(np.asarray(x)).all() for x in jax.tree.leaves(value)), 'not finite'
