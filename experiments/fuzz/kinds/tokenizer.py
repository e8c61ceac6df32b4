"""Tokenizers: tokenizer.json, vocab.json with merges.txt, a SentencePiece model; their settings."""

import functools
import io
import json
import pathlib
import random
import tempfile
from typing import Any

from experiments.fuzz import _mutations as mutations
from perl.data.text import tokenizer as tokenizers
from perl.data.text import tokenizer_files

SHARE = 15

_TEXTS = ('an oat latte please <|user|> \n 12 naïve\u00a0cafés', '', ' ', 'a' * 300,
          '\0\ufffd<s></s>')
_SIDES = {
  'tokenizer_config.json': {
    'tokenizer_class': 'PreTrainedTokenizerFast', 'bos_token': '<|bos|>', 'eos_token': {
      '__type': 'AddedToken', 'content': '<|eos|>', 'lstrip': False}, 'pad_token': '<|pad|>',
    'add_bos_token': True, 'legacy': False, 'chat_template': '{{ messages }}',
    'added_tokens_decoder': {'1': {'content': '<|bos|>', 'special': True, 'lstrip': False}}},
  'special_tokens_map.json': {'eos_token': '<|eos|>', 'unk_token': '<|eos|>'},
  'added_tokens.json': {'<|bos|>': 1},
}


@functools.cache
def _vocabularies() -> dict[str, dict[str, bytes]]:
  """The three forms of a vocabulary."""
  import sentencepiece

  with tempfile.TemporaryDirectory() as folder:
    tokenizers.train_bpe(['an oat latte'] * 4, 270).save(folder)
    text = (pathlib.Path(folder) / 'tokenizer.json').read_bytes()
  model = json.loads(text)['model']
  pairs = [pair if isinstance(pair, str) else ' '.join(pair) for pair in model['merges']]
  pieces = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(['an oat latte please', 'one tea'] * 9), model_writer=pieces,
    vocab_size=300, hard_vocab_limit=False, minloglevel=2, model_type='bpe', byte_fallback=True)
  return {
    'json': {'tokenizer.json': text},
    'bytes': {'vocab.json': json.dumps(model['vocab']).encode(),
              'merges.txt': '\n'.join(['#version: 0.2', *pairs]).encode()},
    'pieces': {'tokenizer.model': pieces.getvalue()},
  }


@functools.cache
def files() -> dict[str, bytes]:
  """A tokenizer.json alone: it has all."""
  return {**_vocabularies()['json'], 'tokenizer_config.json': json.dumps(
    _SIDES['tokenizer_config.json']).encode()}


def spoil(valid: dict[str, bytes], rng: random.Random) -> dict[str, bytes | None]:
  """Some form of a vocabulary with some of the files beside it, one of them spoilt."""
  form = rng.choice(['json', 'json', 'json', 'bytes', 'pieces'])
  there = dict(_vocabularies()[form])
  side = dict(_SIDES['tokenizer_config.json'])
  if form != 'json':
    side |= {'tokenizer_class': 'GPT2Tokenizer' if form == 'bytes' else 'LlamaTokenizer'}
  if form == 'pieces':
    side |= {'bos_token': '<s>', 'eos_token': '</s>', 'pad_token': None, 'added_tokens_decoder': {
      '1': {'content': '<s>', 'special': True}, '300': {'content': '<x>', 'special': True}}}
  there['tokenizer_config.json'] = json.dumps(side).encode()
  for name in ('special_tokens_map.json', 'added_tokens.json'):
    if rng.random() < 0.2:
      there[name] = json.dumps(_SIDES[name]).encode()
      if name == 'added_tokens.json':
        there['tokenizer_config.json'] = json.dumps(
          {k: v for k, v in side.items() if k != 'added_tokens_decoder'}).encode()
  there |= mutations.spoilt_one(there, rng)
  return dict.fromkeys(valid.keys() - there.keys()) | there


def read(folder: pathlib.Path, rng: random.Random) -> Any:
  """Ids of texts and their way back; now and then what is published of it."""
  tokenizer = tokenizers.load(folder)
  ids = tokenizer.encode_batch(_TEXTS)
  tokenizer.encode_with_offsets(_TEXTS[0])
  texts = [tokenizer.decode(row) for row in ids]
  tokenizer.decode([0, 1, 5, 10**6, tokenizer.vocab_size - 1], skip_special=False)
  assert tokenizer.vocab_size <= 2**24, tokenizer.vocab_size
  assert all(0 <= i < tokenizer.vocab_size for row in ids for i in row)
  if rng.random() < 0.1:
    with tempfile.TemporaryDirectory() as out:
      tokenizer.publish(out)
      tokenizer_files.read(pathlib.Path(out))
  return texts
