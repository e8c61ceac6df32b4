"""A GGUF file that is damaged, strange or dangerous is refused: expected, found, remedy."""

import random
import struct

import gguf
import gguf_files
import pytest

from perl.cli import convert
from perl.config.fields import ConfigError
from perl.hub import gguf_header, pretrained
from perl.hub.config_json import Unsupported
from perl.hub.tensors import CorruptTensors

DAMAGED = (CorruptTensors, Unsupported)


@pytest.fixture(scope='module')
def model():
  return gguf_files.make('llama', num_hidden_layers=1, tie_word_embeddings=True)


@pytest.fixture(scope='module')
def whole(model, tmp_path_factory):
  """The bytes of a good file."""
  file = tmp_path_factory.mktemp('gguf') / 'x.gguf'
  gguf_files.write(file, model, 'Q4_0')
  return file.read_bytes()


def load(file) -> None:
  """All that is asked of a header."""
  pretrained.read_config(file)
  pretrained.load_tokenizer(file)
  pretrained.stored_dtype(file)
  pretrained.load(file)


CHANGES = {  # what the file says besides -> what the error says
  'llama.expert_count': (4, 'llama.expert_count to be 0 .*found 4'),
  'llama.attention.clamp_kqv': (8.0, 'fields of llama that are known .*llama.attention.clamp_kqv'),
  'llama.rope.scaling.type': ('longrope', "none, linear or yarn .*found 'longrope'"),
  'llama.rope.scaling.yarn_log_multiplier': (0.1, 'rotary positions .*yarn_log_multiplier'),
  'llama.rope.scaling.factor': (2.0, "rotary positions .*found 'none'"),
  'split.count': (3, 'a model in one file, found .* a part of 3'),
  'general.type': ('adapter', "a model of an architecture among .*found 'adapter'"),
  'general.alignment': (33, 'general.alignment to be 1 or 2 .*found 33'),
  'tokenizer.ggml.pre': ('tiktoken-9', "tokenizer.ggml.pre among gpt-2.*found 'tiktoken-9'"),
  'tokenizer.ggml.model': ('t5', "tokenizer of kind 'gpt2' or 'llama' .*found 't5'"),
  'tokenizer.ggml.eos_token_id': (41, 'eos_token_id to be a whole number .*found 41'),
  'tokenizer.ggml.token_type': ([1, 1], 'types of 41 tokens .*found 2'),
  'tokenizer.ggml.tokens': (['!', '"', '!"', *['a'] * 38], 'tokens that differ .*found one twice'),
  'tokenizer.ggml.merges': (['a b c'], 'merges of two tokens into a third .*found'),
  'llama.block_count': (-1, 'block_count to be a whole number .*found -1'),
  'llama.embedding_length': ('wide', "embedding_length to be a whole number .*found 'wide'"),
  'llama.vocab_size': (7, 'llama.vocab_size to be 41 .*found 7'),
  'llama.rope.dimension_count': (4, 'dimension_count to be 8 .*found 4'),
}


@pytest.mark.parametrize('key', CHANGES)
def test_a_field_that_is_strange_is_named(tmp_path, model, key):
  value, match = CHANGES[key]

  def change(writer):
    kind = gguf.GGUFValueType.get_type(value)
    writer.kv_data[0].pop(key, None)
    writer.add_key_value(key, value, kind) if not isinstance(value, list) else writer.add_array(
      key, value)

  gguf_files.write(tmp_path / 'x.gguf', model, 'Q4_0', change=change)
  with pytest.raises(ValueError, match=match) as error:
    load(tmp_path / 'x.gguf')
  assert all(word in str(error.value) for word in ('expected', 'found', '; ', str(tmp_path)))


@pytest.mark.parametrize('change, match', [
  (lambda x: x[:3], 'found something of 4 bytes, more than there are'),
  (lambda x: b'GGML' + x[4:], "b'GGML' in the place of its first letters"),
  (lambda x: x[:4] + struct.pack('<I', 1) + x[8:], 'found version 1'),
  (lambda x: x[:4] + struct.pack('>I', 3) + x[8:], 'found a big-endian one'),
  (lambda x: x[:8] + struct.pack('<Q', 2**60) + x[16:], '1,152,921,504,606,846,976 tensors'),
  (lambda x: x[:16] + struct.pack('<Q', 2**60) + x[24:], '1,152,921,504,606,846,976 fields'),
  (lambda x: x[:24] + struct.pack('<Q', 2**62) + x[32:], 'something of 4,611,686,018,427,387,904'),
  (lambda x: x.replace(b'token_embd.weight', b'token_embd.height'), 'token_embd.weight'),
  (lambda x: x.replace(b'blk.0.attn_norm', b'blk.0.attn_nose'), 'found also blk.0.attn_nose'),
  (lambda x: x.replace(b'blk.0.ffn_norm', b'blk.7.ffn_norm'), 'expected a tensor'),
  (lambda x: x[:-33], 'whole blocks of'),
  (lambda x: x.replace(b'llama\x1a', b'llama\x1a').replace(b'\x05\0\0\0\0\0\0\0llama',
                                                           b'\x05\0\0\0\0\0\0\0rwkv7'),
   "found 'model' of 'rwkv7'"),
])
def test_a_file_that_is_damaged_is_named(tmp_path, whole, change, match):
  (tmp_path / 'x.gguf').write_bytes(change(whole))
  with pytest.raises(DAMAGED, match=match):
    load(tmp_path / 'x.gguf')


def test_a_count_of_a_list_reads_no_more_than_the_file(tmp_path):
  """The `gguf` package goes on for ever here: an element that is not there is 0 bytes long."""
  field = struct.pack('<Q', 1) + b'x' + struct.pack('<IIQ', 9, 0, 2**60)
  (tmp_path / 'x.gguf').write_bytes(b'GGUF' + struct.pack('<IQQ', 3, 0, 1) + field)
  with pytest.raises(CorruptTensors, match='more than there are'):
    gguf_header.read(tmp_path / 'x.gguf')


def test_any_change_of_a_header_ends_in_an_error_or_a_model(tmp_path, whole):
  """Files with a few bytes changed, cut or put in."""
  rng, end, refused = random.Random(0), whole.index(b'blk.0.ffn_norm'), 0
  file = tmp_path / 'x.gguf'
  for _ in range(800):
    content = bytearray(whole)
    for _ in range(rng.randint(1, 3)):
      place = rng.randrange(end)
      content[place : place + rng.choice((1, 1, 4))] = rng.choice(
        (bytes([rng.randrange(256)]), b'\xff' * 8, b'', b'\0'))
    file.write_bytes(content)
    try:
      pretrained.read_config(file)
      pretrained.load_tokenizer(file)
    except (ValueError, FileNotFoundError) as error:
      assert 'expected' in str(error), error
      refused += 1
  assert refused > 400


def test_what_cannot_be_written_or_found_is_told(tmp_path, whole):
  (tmp_path / 'x.gguf').write_bytes(whole)
  with pytest.raises(ConfigError, match="quantize='' for form=huggingface, found 'nf4'"):
    convert.as_folder(str(tmp_path / 'x.gguf'), str(tmp_path / 'out'), quantize='nf4')
  with pytest.raises(FileNotFoundError, match='expected a GGUF file .*found none'):
    pretrained.load(tmp_path / 'none.gguf')
  with pytest.raises(Unsupported, match="GGUF file for quantize='native', found"):
    pretrained.native(tmp_path)
