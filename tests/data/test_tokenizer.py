"""Tokenizers: round trips, special tokens, identity; published formats; errors."""

import json

import pytest

from perl.data import tokenizer as tokenizers
from perl.data.dialogue import SPECIAL_TOKENS

TEXTS = ['an oat latte please', '{"get_menu_items":{"query":"latte"}}',
         'naïve 抹茶 ☕🏽 \x00\t\n  x '] * 3
DIALOGUE = '<|user|>an oat latte<|agent|>{"a":{}}<|eos|><|api|>{"b":1}<|agent|>ok<|eos|>'


@pytest.fixture(scope='module')
def trained():
  return tokenizers.train_bpe([*TEXTS, DIALOGUE], 320)


@pytest.mark.parametrize('text', [*TEXTS[:3], '', ' ', 'unseen: ßø𝔘 ', '< |user|>'])
def test_every_string_round_trips(trained, text):
  assert trained.decode(trained.encode(text)) == text


def test_markers_are_single_ids_and_may_be_left_out(trained):
  ids = trained.encode(DIALOGUE)
  assert trained.decode(ids, skip_special=False) == DIALOGUE
  assert trained.decode(ids) == 'an oat latte{"a":{}}{"b":1}ok'
  assert ids[0] == trained.encode('<|user|>')[0] and len(trained.encode('<|user|>')) == 1
  assert ids[-1] == trained.eos_id


def test_prompt_and_response_meet_at_a_token_boundary(trained):
  cut = DIALOGUE.index('{"b"')
  assert trained.encode(DIALOGUE[:cut]) + trained.encode(DIALOGUE[cut:]) == trained.encode(DIALOGUE)


def test_a_batch_is_encoded_as_its_texts_are(trained):
  texts = [*TEXTS, DIALOGUE, DIALOGUE, '']
  whole = trained._backend._tokenizer.encode_batch(texts, add_special_tokens=False)
  assert trained.encode_batch(texts) == [encoding.ids for encoding in whole]


def test_a_lowercase_vocabulary_reads_all_case_alike(tmp_path):
  made = tokenizers.train_bpe([*TEXTS, DIALOGUE.upper(), DIALOGUE], 400, lowercase=True)
  made.save(tmp_path)
  for tokenizer in (made, tokenizers.load(tmp_path)):
    assert tokenizer.encode('An OAT Latte<|eos|>') == tokenizer.encode('an oat latte<|eos|>')
    text = '<|user|>Grüße, Ärzte!<|eos|>'
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids, skip_special=False) == text.lower()
    whole = tokenizer._backend._tokenizer.encode_batch([text] * 2, add_special_tokens=False)
    assert [e.ids for e in whole] == tokenizer.encode_batch([text] * 2) == [ids, ids]


def test_special_ids_and_size(trained):
  assert (trained.pad_id, trained.bos_id, trained.eos_id) == (0, 1, 2)
  ids = [trained.encode(token) for token in SPECIAL_TOKENS]
  assert ids == [[3], [4], [5]]
  assert trained.vocab_size <= 320


def test_training_spends_no_merge_on_markers():
  plain = tokenizers.train_bpe(['<|user|>'] * 50, 400)
  assert plain.vocab_size == 3 + len(SPECIAL_TOKENS) + 256


def test_training_is_deterministic_and_the_digest_tells_vocabularies_apart(trained):
  again = tokenizers.train_bpe([*TEXTS, DIALOGUE], 320)
  other = tokenizers.train_bpe([*TEXTS, DIALOGUE], 300)
  assert again.digest == trained.digest != other.digest
  assert len(trained.digest) == 64


def test_save_and_load(trained, tmp_path):
  path = trained.save(tmp_path / 'tokenizer')
  assert path.name == 'tokenizer.json'
  for source in (path, tmp_path / 'tokenizer'):
    loaded = tokenizers.load(source)
    assert loaded.digest == trained.digest
    assert loaded.encode(DIALOGUE) == trained.encode(DIALOGUE)
    assert loaded.vocab_size == trained.vocab_size


def test_a_vocabulary_without_bos_and_pad_uses_eos(trained, tmp_path):
  path = trained.save(tmp_path)
  names = {'<|pad|>': 'p', '<|bos|>': 'b', '<|eos|>': '</s>'}
  text = path.read_text()
  for ours, theirs in names.items():
    text = text.replace(json.dumps(ours), json.dumps(theirs))
  path.write_text(text)
  (tmp_path / 'tokenizer_config.json').unlink()
  loaded = tokenizers.load(path)
  assert loaded.bos_id == loaded.pad_id == loaded.eos_id == 2


def test_tokenizer_config_names_the_special_tokens(trained, tmp_path):
  trained.save(tmp_path)
  config = {'eos_token': {'content': '<|agent|>'}, 'bos_token': None, 'pad_token': '<|api|>'}
  (tmp_path / 'tokenizer_config.json').write_text(json.dumps(config))
  loaded = tokenizers.load(tmp_path)
  assert loaded.eos_id == loaded.encode('<|agent|>')[0] and loaded.bos_id == 1
  assert loaded.pad_id == loaded.encode('<|api|>')[0]


def test_padding_and_truncation_of_a_published_file_are_ignored(trained, tmp_path):
  path = trained.save(tmp_path)
  settings = json.loads(path.read_text())
  settings['truncation'] = {'direction': 'Right', 'max_length': 2, 'strategy': 'LongestFirst',
                            'stride': 0}
  path.write_text(json.dumps(settings))
  assert tokenizers.load(path).encode(DIALOGUE) == trained.encode(DIALOGUE)


def test_sentencepiece(tmp_path):
  sentencepiece = pytest.importorskip('sentencepiece')
  (tmp_path / 'corpus.txt').write_text('\n'.join(['an oat latte please', 'one more tea'] * 20))
  sentencepiece.SentencePieceTrainer.train(
    input=str(tmp_path / 'corpus.txt'), model_prefix=str(tmp_path / 'unigram'), vocab_size=40,
    hard_vocab_limit=False, user_defined_symbols=list(SPECIAL_TOKENS), minloglevel=2)
  loaded = tokenizers.load(tmp_path / 'unigram.model')
  ids = loaded.encode('<|user|>an oat latte<|agent|>')
  assert loaded.decode(ids).strip() == 'an oat latte'
  assert '<|agent|>' in loaded.decode(ids, skip_special=False)
  assert loaded.decode([loaded.bos_id, *ids, loaded.eos_id], skip_special=False).endswith('</s>')
  assert (loaded.bos_id, loaded.eos_id, loaded.pad_id) == (1, 2, 2)  # this model has no pad
  loaded.save(tmp_path / 'copy')
  assert tokenizers.load(tmp_path / 'copy').digest == loaded.digest


def test_errors(tmp_path, trained):
  with pytest.raises(ValueError, match='expected vocab_size >= 262 .*found 100'):
    tokenizers.train_bpe(TEXTS, 100)
  with pytest.raises(FileNotFoundError, match='expected a tokenizer.json'):
    tokenizers.load(tmp_path / 'nowhere')
  (tmp_path / 'tokenizer.json').write_text('{"model": 1}')
  with pytest.raises(ValueError, match='tokenizer.json.*check the file'):
    tokenizers.load(tmp_path)
  (tmp_path / 'broken.model').write_bytes(b'no model')
  with pytest.raises(ValueError, match='broken.model.*check the file'):
    tokenizers.load(tmp_path / 'broken.model')
  path = trained.save(tmp_path / 'ours')
  path.with_name('tokenizer_config.json').write_text('{"eos_token": "<stop>"}')
  with pytest.raises(ValueError, match="end-of-sequence token .*found '<stop>'"):
    tokenizers.load(path)
