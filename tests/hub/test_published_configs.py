"""config.json of real releases, as they stand on the hub: what they mean here, by hand."""

import pytest
import releases

from perl import trees
from perl.hub import families
from perl.models import lm
from perl.models.config import differences, sized
from perl.models.transformer import Transformer

COMMON = dict(initializer_range=0.02, use_cache=True)
LLAMA = dict(
  **COMMON, architectures=['LlamaForCausalLM'], model_type='llama', hidden_act='silu',
  num_key_value_heads=8, pretraining_tp=1, rms_norm_eps=1e-5, torch_dtype='bfloat16')
MISTRAL = dict(
  **COMMON, architectures=['MistralForCausalLM'], model_type='mistral', bos_token_id=1,
  eos_token_id=2, hidden_act='silu', hidden_size=4096, intermediate_size=14336,
  max_position_embeddings=32768, num_attention_heads=32, num_hidden_layers=32,
  num_key_value_heads=8, rms_norm_eps=1e-5, tie_word_embeddings=False, torch_dtype='bfloat16')
GEMMA = dict(
  **COMMON, attention_bias=False, attention_dropout=0.0, bos_token_id=2, eos_token_id=1,
  pad_token_id=0, head_dim=256, rms_norm_eps=1e-6)

RELEASES = {  # name: (config.json, our size or None, parameters, fields that differ from the size)
  'Llama-3.2-1B': (LLAMA | dict(
    attention_bias=False, attention_dropout=0.0, bos_token_id=128000, eos_token_id=128001,
    head_dim=64, hidden_size=2048, intermediate_size=8192, max_position_embeddings=131072,
    mlp_bias=False, num_attention_heads=32, num_hidden_layers=16, rope_theta=500000.0,
    rope_scaling={
      'factor': 32.0, 'high_freq_factor': 4.0, 'low_freq_factor': 1.0,
      'original_max_position_embeddings': 8192, 'rope_type': 'llama3'},
    tie_word_embeddings=True, transformers_version='4.45.0.dev0', vocab_size=128256,
  ), 'llama-3.2-1b', 1_235_814_400, {'max_positions'}),
  'Llama-2-7b-hf': (LLAMA | dict(
    _name_or_path='meta-llama/Llama-2-7b-hf', bos_token_id=1, eos_token_id=2, hidden_size=4096,
    intermediate_size=11008, max_position_embeddings=4096, num_attention_heads=32,
    num_hidden_layers=32, num_key_value_heads=32, rope_scaling=None, tie_word_embeddings=False,
    torch_dtype='float16', vocab_size=32000,
  ), 'llama-2-7b', 6_738_415_616, {'max_positions'}),
  'Mistral-7B-v0.1': (MISTRAL | dict(
    rope_theta=10000.0, sliding_window=4096, vocab_size=32000,
  ), 'mistral-7b', 7_241_732_096, {'max_positions'}),
  'Mistral-7B-v0.3': (MISTRAL | dict(
    attention_dropout=0.0, rope_theta=1000000.0, sliding_window=None, vocab_size=32768,
  ), 'mistral-7b', 7_248_023_552, {'max_positions', 'rope_theta', 'window', 'vocab_size'}),
  'Qwen2.5-1.5B': (dict(
    **COMMON, architectures=['Qwen2ForCausalLM'], attention_dropout=0.0, bos_token_id=151643,
    eos_token_id=151643, hidden_act='silu', hidden_size=1536, intermediate_size=8960,
    max_position_embeddings=131072, max_window_layers=28, model_type='qwen2',
    num_attention_heads=12, num_hidden_layers=28, num_key_value_heads=2, rms_norm_eps=1e-6,
    rope_theta=1000000.0, sliding_window=131072, tie_word_embeddings=True, torch_dtype='bfloat16',
    use_mrope=False, use_sliding_window=False, vocab_size=151936,
  ), 'qwen2.5-1.5b', 1_543_714_304, {'max_positions'}),
  'Qwen3-0.6B': (dict(
    **COMMON, architectures=['Qwen3ForCausalLM'], attention_bias=False, attention_dropout=0.0,
    bos_token_id=151643, eos_token_id=151645, head_dim=128, hidden_act='silu', hidden_size=1024,
    intermediate_size=3072, max_position_embeddings=40960, max_window_layers=28,
    model_type='qwen3', num_attention_heads=16, num_hidden_layers=28, num_key_value_heads=8,
    rms_norm_eps=1e-6, rope_scaling=None, rope_theta=1000000, sliding_window=None,
    tie_word_embeddings=True, torch_dtype='bfloat16', use_sliding_window=False, vocab_size=151936,
  ), 'qwen3-0.6b', 596_049_920, {'max_positions'}),
  'gemma-2b': (GEMMA | dict(
    architectures=['GemmaForCausalLM'], model_type='gemma', hidden_act='gelu', hidden_size=2048,
    intermediate_size=16384, max_position_embeddings=8192, num_attention_heads=8,
    num_hidden_layers=18, num_key_value_heads=1, rope_scaling=None, rope_theta=10000.0,
    torch_dtype='bfloat16', vocab_size=256000,
  ), 'gemma-2b', 2_506_172_416, set()),
  'gemma-2-2b': (GEMMA | dict(
    architectures=['Gemma2ForCausalLM'], model_type='gemma2', attn_logit_softcapping=50.0,
    cache_implementation='hybrid', final_logit_softcapping=30.0, hidden_act='gelu_pytorch_tanh',
    hidden_activation='gelu_pytorch_tanh', hidden_size=2304, intermediate_size=9216,
    max_position_embeddings=8192, num_attention_heads=8, num_hidden_layers=26,
    num_key_value_heads=4, query_pre_attn_scalar=256, rope_theta=10000.0, sliding_window=4096,
    torch_dtype='float32', vocab_size=256000,
  ), 'gemma-2-2b', 2_614_341_888, set()),
  'gemma-3-1b-it': (GEMMA | dict(
    architectures=['Gemma3ForCausalLM'], model_type='gemma3_text', attn_logit_softcapping=None,
    cache_implementation='hybrid', eos_token_id=[1, 106], final_logit_softcapping=None,
    hidden_activation='gelu_pytorch_tanh', hidden_size=1152, intermediate_size=6912,
    max_position_embeddings=32768, num_attention_heads=4, num_hidden_layers=26,
    num_key_value_heads=1, query_pre_attn_scalar=256, rope_local_base_freq=10000,
    rope_scaling=None, rope_theta=1000000, sliding_window=512, sliding_window_pattern=6,
    torch_dtype='bfloat16', vocab_size=262144,
  ), 'gemma-3-1b', 999_885_952, set()),
  'gemma-3-4b-it': (dict(
    architectures=['Gemma3ForConditionalGeneration'], model_type='gemma3', boi_token_index=255999,
    eoi_token_index=256000, eos_token_id=[1, 106], image_token_index=262144,
    initializer_range=0.02, mm_tokens_per_image=256, torch_dtype='bfloat16',
    text_config={
      'hidden_size': 2560, 'intermediate_size': 10240, 'model_type': 'gemma3_text',
      'num_hidden_layers': 34, 'rope_scaling': {'factor': 8.0, 'rope_type': 'linear'},
      'sliding_window': 1024},
    vision_config={'hidden_size': 1152, 'model_type': 'siglip_vision_model'},
  ), 'gemma-3-4b', 3_880_263_168, {'vocab_size'}),
  'gpt2': (dict(
    activation_function='gelu_new', architectures=['GPT2LMHeadModel'], attn_pdrop=0.1,
    bos_token_id=50256, embd_pdrop=0.1, eos_token_id=50256, initializer_range=0.02,
    layer_norm_epsilon=1e-5, model_type='gpt2', n_ctx=1024, n_embd=768, n_head=12, n_layer=12,
    n_positions=1024, resid_pdrop=0.1, summary_activation=None, summary_first_dropout=0.1,
    summary_proj_to_labels=True, summary_type='cls_index', summary_use_proj=True,
    task_specific_params={'text-generation': {'do_sample': True, 'max_length': 50}},
    vocab_size=50257,
  ), None, 124_439_808, set()),
  'pythia-160m': (dict(
    **COMMON, architectures=['GPTNeoXForCausalLM'], bos_token_id=0, eos_token_id=0,
    hidden_act='gelu', hidden_size=768, intermediate_size=3072, layer_norm_eps=1e-5,
    max_position_embeddings=2048, model_type='gpt_neox', num_attention_heads=12,
    num_hidden_layers=12, rotary_emb_base=10000, rotary_pct=0.25, tie_word_embeddings=False,
    torch_dtype='float16', use_parallel_residual=True, vocab_size=50304,
  ), None, 162_322_944, set()),
}


@pytest.mark.parametrize('name', RELEASES)
def test_a_release_has_its_parameters_and_our_options(name):
  about, size, parameters, apart = RELEASES[name]
  config = families.parse(about)
  assert trees.count(lm.abstract(Transformer(config))) == parameters
  if size:
    assert {d.split(':')[0] for d in differences(config, sized(size))} == apart


@pytest.mark.parametrize('name', [n for n in RELEASES if n != 'gemma-3-4b-it'])
def test_transformers_counts_the_same(name):
  about = dict(RELEASES[name][0])
  config = releases.transformers.AutoConfig.for_model(about.pop('model_type'), **about)
  with releases.torch.device('meta'):
    theirs = releases.transformers.AutoModelForCausalLM.from_config(config)
  assert theirs.num_parameters() == RELEASES[name][2]
