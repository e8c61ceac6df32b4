"""A byte-level BPE, trained on texts."""

import re
from collections.abc import Iterable, Sequence

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers


def byte_pairs(texts: Iterable[str], vocab_size: int, special: Sequence[str], *, lowercase: bool,
               split_digits: bool) -> tokenizers.Tokenizer:
  """The vocabulary that tokenizer.train_bpe describes.

  Args:
    texts: what is merged, without the special tokens that stand in it.
    vocab_size: ids, at most.
    special: the tokens of the first ids.
    lowercase, split_digits: see there.

  Raises:
    ValueError: vocab_size has no room for the special tokens and the 256 bytes.
  """
  least = len(special) + 256
  if vocab_size < least:
    raise ValueError(f'train_bpe: expected vocab_size >= {least} ({len(special)} special tokens '
                     f'and 256 bytes); found {vocab_size}; set tokenizer.vocab_size higher')
  backend = tokenizers.Tokenizer(models.BPE())
  if lowercase:
    backend.normalizer = normalizers.Lowercase()
  # Words keep their underscores, so that get_menu_items is one piece; GPT-2's pattern splits it.
  # A digit takes no space before it, or it would be another token than within a number.
  numbers = r'\p{N}' if split_digits else r' ?\p{N}+'
  words = tokenizers.Regex(rf' ?[\p{{L}}_]+|{numbers}| ?[^\s\p{{L}}\p{{N}}_]+|\s+')
  backend.pre_tokenizer = pre_tokenizers.Sequence([
    pre_tokenizers.Split(words, 'isolated'),
    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
  ])
  backend.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=vocab_size, special_tokens=list(special), show_progress=False,
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
  # The trainer reads special tokens as text and would spend merges on '<|' and '|>'.
  markers = re.compile('|'.join(map(re.escape, special)))
  pieces = (piece for text in texts for piece in markers.split(text) if piece)
  backend.train_from_iterator(pieces, trainer)
  return backend
