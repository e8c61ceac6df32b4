"""GGUF files: logits, tensors and tokens are those of transformers' own reading, in every type."""

import dataclasses

import gguf
import gguf_files
import jax
import numpy as np
import pytest
import releases
import tiny

from perl import trees
from perl.hub import gguf_header, gguf_tensors, pretrained, published
from perl.hub.config_json import Unsupported
from perl.quantized import NATIVE, scheme_of
from perl.train import sharding

transformers = releases.transformers
THEIRS = {'llama', 'qwen2', 'qwen3', 'gemma2', 'gemma3_text', 'gpt2'}
"""Families whose GGUF files transformers reads."""
CASES = {  # name: (family, type of the matrices, options)
  'llama': ('llama', 'Q4_1', dict(tie_word_embeddings=True)),
  'llama, biases, untied': ('llama', 'F32', dict(attention_bias=True, mlp_bias=True)),
  'qwen2': ('qwen2', 'Q8_0', dict(tie_word_embeddings=True)),
  'qwen2, untied': ('qwen2', 'BF16', {}),
  'qwen3': ('qwen3', 'Q5_0', dict(tie_word_embeddings=True)),
  'gemma': ('gemma', 'F32', {}),
  'gemma2': ('gemma2', 'Q5_1', {}),
  'gemma3': ('gemma3_text', 'Q4_0', {}),
  'gpt2': ('gpt2', 'F16', {}),
}


@pytest.fixture(scope='module', params=CASES)
def case(request, tmp_path_factory):
  """(the file, their model of it, whether the file was read by them)."""
  family, kind, options = CASES[request.param]
  file = tmp_path_factory.mktemp('gguf') / 'model.gguf'
  model = gguf_files.make(family, **options)
  gguf_files.write(file, model, kind)
  read = family in THEIRS and 'bias' not in request.param
  theirs = transformers.AutoModelForCausalLM.from_pretrained(
    file.parent, gguf_file=file.name, dtype='float32', attn_implementation='eager'
  ).eval() if read else model
  return file, theirs, read


def test_tensors_and_logits_are_those_of_transformers(case):
  """To the bit, and in float32; a folder made of the file is the same model, with its digest."""
  file, theirs, read = case
  entries = published.entries(file)
  state = {name: x.numpy() for name, x in theirs.state_dict().items()}
  for name, entry in entries.items():
    x = np.asarray(entry.read(name), np.float32)
    if read:
      np.testing.assert_array_equal(x, state[name], err_msg=name)
    else:  # one and Gemma's norms are rounded when they are added
      np.testing.assert_allclose(x, state[name], atol=1e-6, err_msg=name)
  model, base, _ = pretrained.load(file, dtype='float32')
  tokens, mask = releases.rows()
  expected = releases.logits(theirs, tokens, mask)
  assert releases.distance(releases.ours(model, base, {}, tokens, mask), expected, mask) < 1e-5


def test_a_folder_made_of_it_is_the_same_checkpoint(case, tmp_path):
  file, _, _ = case
  pretrained.publish(file, tmp_path / 'folder')
  folder = str(tmp_path / 'folder')
  assert pretrained.digest(folder) == pretrained.digest(file)
  assert pretrained.stored_dtype(folder) == pretrained.stored_dtype(file)
  assert pretrained.read_config(folder) == pretrained.read_config(file)
  ours, theirs = pretrained.load_tokenizer(file), pretrained.load_tokenizer(folder)
  assert (ours.digest, ours.special_tokens, ours.stop_ids) == (
    theirs.digest, theirs.special_tokens, theirs.stop_ids)
  read = transformers.AutoModelForCausalLM.from_pretrained(folder).state_dict()
  for name, entry in published.entries(file).items():
    np.testing.assert_array_equal(
      np.asarray(entry.read(name), np.float32), read[name].float().numpy(), err_msg=name)


@pytest.mark.parametrize('kind', [k for k in gguf_header.KINDS if '_' in k])
def test_every_type_of_blocks_is_read_as_the_library_reads_it(tmp_path, kind):
  """Random blocks: the library writes only some types. One of the scales is a float16."""
  number = gguf.GGMLQuantizationType[kind]
  block, width = gguf.GGML_QUANT_SIZES[number]
  rng = np.random.default_rng(0)
  content = rng.integers(0, 60, (6, 2 * width)).astype(np.uint8)  # no exponent is the largest
  writer = gguf.GGUFWriter(tmp_path / 'x.gguf', 'llama')
  writer.add_tensor('output.weight', content, raw_dtype=number)
  for step in ('header', 'kv_data', 'tensors'):
    getattr(writer, f'write_{step}_to_file')()
  writer.close()
  place = gguf_header.read(tmp_path / 'x.gguf').tensors['output.weight']
  assert (place.kind, place.shape) == (kind, (6, 2 * block))
  x = gguf_tensors.read_place(gguf_header.read(tmp_path / 'x.gguf').file, 'output.weight', place)
  assert x.dtype == np.float32 and np.isfinite(x).all() and np.abs(x).max() > 0
  np.testing.assert_array_equal(x, gguf.dequantize(content, number))


@pytest.mark.parametrize('scaling, rope', [
  ({}, {}),
  (dict(type='linear', factor=4.0), releases.rope('linear', factor=4.0)),
  (dict(type='yarn', factor=4.0, original_context_length=32),
   releases.rope('yarn', factor=4.0, original_max_position_embeddings=32)),
  ('llama3', releases.rope(
    'llama3', rope_theta=5e5, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=8192)),
])
def test_scaled_positions_are_those_of_the_published_config(tmp_path, scaling, rope):
  """transformers' own reading leaves them out; Llama 3's are a tensor of factors."""
  theirs = gguf_files.make('llama', **rope)

  def change(writer):
    if scaling == 'llama3':
      freqs = theirs.model.rotary_emb
      plain = 5e5 ** (-np.arange(0, 8, 2) / 8)
      writer.add_tensor('rope_freqs.weight', np.float32(plain / freqs.inv_freq.numpy()))
      return
    for name, value in scaling.items():
      add = writer.add_string if isinstance(value, str) else (
        writer.add_uint32 if isinstance(value, int) else writer.add_float32)
      add(f'llama.rope.scaling.{name}', value)

  gguf_files.write(tmp_path / 'x.gguf', theirs, change=change)
  theirs.save_pretrained(tmp_path / 'folder')
  ours = pretrained.read_config(tmp_path / 'x.gguf')
  expected = pretrained.read_config(tmp_path / 'folder')
  assert dataclasses.replace(ours, norm_eps=expected.norm_eps) == expected  # a float32 in the file


@pytest.mark.parametrize('family, kind, tag', [
  ('llama', 'Q4_0', 'int4-32'), ('llama', 'Q4_1', 'uint4-32'), ('gpt2', 'Q8_0', 'int8-32')])
def test_blocks_are_taken_as_they_lie(tmp_path, family, kind, tag, optimized):
  """Equal to the numbers that the library makes of them, to the bit, in every program."""
  file = tmp_path / 'x.gguf'
  gguf_files.write(file, gguf_files.make(family), kind)
  _, base, _ = pretrained.load(file, quantize=NATIVE)
  _, dense, _ = pretrained.load(file)
  assert scheme_of(base).tag == tag == pretrained.native(file).tag
  numbers = trees.flat(dense)
  values = jax.jit(lambda tree: {n: x.dequantize() for n, x in tree.items()})
  quantized = {n: x for n, x in trees.flat(base).items() if trees.is_leaf(x)}
  for name, x in values(quantized).items():
    np.testing.assert_array_equal(x, numbers[name], err_msg=name)
    np.testing.assert_array_equal(quantized[name].dequantize(), numbers[name], err_msg=name)
  assert len(quantized) == (7 if family == 'llama' else 6)
  assert published.apart(file, base) == 0.0
  if kind == 'Q4_1':
    mesh = sharding.mesh(data=2, fsdp=2, tensor=2)
    tiny.equal(pretrained.load(file, quantize=NATIVE, mesh=mesh)[1], base)


@pytest.mark.parametrize('kind, match', [
  ('Q5_0', 'expected a GGUF file whose layers.*found .* of Q5_0'), ('F16', 'of F16')])
def test_blocks_that_are_not_ours_are_refused_by_name(tmp_path, kind, match):
  gguf_files.write(tmp_path / 'x.gguf', gguf_files.make('llama'), kind)
  with pytest.raises(Unsupported, match=match):
    pretrained.load(tmp_path / 'x.gguf', quantize=NATIVE)
