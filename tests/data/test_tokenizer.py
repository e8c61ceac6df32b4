"""Tokenizers: round trips, special tokens, identity; published formats; errors."""

import hashlib
import json
import re

import checkpoints
import pytest

from perl.data.text import sentence_piece
from perl.data.text import tokenizer as tokenizers
from perl.data.text.dialogue import SPECIAL_TOKENS
from perl.data.text.tokenizer_files import Added

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


def test_digits_that_are_split_are_the_same_tokens_everywhere():
  texts = ['27+8=35 pears, 1234 nails, room27'] * 9
  made, plain = (tokenizers.train_bpe(texts, 320, split_digits=split) for split in (True, False))
  assert made.decode(made.encode(texts[0])) == texts[0]
  digits = [made.encode(digit)[0] for digit in '27']
  for text in ('27', 'x 27', 'room27', '270', '0027'):
    ids = made.encode(text)
    assert digits == [i for i in ids if made.decode([i]) in ('2', '7')]
  assert len(made.encode('1234')) == 4 > len(plain.encode(' 1234'))


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
  config = {'eos_token': {'content': '<|agent|>'}, 'pad_token': '<|api|>'}
  (tmp_path / 'tokenizer_config.json').write_text(json.dumps(config))
  loaded = tokenizers.load(tmp_path)
  assert loaded.eos_id == loaded.encode('<|agent|>')[0] and loaded.bos_id == 1
  assert loaded.pad_id == loaded.encode('<|api|>')[0]


def test_a_bos_of_null_is_none(trained, tmp_path):
  trained.save(tmp_path)
  (tmp_path / 'tokenizer_config.json').write_text('{"bos_token": null, "add_bos_token": true}')
  loaded = tokenizers.load(tmp_path)
  assert not loaded.adds_bos and loaded.bos_id == loaded.eos_id == 2
  assert 'bos_token' not in loaded.special_tokens
  assert loaded.digest != trained.digest


def test_the_older_file_says_what_the_newer_one_lacks(trained, tmp_path):
  trained.save(tmp_path)
  (tmp_path / 'tokenizer_config.json').write_text('{"pad_token": "<|api|>"}')
  older = {'pad_token': '<|user|>', 'eos_token': {'content': '<|agent|>'}, 'unk_token': '?'}
  (tmp_path / 'special_tokens_map.json').write_text(json.dumps(older))
  assert tokenizers.load(tmp_path).special_tokens == {
    'pad_token': '<|api|>', 'eos_token': '<|agent|>', 'unk_token': '?', 'bos_token': '<|bos|>'}


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
  with pytest.raises(ValueError, match='model to be an object in .*tokenizer.json, found 1'):
    tokenizers.load(tmp_path)
  (tmp_path / 'broken.model').write_bytes(b'no model')
  with pytest.raises(ValueError, match='broken.model.*check the file'):
    tokenizers.load(tmp_path / 'broken.model')
  path = trained.save(tmp_path / 'ours')
  path.with_name('tokenizer_config.json').write_text('{"eos_token": "<stop>"}')
  with pytest.raises(ValueError, match="end-of-sequence token .*found '<stop>'"):
    tokenizers.load(path)


# --- Published checkpoints

PUBLISHED = [
  'tea with milk', 'an oat latte ', '☕🏽 naïve\n\n tea', '', '<|im_start|>user\nmilk<|im_end|>\n',
  '<s>tea</s>an', '<bos><start_of_turn>user\nan oat<end_of_turn>\n', '<|endoftext|>x',
  '<|start_header_id|>user<|end_header_id|>\n\n12<|eot_id|>', 'a<unk>b']


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  """A maker of the folder of a style, each made once."""
  root, made = tmp_path_factory.mktemp('styles'), {}

  def folder(style):
    if style not in made:
      made[style] = checkpoints.STYLES[style](root / style)
    return made[style]

  return folder


def auto(folder):
  transformers = pytest.importorskip('transformers')
  transformers.logging.set_verbosity_error()
  return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize('style', checkpoints.STYLES)
def test_ids_and_texts_are_those_of_transformers(style, folders):
  theirs, ours = auto(folders(style)), tokenizers.load(folders(style))
  ids = theirs(PUBLISHED, add_special_tokens=False)['input_ids']
  assert ours.encode_batch(PUBLISHED) == ids
  for row in ids:
    for skip in (True, False):
      assert ours.decode(row, skip) == theirs.decode(row, skip_special_tokens=skip)
  assert ours.vocab_size == len(theirs)
  assert ours.eos_id == theirs.eos_token_id
  assert ours.bos_id == (ours.eos_id if theirs.bos_token is None else theirs.bos_token_id)
  assert ours.chat_template == theirs.chat_template


@pytest.mark.parametrize('style, adds_bos', [
  ('llama3', True), ('qwen2', False), ('gpt2', False), ('neox', False), ('gpt2_of_old', False),
  ('llama2', True), ('gemma', True), ('llama2_converted', True), ('gemma_converted', True)])
def test_bos_comes_first_where_transformers_puts_it(style, adds_bos, folders):
  theirs, ours = auto(folders(style)), tokenizers.load(folders(style))
  opening = [ours.bos_id] if ours.adds_bos else []
  for text in ('tea with milk', 'x'):
    assert theirs(text)['input_ids'] == opening + ours.encode(text)
  assert ours.adds_bos is adds_bos


@pytest.mark.parametrize('style', checkpoints.STYLES)
def test_a_saved_copy_is_the_same_to_us_and_to_transformers(style, folders, tmp_path):
  ours = tokenizers.load(folders(style))
  ours.save(tmp_path)
  again = tokenizers.load(tmp_path)
  same = ('digest', 'adds_bos', 'chat_template', 'special_tokens', 'vocab_size', 'bos_id', 'eos_id',
          'pad_id')
  for name in same:
    assert getattr(again, name) == getattr(ours, name), name
  assert again.encode_batch(PUBLISHED) == ours.encode_batch(PUBLISHED)
  assert auto(tmp_path)(PUBLISHED)['input_ids'] == auto(folders(style))(PUBLISHED)['input_ids']
  for file in folders(style).iterdir():
    assert file.name == 'tokenizer.json' or (
      (tmp_path / file.name).read_bytes() == file.read_bytes()), file.name


@pytest.mark.parametrize('style', ['llama3', 'qwen2', 'gpt2', 'llama2', 'gemma'])
@pytest.mark.parametrize('said', [True, False])
def test_the_config_has_the_first_word_on_bos(style, said, tmp_path):
  folder = checkpoints.STYLES[style](tmp_path / style, add_bos_token=said)
  # Qwen2 has no bos that could be added.
  assert tokenizers.load(folder).adds_bos is (said and style != 'qwen2')


def test_a_model_without_a_word_adds_the_bos_that_it_has(tmp_path):
  folder = checkpoints.llama2(tmp_path / 'a', add_bos_token=None)
  assert tokenizers.load(folder).adds_bos
  (folder / 'tokenizer_config.json').unlink()
  bare = tokenizers.load(folder)
  assert bare.adds_bos and (bare.bos_id, bare.eos_id, bare.vocab_size) == (1, 2, 320)
  assert not tokenizers.load(checkpoints.llama2(tmp_path / 'b', bos_token=None,
                                                add_bos_token=None)).adds_bos


def test_ours_add_bos_and_only_its_absence_is_in_the_digest(trained, tmp_path):
  trained.save(tmp_path)
  config = json.loads((tmp_path / 'tokenizer_config.json').read_text())
  digests = []
  for said in (None, True, False):
    (tmp_path / 'tokenizer_config.json').write_text(json.dumps(config | {'add_bos_token': said}))
    loaded = tokenizers.load(tmp_path)
    assert loaded.adds_bos is (said is not False)
    digests.append(loaded.digest)
  assert trained.adds_bos and digests[0] == digests[1] == trained.digest != digests[2]


def test_the_digest_of_ours_is_of_the_file_and_three_ids(trained, tmp_path):
  content = trained.save(tmp_path).read_bytes()
  assert trained.digest == hashlib.sha256(content + b'[1, 2, 0]').hexdigest()


@pytest.mark.parametrize('newer', [True, False])
def test_added_tokens_of_a_model_are_single_ids(newer, tmp_path):
  folder = checkpoints.llama2(tmp_path / 'a')
  config = json.loads((folder / 'tokenizer_config.json').read_text())
  if not newer:
    del config['added_tokens_decoder']
    (folder / 'tokenizer_config.json').write_text(json.dumps(config))
    (folder / 'added_tokens.json').write_text('{"<|im_start|>": 320, "<|im_end|>": 321}')
  loaded = tokenizers.load(folder)
  text = '<s>an oat<|im_start|> tea<|im_end|>\n'
  ids = loaded.encode(text)
  assert (ids[0], ids.count(320), ids.count(321), loaded.vocab_size) == (1, 1, 1, 322)
  assert loaded.decode(ids, skip_special=False) == text
  kept = '' if newer else '<|im_start|>', '' if newer else '<|im_end|>'  # these are not special
  assert loaded.decode(ids).lstrip() == f'an oat{kept[0]} tea{kept[1]}\n'
  (folder / 'tokenizer_config.json').unlink()
  (folder / 'added_tokens.json').unlink(missing_ok=True)
  assert tokenizers.load(folder).digest != loaded.digest


def test_the_space_before_what_follows_an_added_token(tmp_path):
  now = tokenizers.load(checkpoints.llama2(tmp_path / 'a'))
  once = tokenizers.load(checkpoints.llama2(tmp_path / 'b', legacy=True))
  assert once.encode('tea</s>milk') == [*now.encode('tea'), 2, *now.encode('milk')]
  assert now.encode('tea</s> milk') == once.encode('tea</s>milk') != now.encode('tea</s>milk')
  for loaded in (now, once):
    for text in ('tea</s>milk', 'tea</s> milk'):
      assert loaded.decode(loaded.encode(text), skip_special=False) == text
  assert now.digest != once.digest


def test_an_added_token_swallows_the_space_that_it_says(tmp_path):
  plain = checkpoints.added(**{'<x>': 320})
  strips = {'320': plain['320'] | {'lstrip': True, 'rstrip': True}}
  taken = tokenizers.load(checkpoints.llama2(tmp_path / 'a', added_tokens_decoder=strips))
  left = tokenizers.load(checkpoints.llama2(tmp_path / 'b', added_tokens_decoder=plain))
  assert taken.encode('an \n<x>  tea') == left.encode('an<x>tea') != left.encode('an \n<x>  tea')


@pytest.mark.parametrize('style', checkpoints.STYLES)
def test_ids_that_no_token_has_are_empty(style, folders):
  loaded = tokenizers.load(folders(style))
  ids = loaded.encode('tea')
  for skip in (True, False):
    assert loaded.decode([-1, *ids, loaded.vocab_size, 10**9], skip) == loaded.decode(ids, skip)
    assert loaded.decode([loaded.vocab_size], skip) == ''


def test_a_gap_between_the_ids_is_empty(tmp_path):
  tokens = checkpoints.added(**{'<x>': 330})
  loaded = tokenizers.load(checkpoints.llama2(tmp_path / 'a', added_tokens_decoder=tokens))
  assert loaded.vocab_size == 331
  assert loaded.decode([325, 330, 326], skip_special=False) == '<x>'


@pytest.mark.parametrize('style', checkpoints.STYLES)
def test_offsets_cover_a_text_in_order(style, folders):
  loaded = tokenizers.load(folders(style))
  for text in PUBLISHED:
    ids, offsets = loaded.encode_with_offsets(text)
    assert ids == loaded.encode(text) and len(offsets) == len(ids)
    covered = {i for begin, end in offsets for i in range(begin, end)}
    assert covered == set(range(len(text)))
    assert offsets == sorted(offsets)


def test_offsets_of_bytes_and_added_tokens(folders):
  # '☕' is three bytes here, of which each covers the character.
  ids, offsets = tokenizers.load(folders('gemma')).encode_with_offsets('tea<eos>☕')
  assert ids[-4] == 1 and offsets[-4:] == [(3, 8), (8, 9), (8, 9), (8, 9)]
  ids, offsets = tokenizers.load(folders('llama2')).encode_with_offsets('☕<|im_end|>')
  assert offsets == [(0, 0), (0, 1), (0, 1), (0, 1), (1, 11)]  # the first is the space before
  # The post-processor of this file trims; ours do not.
  ids, offsets = tokenizers.load(folders('gpt2')).encode_with_offsets('an oat')
  assert offsets[0] == (0, 2) and offsets[1][0] == 2


@pytest.mark.parametrize('written, expected', [
  ({'chat_template': 'a'}, 'a'),
  ({'chat_template': [{'name': 'tool_use', 'template': 'b'},
                      {'name': 'default', 'template': 'c'}]}, 'c'),
  ({'chat_template': [{'name': 'tool_use', 'template': 'b'}]}, None), ({}, None)])
def test_where_chat_templates_are(written, expected, trained, tmp_path):
  trained.save(tmp_path)
  config = json.loads((tmp_path / 'tokenizer_config.json').read_text()) | written
  (tmp_path / 'tokenizer_config.json').write_text(json.dumps(config))
  (tmp_path / 'additional_chat_templates').mkdir()
  (tmp_path / 'additional_chat_templates/rag.jinja').write_text('d')
  assert tokenizers.load(tmp_path).chat_template == expected
  (tmp_path / 'chat_template.jinja').write_text('{{ 1 }}\n')
  assert tokenizers.load(tmp_path).chat_template == '{{ 1 }}\n'
  assert trained.chat_template is None


def test_files_of_a_checkpoint_that_are_wrong(tmp_path, folders):
  folder = checkpoints.llama2(tmp_path / 'a', added_tokens_decoder={'x': {}})
  with pytest.raises(ValueError, match="an id .*tokenizer_config.json, found 'x'; save"):
    tokenizers.load(folder)
  (folder / 'tokenizer_config.json').write_text('[1]')
  with pytest.raises(ValueError, match='expected a JSON object in .*, found .1.; save'):
    tokenizers.load(folder)
  (folder / 'tokenizer_config.json').write_text('{')
  with pytest.raises(ValueError, match='expected a JSON object in .*found .*Expecting'):
    tokenizers.load(folder)
  old = checkpoints.gpt2_of_old(tmp_path / 'b', tokenizer_class='Qwen2Tokenizer')
  with pytest.raises(ValueError, match='found Qwen2Tokenizer; save the tokenizer with'):
    tokenizers.load(old)
  far = checkpoints.added(**{'<x>': 500})
  old = checkpoints.gpt2_of_old(tmp_path / 'c', added_tokens_decoder=far)
  with pytest.raises(ValueError, match="added token '<x>' to get the id 500; found 301"):
    tokenizers.load(old)
  (old / 'merges.txt').unlink()
  with pytest.raises(FileNotFoundError, match='vocab.json and merges.txt'):
    tokenizers.load(old)


@pytest.mark.parametrize('lowercase', [False, True])
def test_a_tokenizer_of_ours_is_published_with_its_ids_and_its_bos(tmp_path, lowercase):
  transformers = pytest.importorskip('transformers')
  texts = ['an Oat latte, please', '<|user|>two teas<|agent|>', ' spaces  and\nlines ', 'é ü 日本']
  ours = tokenizers.train_bpe(texts * 4, 300, lowercase=lowercase)
  ours.save(tmp_path / 'stage')
  tokenizers.load(tmp_path / 'stage').publish(tmp_path)  # as a job would
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
  again = tokenizers.load(tmp_path)
  for text in texts:
    assert theirs(text)['input_ids'] == [ours.bos_id, *ours.encode(text)]
    assert again.encode(text) == ours.encode(text)
  assert (theirs.bos_token_id, theirs.eos_token_id) == (ours.bos_id, ours.eos_id)
  assert again.adds_bos and (again.bos_id, again.eos_id, again.pad_id) == (
    ours.bos_id, ours.eos_id, ours.pad_id)


# --- Files of strangers


@pytest.fixture
def spoilt(trained, tmp_path):
  """(the folder of a tokenizer, a function that changes one of its files)."""
  trained.save(tmp_path)

  def change(name, edit):
    fields = json.loads((tmp_path / name).read_text())
    edit(fields)
    (tmp_path / name).write_text(json.dumps(fields))

  return tmp_path, change


@pytest.mark.parametrize('name, edit', [
  ('tokenizer.json', lambda f: f['model']['vocab'].update(x=2**31)),
  ('tokenizer.json', lambda f: f['model']['vocab'].update(x=-1)),
  ('tokenizer.json', lambda f: f['model'].update(vocab={'a': 'b'})),
  ('tokenizer.json', lambda f: f['added_tokens'][0].update(id=2**40)),
  ('tokenizer.json', lambda f: f.update(added_tokens=[5])),
  ('tokenizer.json', lambda f: f.update(model=None)),
  ('tokenizer_config.json', lambda f: f.update(bos_token=1.5)),
  ('tokenizer_config.json', lambda f: f.update(eos_token={'content': [2]})),
  ('tokenizer_config.json', lambda f: f.update(eos_token={})),
  ('tokenizer_config.json', lambda f: f.update(chat_template=7)),
  ('tokenizer_config.json', lambda f: f.update(chat_template=[{'name': 'default'}])),
  ('tokenizer_config.json', lambda f: f.update(tokenizer_class={})),
  ('tokenizer_config.json', lambda f: f.update(add_bos_token='yes')),
  *(('tokenizer_config.json', lambda f, x=x: f.update(added_tokens_decoder=x)) for x in (
    {str(2**40): {'content': 'a'}}, {'1': {'content': 'a', 'special': 3}}, {'1': {}}, [1])),
])
def test_a_field_of_another_type_or_size_is_named(name, edit, spoilt):
  folder, change = spoilt
  change(name, edit)
  with pytest.raises(ValueError, match=f'(?s)expected .*{name}.*found'):
    tokenizers.load(folder)


def test_a_panic_of_the_library_is_an_error_that_names_the_file(spoilt, capfd):
  """Its regular expressions stop after so many steps; the library then ends its thread."""
  folder, change = spoilt
  cut = {'type': 'Split', 'pattern': {'Regex': '(a+)+!'}, 'behavior': 'Isolated', 'invert': False}
  change('tokenizer.json', lambda f: f.update(pre_tokenizer=cut))
  tokenizer = tokenizers.load(folder)
  with pytest.raises(ValueError, match='tokenizer.json has ids for; found PanicException'):
    tokenizer.encode('a' * 40 + ' b')
  capfd.readouterr()


def test_tokens_that_swallow_white_space_are_found_as_ever_in_linear_time():
  both = {'<a>': Added(1, strips_left=True, strips_right=True), '<b>': Added(2, strips_left=True),
          '<c>': Added(3)}
  slow = re.compile(r'\s*<a>\s*|\s*<b>|<c>')
  pattern = sentence_piece._any_of(both)
  spans = lambda compiled, text: [match.span() for match in compiled.finditer(text)]
  for text in ('  <a>  <b>\n<b><c> <c>', ' <a><a> <b> ', '<b> \t<a>', 'x <c>  y<b>', '   '):
    assert spans(pattern, text) == spans(slow, text), text
  assert spans(pattern, ' ' * 10**6 + 'x') == []  # n^2 steps of the other
