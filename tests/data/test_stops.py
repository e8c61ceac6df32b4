"""What ends a response: read from a checkpoint's files, kept by every copy, written for others."""

import json

import checkpoints
import pytest
from letters import BOS, EOS, Letters

from perl.data.batches.encoding import encode
from perl.data.examples import Demonstration
from perl.data.text import chat, tokenizer_files
from perl.data.text import tokenizer as tokenizers

IM_END, ENDOFTEXT = '<|im_end|>', '<|endoftext|>'


def folder(path, generation=None, config=None, **tokenizer):
  """A checkpoint with ChatML, whose eos is that of its base, and these eos_token_ids."""
  checkpoints.qwen2(path, chat_template=checkpoints.CHATML, eos_token=ENDOFTEXT, **tokenizer)
  for name, value in (('generation_config.json', generation), ('config.json', config)):
    if value is not None:
      (path / name).write_text(json.dumps({'eos_token_id': value, 'temperature': 0.6}))
  return path


def ids(loaded, *tokens):
  return tuple(loaded.encode(token)[0] for token in tokens)


@pytest.mark.parametrize('generation, config, expected', [
  (None, None, ()), ([7, 9], None, (7, 9)), (7, None, (7,)), (None, [7, 9], (7, 9)),
  ([7], [8, 9], (7,)), (-1, 5, ()), (None, -1, ())])
def test_all_ids_of_the_files_end_a_response(tmp_path, generation, config, expected):
  loaded = tokenizers.load(folder(tmp_path / 'a', generation, config))
  assert loaded.stop_ids == (loaded.eos_id, *expected)
  _, chatting = chat.of(loaded)
  assert chatting.stop_ids == (*ids(loaded, IM_END, ENDOFTEXT), *expected)
  assert loaded.stop_ids == (loaded.eos_id, *expected)  # and this one stays as it was


def test_a_null_leaves_the_word_to_the_other_file(tmp_path):
  place = folder(tmp_path / 'a', config=[7])
  (place / 'generation_config.json').write_text('{"eos_token_id": null}')
  assert tokenizer_files.stops(place) == (7,)


@pytest.mark.parametrize('name', ['generation_config.json', 'config.json'])
@pytest.mark.parametrize('value', ['2', [2.0], True, {'a': 1}])
def test_what_is_no_id_is_refused(tmp_path, name, value):
  place = folder(tmp_path / 'a')
  (place / name).write_text(json.dumps({'eos_token_id': value}))
  with pytest.raises(ValueError, match=f'eos_token_id to be .* in .*{name}, found .*repair'):
    tokenizers.load(place)


@pytest.mark.parametrize('generation, config', [([7, 9], None), (None, [7, 9])])
def test_a_copy_stops_at_the_same(tmp_path, generation, config):
  loaded = tokenizers.load(folder(tmp_path / 'a', generation, config))
  loaded.save(tmp_path / 'b')
  assert tokenizers.load(tmp_path / 'b').stop_ids == loaded.stop_ids


@pytest.mark.parametrize('special', [True, False])
@pytest.mark.parametrize('generation', [None, [7, 9]])
def test_what_is_published_stops_where_training_did(tmp_path, special, generation):
  transformers = pytest.importorskip('transformers')
  place = folder(tmp_path / 'a', generation)
  if special:
    (place / 'special_tokens_map.json').write_text(json.dumps({'eos_token': ENDOFTEXT}))
  _, chatting = chat.of(tokenizers.load(place))
  chatting.publish(tmp_path / 'b')
  stops = [*ids(chatting, IM_END, ENDOFTEXT), *(generation or ())]
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / 'b')
  assert theirs.eos_token == IM_END and theirs.eos_token_id == stops[0]
  about = transformers.GenerationConfig.from_pretrained(tmp_path / 'b')
  assert about.eos_token_id == stops
  assert about.temperature == (0.6 if generation else about.temperature)
  again = chat.of(tokenizers.load(tmp_path / 'b'))[1]
  assert (again.eos_id, {*again.stop_ids}) == (chatting.eos_id, {*stops})


def test_ids_that_say_the_same_stay_as_they_were(tmp_path):
  loaded = tokenizers.load(folder(tmp_path / 'a', [7, 9]))
  eos = [9, loaded.eos_id, 7]
  assert loaded.special_ids({'eos_token_id': eos, 'pad_token_id': 3, 'bos_token_id': None}) == {
    'eos_token_id': eos, 'pad_token_id': 3, 'bos_token_id': loaded.bos_id}
  plain = tokenizers.load(folder(tmp_path / 'b'))
  assert plain.special_ids({})['eos_token_id'] == plain.eos_id
  assert plain.special_ids({'eos_token_id': 7})['eos_token_id'] == plain.eos_id


# --- A pad that has no row in the embedding


def test_a_pad_beyond_the_embedding_is_stood_in_for(tmp_path):
  special = ('<s>', '</s>', '<pad>')
  loaded = tokenizers.load(checkpoints.byte_level(tmp_path / 'a', special, {
    'bos_token': '<s>', 'eos_token': '</s>', 'pad_token': '<pad>'}))
  rows = loaded.vocab_size - 1
  assert loaded.pad_id == rows and loaded.within(rows + 1) is loaded
  narrow = loaded.within(rows)
  assert (narrow.pad_id, narrow.vocab_size, narrow.digest) == (loaded.eos_id, rows, loaded.digest)
  assert narrow.encode('tea') == loaded.encode('tea')
  for ask in (narrow.encode, narrow.encode_with_offsets, lambda x: narrow.encode_pairs([('a', x)])):
    with pytest.raises(ValueError, match="found '<pad>', which has no row in its embedding"):
      ask('tea<pad>')
  assert narrow.decode([rows]) == ''
  with pytest.raises(ValueError, match=f"at most {rows - 1} tokens .*'</s>', '<pad>' beyond them"):
    loaded.within(rows - 1)
  narrow.publish(tmp_path / 'b')  # as it was read
  assert tokenizers.load(tmp_path / 'b').pad_id == rows


def test_a_response_that_ends_otherwise_gets_no_eos():
  letters = Letters(stop_ids=(EOS, 10))
  said = [Demonstration('b', 'ba'), Demonstration('b', 'ab')]
  rows, _ = encode(said, letters, kind='demonstration', max_prompt_tokens=4, max_response_tokens=4)
  assert [row['tokens'].tolist() for row in rows] == [[BOS, 11, 11, 10], [BOS, 11, 10, 11, EOS]]
