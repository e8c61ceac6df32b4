"""Configs: sizes by name, and what does not fit."""

import pytest

from perl import trees
from perl.models import lm
from perl.models.config import SIZES, Config, sized
from perl.models.transformer import Transformer


@pytest.mark.parametrize('size, vocabulary, millions', [
  ('nano', 1024, 0.17), ('tiny', 1024, 0.98), ('mini', 1024, 10.2), ('small', 16384, 97.5),
  ('llama-2-7b', None, 6738.4), ('llama-3.2-1b', None, 1235.8), ('mistral-7b', None, 7241.7),
  ('qwen2.5-1.5b', None, 1543.7), ('gemma-2b', None, 2506.2), ('qwen3-0.6b', None, 596.0),
  ('gemma-2-2b', None, 2614.3), ('gemma-2-9b', None, 9241.7), ('gemma-3-1b', None, 999.9),
  ('llama-3.1-8b', None, 8030.3), ('gemma-2-27b', None, 27227.1), ('gemma-3-270m', None, 268.1),
  ('gemma-3-4b', None, 3880.1), ('gemma-3-12b', None, 11765.8), ('gemma-3-27b', None, 27009.0),
])
def test_sizes_have_the_published_number_of_parameters(size, vocabulary, millions):
  base = lm.abstract(Transformer(sized(size, vocab_size=vocabulary)))
  assert trees.count(base) / 1e6 == pytest.approx(millions, rel=0.015)


def test_a_size_takes_overrides_and_its_own_vocabulary():
  assert sized('gemma-2b', vocab_size=1000).vocab_size == 256_000
  assert sized('tiny', vocab_size=77, dtype='bfloat16').dtype == 'bfloat16'
  assert set(SIZES) >= {'tiny', 'mini', 'small'}


@pytest.mark.parametrize('call, message', [
  (lambda: sized('tny', vocab_size=9), "did you mean 'tiny'"),
  (lambda: sized('tiny'), 'vocab_size'),
  (lambda: sized('llama-2-7b', vocab_size=32_001), 'at most 32000'),
  (lambda: sized('tiny', vocab_size=9, heads=3), 'kv_heads'),
  (lambda: sized('tiny', vocab_size=9, norm='batch'), 'norm'),
])
def test_what_does_not_fit_is_an_error(call, message):
  with pytest.raises(ValueError, match=message):
    call()


def test_configs_are_hashable():
  options = dict(vocab_size=8, layers=1, width=8, heads=1, kv_heads=1, head_dim=8, mlp_width=8)
  assert hash(Config(**options)) == hash(Config(**options))
