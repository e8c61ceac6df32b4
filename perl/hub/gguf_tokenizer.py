"""The tokenizer of a GGUF file as Hugging Face's files: tokenizer.json, tokenizer_config.json, ...

`tokenizer.ggml.model` is 'gpt2', a byte-level BPE with its merges, or 'llama', a SentencePiece BPE
whose merges follow from the pieces and their scores. How a byte-level one cuts words is told by
name in `tokenizer.ggml.pre` (llama.cpp: src/llama-vocab.cpp). What the name stands for here is what
the published tokenizer.json of those models has; transformers' own reading of GGUF knows fewer
names, and cuts by GPT-2's pattern where it knows none: SmolLM's digits then join with the white
space before them.
"""

import contextlib
import json
import logging
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from perl import documents
from perl.data.text import vocabularies
from perl.data.text.tokenizer_files import CONFIG, GENERATION, MOST_IDS, TEMPLATE
from perl.documents import FLAG, TEXT
from perl.hub.config_json import Unsupported
from perl.hub.gguf_config import special_ids
from perl.hub.gguf_header import REMEDY, Header
from perl.hub.tensors import CorruptTensors

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s" + (
  r'| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+')
_QWEN_2, _LLAMA_3 = _WORDS % r'\p{N}', _WORDS % r'\p{N}{1,3}'
_TEKKEN = (
  r'[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+'
  r'|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*'
  r'|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+')
_PATTERNS = {
  **dict.fromkeys(('qwen2', 'deepseek-r1-qwen', 'stablelm2', 'megrez'), _QWEN_2),
  **dict.fromkeys(('llama-bpe', 'llama3', 'llama-v3', 'falcon3', 'dbrx', 'smaug-bpe'), _LLAMA_3),
  'tekken': _TEKKEN,
}
"""Name -> the pattern of a word, digits and all."""
_GPT_2 = ('gpt-2', 'gpt2', 'phi-2', 'mpt', 'olmo', 'jais')
_DIGITS = ('smollm', 'starcoder', 'refact', 'command-r', 'codeshell', 'exaone', 'minerva-7b')
"""Names whose words are GPT-2's, with each digit on its own; what `Digits` cuts first."""
_COMPOSED = ('qwen2', 'deepseek-r1-qwen', 'megrez')
"""Names whose text is brought into the composed form (NFC) first."""
_WHOLE = ('llama-bpe', 'llama3', 'llama-v3', 'tekken')
"""Names where a word that is a token needs no merges; they open a text with bos, unless told."""
_SPACE = '▁'

_NORMAL, _UNKNOWN, _CONTROL, _DEFINED = 1, 2, 3, 4
_TOKENS = documents.items(TEXT, MOST_IDS)
_NAMES = {'bos_token': 'bos', 'eos_token': 'eos', 'unk_token': 'unknown', 'pad_token': 'padding'}


def files(header: Header, architecture: str) -> dict[str, bytes]:
  """{name: content} of the files beside config.json; {} of a file without a tokenizer.

  Raises:
    CorruptTensors: a field of another type or length.
    Unsupported: another kind of tokenizer, or a way to cut words that is not known, by name.
  """
  fields = header.checked
  model = fields.get('tokenizer.ggml.model', TEXT)
  if model is None or model in ('none', 'no_vocab'):
    return {}
  if model not in ('gpt2', 'llama'):
    raise Unsupported(
      f"expected a tokenizer of kind 'gpt2' or 'llama' in {header.file}, found {model!r:.60}; that "
      'is not supported, use a model with one of these')
  tokens = fields.need('tokenizer.ggml.tokens', _TOKENS)
  special = {name: fields.get(f'tokenizer.ggml.{theirs}_token_id', documents.whole(
    0, len(tokens) - 1)) for name, theirs in _NAMES.items()}
  special = {name: None if i is None else tokens[i] for name, i in special.items()}
  opens = fields.get('tokenizer.ggml.add_bos_token', FLAG, model == 'llama' or _pre(
    header, architecture) in _WHOLE) and special['bos_token'] is not None
  if model == 'llama':
    tokens = _spelled(header, tokens)
  build = _byte_level if model == 'gpt2' else _sentence_piece
  backend = build(header, architecture, tokens, special['unk_token'])
  added = _added(header, tokens, {*special.values()})
  with _native(header):
    backend.add_tokens(added)
    if opens:
      backend.post_processor = _opening(special['bos_token'], backend)
  template = fields.get('tokenizer.chat_template', TEXT)
  config = {**special, 'add_bos_token': opens, 'clean_up_tokenization_spaces': False,
            'tokenizer_class': 'PreTrainedTokenizerFast'}
  return {
    'tokenizer.json': backend.to_str(pretty=True).encode(), CONFIG: _json(config),
    GENERATION: _json(special_ids(header)),
  } | ({} if template is None else {TEMPLATE: template.encode()})


def _json(value: dict[str, Any]) -> bytes:
  return (json.dumps(value, indent=2, ensure_ascii=False) + '\n').encode()


def _types(header: Header, count: int) -> list[int]:
  """The type of each token."""
  kind = documents.items(documents.whole(0, 6), MOST_IDS)
  kinds = header.checked.get('tokenizer.ggml.token_type', kind, [_NORMAL] * count)
  return _of_length(header, 'types', kinds, count)


def _of_length(header: Header, what: str, values: list, count: int) -> list:
  if len(values) != count:
    raise CorruptTensors(f'expected {what} of {count:,} tokens in {header.file}, found '
                         f'{len(values):,}; {REMEDY}')
  return values


def _native(header: Header) -> contextlib.AbstractContextManager:
  """Errors of the library name the file."""
  return vocabularies.native(f'a tokenizer in {header.file}', REMEDY)


def _added(
  header: Header, tokens: list[str], named: set[str | None]
) -> list[tokenizers.AddedToken]:
  """Tokens that are found in a text before it is cut: special ones, and those that users added."""
  kinds = _types(header, len(tokens))
  if len(set(tokens)) != len(tokens):
    raise CorruptTensors(f'expected tokens that differ in {header.file}, found one twice; {REMEDY}')
  # What has spaces in it is found where the text has them as SentencePiece writes them.
  return [
    tokenizers.AddedToken(
      token, special=kind != _DEFINED or token in named, normalized=_SPACE in token)
    for token, kind in zip(tokens, kinds)
    if kind in (_CONTROL, _DEFINED) or token in named]


def _opening(bos: str, backend: tokenizers.Tokenizer) -> Any:
  return processors.TemplateProcessing(
    single=f'{bos} $A', pair=f'{bos} $A {bos} $B', special_tokens=[(bos, backend.token_to_id(bos))])


def _pre(header: Header, architecture: str) -> str:
  """How words are cut, by name: of older files, which do not say, as the architecture's models."""
  name = header.checked.get('tokenizer.ggml.pre', TEXT, 'default')
  return name if name != 'default' else 'qwen2' if architecture.startswith('qwen') else 'gpt-2'


def _byte_level(
  header: Header, architecture: str, tokens: list[str], unknown: str | None
) -> tokenizers.Tokenizer:
  """A byte-level BPE (Radford et al. 2019)."""
  del unknown  # every byte is a token
  fields, name = header.checked, _pre(header, architecture)
  vocabulary = {token: i for i, token in enumerate(tokens)}
  merges = [tuple(merge.split(' ')) for merge in fields.need('tokenizer.ggml.merges', _TOKENS)]
  if wrong := [m for m in merges if len(m) != 2 or not {*m, ''.join(m)} <= vocabulary.keys()]:
    raise CorruptTensors(
      f'expected merges of two tokens into a third in {header.file}, found {wrong[0]!r:.80}; '
      f'{REMEDY}')
  if fields.get('tokenizer.ggml.pre', TEXT, 'default') == 'default' and architecture == 'llama':
    logging.warning('%s does not say how words are cut; GPT-2\'s way is taken, other ids may be '
                    'meant', header.file)
  with _native(header):
    backend = tokenizers.Tokenizer(
      models.BPE(vocabulary, merges, ignore_merges=name in _WHOLE))
  backend.normalizer = normalizers.NFC() if name in _COMPOSED else None
  backend.pre_tokenizer = _cutter(header, name)
  backend.decoder = decoders.ByteLevel()
  return backend


def _cutter(header: Header, name: str) -> Any:
  """What cuts a text into words."""
  plain = pre_tokenizers.ByteLevel(add_prefix_space=False)
  if name in _GPT_2:
    return plain
  if name in _DIGITS:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), plain])
  if name not in _PATTERNS:
    raise Unsupported(
      f'expected tokenizer.ggml.pre among {", ".join((*_GPT_2, *_DIGITS, *_PATTERNS))} in '
      f'{header.file}, found {name!r:.60}; that is not supported, use the Hugging Face folder of '
      'the model, which has its tokenizer.json')
  words = pre_tokenizers.Split(tokenizers.Regex(_PATTERNS[name]), 'isolated')
  return pre_tokenizers.Sequence(
    [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _spelled(header: Header, tokens: list[str]) -> list[str]:
  """Pieces as SentencePiece has them; llama.cpp's converter writes spaces in those of users."""
  return [token.replace(' ', _SPACE) if kind == _DEFINED else token
          for token, kind in zip(tokens, _types(header, len(tokens)))]


def _sentence_piece(
  header: Header, architecture: str, tokens: list[str], unknown: str | None
) -> tokenizers.Tokenizer:
  """A SentencePiece BPE with bytes for what it has no piece of (Kudo and Richardson, 1808.06226).

  The pair whose piece has the highest score is joined first. Gemma's spaces are part of the text,
  others put one before it, unless the file says that they do not.
  """
  fields, gemma = header.checked, architecture.startswith('gemma')
  scores = _of_length(header, 'scores', fields.need(
    'tokenizer.ggml.scores', documents.items(documents.number(-1e9, 1e9), MOST_IDS)), len(tokens))
  kinds = _types(header, len(tokens))
  vocabulary = {token: i for i, token in enumerate(tokens)}
  normal = {tokens[i]: (-scores[i], i) for i, kind in enumerate(kinds) if kind == _NORMAL}
  with _native(header):
    backend = tokenizers.Tokenizer(models.BPE(
      vocabulary, _merges(normal), unk_token=unknown, fuse_unk=True, byte_fallback=True))
  spaces = [decoders.Replace(_SPACE, ' '), decoders.ByteFallback(), decoders.Fuse()]
  backend.normalizer = normalizers.Replace(' ', _SPACE)
  if gemma:
    backend.pre_tokenizer = pre_tokenizers.Split(' ', 'merged_with_previous')
  else:
    before = fields.get('tokenizer.ggml.add_space_prefix', FLAG, True)
    backend.pre_tokenizer = pre_tokenizers.Metaspace(
      _SPACE, 'first' if before else 'never', split=False)
    spaces += [decoders.Strip(' ', 1, 0)] if before else []
  backend.decoder = decoders.Sequence(spaces)
  return backend


def _merges(normal: dict[str, tuple[float, int]]) -> list[tuple[str, str]]:
  """Each way to make a piece of two, the best piece first."""
  ranked = [(rank, token[:i], token[i:]) for token, rank in normal.items()
            for i in range(1, len(token)) if token[:i] in normal and token[i:] in normal]
  return [(one, other) for _, one, other in sorted(ranked)]
