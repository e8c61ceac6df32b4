"""Tokenizers of GGUF files: ids of the published tokenizers, of SentencePiece, of transformers."""

import json
import pathlib
import tempfile

import gguf
import gguf_files
import pytest
import releases
import sentencepiece
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from perl.data.text import tokenizer
from perl.hub import gguf_config, gguf_header, gguf_tokenizer, pretrained

transformers = releases.transformers
TEMPLATE = "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] }}</s>{% endfor %}"
BASE = ['<pad>', '<s>', '</s>', '<unk>']
CORPUS = [
  "It's 12,345 dollars; they'll pay in 2024.\n\n1. First\n\n2. Second", 'def f():\n    return  x\n',
  "DON'T shout -- we've   seen héllo wörld, Ωmega and 日本語 😀 before", 'a\tb\t\tc  \r\n\r\nnext',
] * 20
TEXTS = [
  *CORPUS[:4], '', ' ', '   12', 'x\n\n1. y', '½ ² ٣٤', 'naïve café', '<s>user\nhi</s>', '1 <s> 2',
  '\u00a0\u2003wide', 'I\'LL we\'D', '😀😀 👩‍👩‍👧', 'ﬁ ①', 'aaaa' * 30,
  '中文。 English', '\x00\x07',
]
ALPHABET = st.text(st.sampled_from(' \n\tab1é日▁.\'<>s/😀'), max_size=24)
ONE, THREE = r'\p{N}', r'\p{N}{1,3}'
_WORDS = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r'|\s*[\r\n]+|\s+(?!\S)|\s+')
BYTES = dict(add_prefix_space=False)


def _split(digits):
  return [pre_tokenizers.Split(tokenizers.Regex(_WORDS.replace('DIGITS', digits)), 'isolated'),
          pre_tokenizers.ByteLevel(**BYTES, use_regex=False)]


PUBLISHED = {  # name in the file -> (how the published tokenizer.json cuts, transformers knows it)
  'gpt-2': ([pre_tokenizers.ByteLevel(**BYTES)], True),
  'smollm': ([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(**BYTES)],
             False),
  'llama-bpe': (_split(THREE), True),
  'qwen2': (_split(ONE), True),
}


def write(file, fields) -> None:
  """A GGUF file with a tokenizer alone."""
  writer = gguf.GGUFWriter(file, 'llama')
  fields(writer)
  for name, i in (('bos', 1), ('eos', 2), ('unk', 3), ('pad', 0)):
    getattr(writer, f'add_{name}_token_id')(i)
  writer.add_chat_template(TEMPLATE)
  for step in ('header', 'kv_data', 'tensors'):
    getattr(writer, f'write_{step}_to_file')()
  writer.close()


def read(file, architecture='llama'):
  """(the tokenizer of ours, its files)."""
  header = gguf_header.read(file)
  files = gguf_tokenizer.files(header, architecture)
  return tokenizer.of(files, header.file, (2,)), files


@pytest.fixture(scope='module', params=PUBLISHED)
def byte_level(request, tmp_path_factory):
  """(name, the published tokenizer, the file)."""
  cuts, known = PUBLISHED[request.param]
  published = tokenizers.Tokenizer(models.BPE())
  published.pre_tokenizer = pre_tokenizers.Sequence(cuts)
  published.decoder = decoders.ByteLevel()
  published.normalizer = normalizers.NFC() if request.param == 'qwen2' else None
  published.train_from_iterator(CORPUS, trainers.BpeTrainer(
    vocab_size=420, special_tokens=[*BASE, '<think>'], show_progress=False,
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
  model = json.loads(published.to_str())['model']
  tokens = sorted(model['vocab'], key=model['vocab'].get)

  def fields(writer):
    writer.add_tokenizer_model('gpt2')
    writer.add_tokenizer_pre(request.param)
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 4 + [4] + [1] * (len(tokens) - 5))
    writer.add_token_merges([' '.join(merge) for merge in model['merges']])
    writer.add_add_bos_token(False)

  file = tmp_path_factory.mktemp('gguf') / 'model.gguf'
  write(file, fields)
  return known, published, file


def test_a_byte_level_one_cuts_words_as_published(byte_level):
  known, published, file = byte_level
  ours, files = read(file)
  for text in [*TEXTS, 'x <think> y']:
    assert ours.encode(text) == published.encode(text, add_special_tokens=False).ids, text
    assert ours.decode(ours.encode(text), skip_special=False) == (
      published.normalizer.normalize_str(text) if published.normalizer else text)
  assert ours.chat_template == TEMPLATE and not ours.adds_bos and ours.stop_ids == (2,)
  assert ours.special_tokens == dict(
    zip(('pad_token', 'bos_token', 'eos_token', 'unk_token'), BASE))
  if known:
    theirs = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    for text in TEXTS:
      assert ours.encode(text) == theirs(text)['input_ids'], text
    assert theirs.chat_template == TEMPLATE
  check_folder(ours, files)


def check_folder(ours, files) -> None:
  """A folder with the files is the same tokenizer, to transformers too."""
  with tempfile.TemporaryDirectory() as folder:
    for name, content in files.items():
      (pathlib.Path(folder) / name).write_bytes(content)
    assert pretrained.load_tokenizer(folder).digest == ours.digest
    (pathlib.Path(folder) / 'config.json').write_text('{"model_type": "llama"}')
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
      bos = [ours.bos_id] if ours.adds_bos else []
      assert theirs(text)['input_ids'] == bos + ours.encode(text), text
    turns = [{'role': 'user', 'content': 'hi'}]
    assert theirs.apply_chat_template(turns, tokenize=False) == '<s>user\nhi</s>'
    assert theirs.eos_token == '</s>' and theirs.pad_token == '<pad>'


@pytest.fixture(scope='module')
def pieces(tmp_path_factory):
  """SentencePiece's own, with a dummy space and without; {name: (processor, file)}."""
  folder, made = tmp_path_factory.mktemp('pieces'), {}
  for name, dummy in (('llama', True), ('gemma3', False)):
    prefix = str(folder / name)
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(CORPUS), model_prefix=prefix, model_type='bpe', vocab_size=420,
      byte_fallback=True, add_dummy_prefix=dummy, remove_extra_whitespaces=False,
      normalization_rule_name='identity', pad_id=0, bos_id=1, eos_id=2, unk_id=3, pad_piece='<pad>',
      user_defined_symbols=['\n', '\n\n', '▁▁', '▁▁▁', '<b>'], character_coverage=1.0,
      minloglevel=3)
    processor = sentencepiece.SentencePieceProcessor(model_file=f'{prefix}.model')
    count = processor.vocab_size()
    kinds = [6 if processor.is_byte(i) else 3 if processor.is_control(i) else 2 if (
      processor.is_unknown(i)) else 4 if 4 <= i < 9 else 1 for i in range(count)]
    tokens = [processor.id_to_piece(i) for i in range(count)]
    spelled = [t.replace('▁', ' ') if kind == 4 else t for t, kind in zip(tokens, kinds)]

    def fields(writer, spelled=spelled, kinds=kinds, processor=processor):
      writer.add_tokenizer_model('llama')
      writer.add_tokenizer_pre('default')
      writer.add_token_list(spelled)
      writer.add_token_scores([processor.get_score(i) for i in range(len(spelled))])
      writer.add_token_types(kinds)

    (folder / f'{name}_file').mkdir()
    write(folder / f'{name}_file' / 'model.gguf', fields)
    made[name] = processor, read(folder / f'{name}_file' / 'model.gguf', name)
  return made


@pytest.mark.parametrize('name', ['llama', 'gemma3'])
def test_a_sentence_piece_one_has_its_ids(pieces, name):
  """Of a text that opens with a space transformers and ours put no second one before it."""
  processor, (ours, files) = pieces[name]

  @settings(max_examples=300, deadline=None)
  @given(ALPHABET)
  def check(text):
    if any(token in text for token in ('<s>', '</s>')) or (
        name == 'llama' and (text[:1] in ' ▁\n' or text.startswith('<b>'))):
      return
    assert ours.encode(text) == processor.encode(text), text

  check()
  assert ours.adds_bos and max(ours.encode('\n  \n   <b>')) < ours.vocab_size == 420
  check_folder(ours, files)


def test_an_id_that_ends_a_turn_is_a_stop(tmp_path):
  """llama.cpp has up to three of them."""
  more = lambda writer: (writer.add_eot_token_id(5), writer.add_eom_token_id(5))
  gguf_files.write(tmp_path / 'x.gguf', gguf_files.make('qwen2', num_hidden_layers=1), change=more)
  assert pretrained.load_tokenizer(tmp_path / 'x.gguf').stop_ids == (2, 5)
  header = gguf_header.read(tmp_path / 'x.gguf')
  assert gguf_config.config_json(header)['eos_token_id'] == [2, 5]
