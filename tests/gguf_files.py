"""GGUF files made on the spot, as llama.cpp's converter writes them, by the package `gguf`."""

import gguf
import numpy as np
import releases

ARCHITECTURES = {'gemma3_text': 'gemma3'}
WIDTH = 32
"""A block of most types: the widths of the models are multiples of it."""

SHAPE = dict(hidden_size=WIDTH, intermediate_size=64, num_attention_heads=4, num_key_value_heads=2,
             head_dim=8)
SHAPES = {  # what transformers' own reading does not ask the file for has to be its default
  'gpt2': dict(n_embd=WIDTH, n_positions=1024),
  'qwen3': SHAPE | dict(head_dim=128, num_attention_heads=2, num_key_value_heads=1),
  **{f'gemma{n}': SHAPE | dict(
    head_dim=256, num_attention_heads=2, num_key_value_heads=1, sliding_window=3,
    query_pre_attn_scalar=256) for n in ('2', '3_text')},
  'gemma3_text': SHAPE | dict(
    head_dim=256, num_attention_heads=2, num_key_value_heads=1, sliding_window=3,
    num_hidden_layers=6),
}


def make(family: str, **options):
  """A model of theirs whose widths are whole blocks."""
  return releases.make(family, **{**SHAPES.get(family, SHAPE), **options})


def plain_tokens(writer: gguf.GGUFWriter, count: int = releases.V) -> None:
  """A byte-level vocabulary with one merge."""
  names = ['<pad>', '<s>', '</s>', *(chr(33 + i) for i in range(count - 4)), '!"']
  writer.add_tokenizer_model('gpt2')
  writer.add_tokenizer_pre('gpt-2')
  writer.add_token_list(names)
  writer.add_token_types([3] * 3 + [1] * (count - 3))
  writer.add_token_merges(['! "'])
  for add, i in ((writer.add_bos_token_id, 1), (writer.add_eos_token_id, 2),
                 (writer.add_pad_token_id, 0)):
    add(i)


def write(file, model, kind: str = 'F32', tokens=plain_tokens, change=lambda writer: None) -> None:
  """The file of a model.

  Args:
    file: its path.
    model: of transformers.
    kind: the type of its matrices; norms, biases and positions are F32.
    tokens: adds a tokenizer to a writer.
    change: adds more.
  """
  config, family = model.config, model.config.model_type
  architecture = ARCHITECTURES.get(family, family)
  writer = gguf.GGUFWriter(file, architecture)
  _fields(writer, config, architecture)
  tokens(writer)
  change(writer)
  layers = config.num_hidden_layers
  number = next(k for k, v in gguf.MODEL_ARCH_NAMES.items() if v == architecture)
  names = gguf.get_tensor_name_map(number, layers)
  tied = {'lm_head.weight'} if config.tie_word_embeddings else set()
  for name, tensor in model.state_dict().items():
    if name in tied:
      continue
    x = _turned(name, tensor.numpy(), family, config)
    theirs = names.get_name(name, try_suffixes=('.weight', '.bias'))
    kept = x.ndim == 1 or 'wpe' in name
    _add(writer, theirs, x, 'F32' if kept else kind)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()


def _fields(writer, config, architecture: str) -> None:
  writer.add_block_count(config.num_hidden_layers)
  writer.add_embedding_length(config.hidden_size)
  writer.add_head_count(config.num_attention_heads)
  if architecture == 'gpt2':
    writer.add_context_length(config.n_positions)
    writer.add_feed_forward_length(config.n_inner or 4 * config.n_embd)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)
    return
  writer.add_context_length(config.max_position_embeddings)
  writer.add_feed_forward_length(config.intermediate_size)
  writer.add_head_count_kv(config.num_key_value_heads)
  writer.add_key_length(config.head_dim)
  writer.add_value_length(config.head_dim)
  writer.add_layer_norm_rms_eps(config.rms_norm_eps)
  rope = config.rope_parameters
  writer.add_rope_freq_base(rope.get('full_attention', rope)['rope_theta'])
  if architecture == 'llama':
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_dimension_count(config.head_dim)
  if architecture in ('gemma2', 'gemma3'):
    writer.add_sliding_window(config.sliding_window)
  if architecture == 'gemma2':
    writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    writer.add_final_logit_softcapping(config.final_logit_softcapping)


def _turned(name: str, x: np.ndarray, family: str, config) -> np.ndarray:
  """What convert_hf_to_gguf.py does to a tensor."""
  if family == 'llama' and '.q_proj.' in name or family == 'llama' and '.k_proj.' in name:
    heads = config.num_attention_heads if '.q_proj.' in name else config.num_key_value_heads
    halves = x.reshape(heads, 2, x.shape[0] // heads // 2, *x.shape[1:])
    return halves.swapaxes(1, 2).reshape(x.shape)
  if family.startswith('gemma') and name.endswith('norm.weight'):
    return x + 1
  conv = family == 'gpt2' and name.endswith(
    ('c_attn.weight', 'c_proj.weight', 'c_fc.weight'))
  return x.T if conv else x


def _add(writer, name: str, x: np.ndarray, kind: str) -> None:
  x, number = np.ascontiguousarray(x, np.float32), gguf.GGMLQuantizationType[kind]
  if kind == 'F32':
    writer.add_tensor(name, x)
  else:
    writer.add_tensor(name, gguf.quantize(x, number), raw_dtype=number)
