"""Logits are those of transformers' own models, weights copied over by hand."""

import functools

import jax
import numpy as np
import pytest
import tiny

from perl import trees
from perl.models import lm

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

LENGTHS = [10, 7, 1, 4]
SHAPE = dict(
  vocab_size=tiny.V, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
  num_attention_heads=2, num_key_value_heads=1, head_dim=8, rms_norm_eps=1e-6,
  max_position_embeddings=32, tie_word_embeddings=True,
  rope_parameters={'rope_type': 'default', 'rope_theta': 10_000.0},
)
GEMMA2 = dict(
  attn_logit_softcapping=5.0, final_logit_softcapping=3.0, query_pre_attn_scalar=16,
  sliding_window=4, layer_types=['sliding_attention', 'full_attention'], hidden_activation='gelu_pytorch_tanh',
)
MODELS = {  # name: (transformers' class, its options beside SHAPE, ours)
  'llama': ('Llama', {}, {}),
  'untied': ('Llama', dict(tie_word_embeddings=False), {}),
  'mistral': ('Mistral', dict(sliding_window=3), {}),
  'qwen2': ('Qwen2', {}, {}),
  'qwen3': ('Qwen3', {}, {}),
  'gemma': ('Gemma', dict(hidden_act='gelu_pytorch_tanh'), {}),
  'gemma2': ('Gemma2', GEMMA2, dict(query_scale=0.25)),
  'gpt2': ('GPT2', dict(
    n_embd=16, n_layer=2, n_head=2, n_inner=24, n_positions=32, layer_norm_epsilon=1e-6), {}),
  'neox': ('GPTNeoX', dict(
    layer_norm_eps=1e-6, tie_word_embeddings=False, rope_parameters={
      'rope_type': 'default', 'rope_theta': 10_000.0, 'partial_rotary_factor': 0.25}), {}),
}


def theirs(name):
  """A random model of theirs, every parameter moved away from its init."""
  family, options, _ = MODELS[name]
  shape = {'vocab_size': tiny.V} if name == 'gpt2' else SHAPE
  config = getattr(transformers, f'{family}Config')(
    **{**shape, **options}, attn_implementation='eager')
  torch.manual_seed(0)
  model = transformers.AutoModelForCausalLM.from_config(config).eval()
  with torch.no_grad():
    for parameter in model.parameters():
      parameter += 0.2 * torch.randn_like(parameter)
  return model


def read(state, name, path):
  """Our parameter of that path, [L, ...] in layers, from their state dict."""
  get = lambda key: np.asarray(state[key])
  weight = lambda key: get(key).T if get(key).ndim == 2 else get(key)
  if not path.startswith('layers/'):
    return {
      'embed/embedding': lambda: get(FIXED[name]['embedding']),
      'embed/positions': lambda: get('transformer.wpe.weight'),
      'embed/lm_head/kernel': lambda: get(FIXED[name]['head']).T,
      'final_norm/scale': lambda: get(FIXED[name]['norm'] + '.weight'),
      'final_norm/bias': lambda: get(FIXED[name]['norm'] + '.bias'),
    }[path]()
  module, leaf = path.removeprefix('layers/block/').rsplit('/', 1)
  leaf = 'bias' if leaf == 'bias' else 'weight'
  source = FIXED[name]['modules'][module]
  source, part = source if isinstance(source, tuple) else (source, None)
  prefix = FIXED[name]['layer']
  layers = [f'{prefix}.{i}.{source}.{leaf}' for i in range(2)]
  if name == 'gpt2':  # Conv1D: [in, out] already, q, k, v side by side
    stack = np.stack([get(key) for key in layers])
    return stack if part is None else np.split(stack, 3, -1)[part]
  stack = np.stack([weight(key) for key in layers])
  if part is None:
    return stack
  heads = stack.reshape(*stack.shape[:-1], 2, 3, 8)[..., part, :]  # NeoX: q, k, v of each head
  return heads.reshape(*stack.shape[:-1], 16)


LLAMA = dict(
  embedding='model.embed_tokens.weight', head='lm_head.weight', norm='model.norm',
  layer='model.layers', modules={
    **{f'attn/{n}': f'self_attn.{n}_proj' for n in 'qkvo'},
    **{f'attn/{n}_norm': f'self_attn.{n}_norm' for n in 'qk'},
    **{f'mlp/{n}': f'mlp.{n}_proj' for n in ('gate', 'up', 'down')},
    'attn_norm': 'input_layernorm', 'mlp_norm': 'post_attention_layernorm',
  },
)
FIXED = dict.fromkeys(('llama', 'untied', 'mistral', 'qwen2', 'qwen3', 'gemma'), LLAMA)
FIXED['gemma2'] = {**LLAMA, 'modules': {
  **LLAMA['modules'], 'attn_post_norm': 'post_attention_layernorm',
  'mlp_norm': 'pre_feedforward_layernorm', 'mlp_post_norm': 'post_feedforward_layernorm',
}}
FIXED['gpt2'] = dict(
  embedding='transformer.wte.weight', norm='transformer.ln_f', layer='transformer.h', modules={
    **{f'attn/{n}': ('attn.c_attn', i) for i, n in enumerate('qkv')}, 'attn/o': 'attn.c_proj',
    'mlp/up': 'mlp.c_fc', 'mlp/down': 'mlp.c_proj', 'attn_norm': 'ln_1', 'mlp_norm': 'ln_2',
  },
)
FIXED['neox'] = dict(
  embedding='gpt_neox.embed_in.weight', head='lm_head.weight', norm='gpt_neox.final_layer_norm',
  layer='gpt_neox.layers', modules={
    **{f'attn/{n}': ('attention.query_key_value', i) for i, n in enumerate('qkv')},
    'attn/o': 'attention.dense', 'mlp/up': 'mlp.dense_h_to_4h', 'mlp/down': 'mlp.dense_4h_to_h',
    'attn_norm': 'input_layernorm', 'mlp_norm': 'post_attention_layernorm',
  },
)


@pytest.mark.parametrize('name', MODELS)
def test_logits_are_those_of_transformers(name):
  model, base = tiny.make(name, **MODELS[name][2])
  other = theirs(name)
  state = {key: value.detach().numpy() for key, value in other.state_dict().items()}
  base = trees.nest({path: read(state, name, path) for path in trees.flat(base)})
  shapes = jax.tree.map(lambda x: x.shape, lm.abstract(model))
  assert jax.tree.map(np.shape, base) == shapes
  tokens, mask = np.asarray(tiny.tokens()), np.asarray(tiny.right_mask(LENGTHS))
  found = np.asarray(jax.jit(functools.partial(lm.logits, model))(base, {}, tokens, mask))
  with torch.no_grad():
    expected = other(
      input_ids=torch.tensor(tokens, dtype=torch.long), attention_mask=torch.tensor(mask).long()
    ).logits.numpy()
  scale = np.abs(expected[mask]).max()
  np.testing.assert_allclose(found[mask] / scale, expected[mask] / scale, atol=1e-4)
