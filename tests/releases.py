"""Checkpoints as the hub has them: made on the spot by transformers, small and random."""

import functools

import jax
import numpy as np
import pytest

from perl.models import lm

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

V, PAD, POSITIONS = 41, 0, 112
SHAPE = dict(
  vocab_size=V, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
  num_key_value_heads=2, head_dim=6, max_position_embeddings=POSITIONS,
)
GPT2 = dict(vocab_size=V, n_embd=20, n_layer=2, n_head=4, n_positions=POSITIONS)
NEOX = dict(
  vocab_size=V, hidden_size=32, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
  max_position_embeddings=POSITIONS,
)
IDS = dict(bos_token_id=1, eos_token_id=2, pad_token_id=PAD)

CLASSES = {
  'llama': 'Llama', 'mistral': 'Mistral', 'qwen2': 'Qwen2', 'qwen3': 'Qwen3', 'gemma': 'Gemma',
  'gemma2': 'Gemma2', 'gemma3_text': 'Gemma3Text', 'gpt2': 'GPT2', 'gpt_neox': 'GPTNeoX',
}


def rope(kind: str, **options) -> dict:
  """rope_parameters, as transformers 5 writes them."""
  return dict(rope_parameters={'rope_type': kind, 'rope_theta': 10_000.0, **options})


def shape(family: str) -> dict:
  """The family's small shape."""
  return {'gpt2': GPT2, 'gpt_neox': NEOX}.get(family, SHAPE)


def make(family: str, seed: int = 0, noise: float = 0.2, kind: str = 'CausalLM', **options):
  """A random model of theirs, every parameter moved away from its init."""
  config = getattr(transformers, f'{CLASSES[family]}Config')(
    **{**shape(family), **IDS, **options}, attn_implementation='eager')
  torch.manual_seed(seed)
  model = getattr(transformers, f'AutoModelFor{kind}').from_config(config).eval()
  return noisy(model, noise)


def noisy(model, size: float, only: str = ''):
  """The model plus normal noise, in place."""
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      if only in name:
        parameter += size * torch.randn_like(parameter)
  return model


def rows(rows: int = 3, length: int = 12, seed: int = 0, padding: str = 'right'):
  """(tokens i32[rows, length], mask), rows of different lengths; no token is the pad."""
  rng = np.random.default_rng(seed)
  tokens = rng.integers(3, V, (rows, length)).astype(np.int32)
  lengths = np.linspace(length, 3, rows).astype(int)
  mask = np.arange(length) < lengths[:, None]
  if padding == 'left':
    mask = mask[:, ::-1].copy()
  return np.where(mask, tokens, PAD).astype(np.int32), mask


def _inputs(tokens, mask) -> dict:
  positions = np.maximum(mask.cumsum(-1) - 1, 0)
  return dict(
    input_ids=torch.tensor(tokens, dtype=torch.long), attention_mask=torch.tensor(mask).long(),
    position_ids=torch.tensor(positions),
  )


def logits(model, tokens, mask) -> np.ndarray:
  """What transformers computes: f32[B, T, V], or scores f32[B, 1] of a classifier."""
  with torch.no_grad():
    return model(**_inputs(tokens, mask)).logits.float().numpy()


def greedy(model, tokens, mask, count: int) -> np.ndarray:
  """The likeliest continuations by `generate`, i64[B, count]; nothing ends one."""
  with torch.no_grad():
    out = model.generate(
      torch.tensor(tokens, dtype=torch.long), attention_mask=torch.tensor(mask).long(),
      do_sample=False, max_new_tokens=count, eos_token_id=None, pad_token_id=PAD,
    )
  return out[:, tokens.shape[1]:].numpy()


def ours(model, base, adapter, tokens, mask) -> np.ndarray:
  """Our logits of the same."""
  return np.asarray(jax.jit(functools.partial(lm.logits, model))(base, adapter, tokens, mask))


def distance(found, expected, mask=None) -> float:
  """The largest difference over the largest of what is expected, where the mask counts."""
  keep = np.ones(np.shape(expected), bool) if mask is None else mask
  found, expected = np.asarray(found)[keep], np.asarray(expected)[keep]
  return float(np.abs(found - expected).max() / np.abs(expected).max())
