"""Reward models whose pad is their eos: the token they are read at, here and in transformers."""

import json
import logging
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import releases
import tiny

from perl.data.text import chat
from perl.data.text import tokenizer as tokenizers
from perl.hub import adapters as peft_format
from perl.hub import peer, pretrained, scored_token
from perl.models import lm
from perl.rl import rewards
from perl.types import Rollout

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / 'data'))
import checkpoints  # noqa: E402

transformers, torch = releases.transformers, releases.torch
peft = pytest.importorskip('peft')

# Their eos is their pad; or they have none, or one of their own.
EOS_AS_PAD = {
  'qwen2': dict(pad_token='<|im_end|>'), 'llama2_converted': dict(pad_token='</s>'),
  'neox': dict(pad_token='<|endoftext|>'), 'llama3 none': {}, 'qwen2 own': {}}


@pytest.fixture(scope='module', params=EOS_AS_PAD)
def vocabulary(request, tmp_path_factory):
  """(its folder, the tokenizer as a run has it)."""
  style = request.param.split()[0]
  folder = checkpoints.STYLES[style](
    tmp_path_factory.mktemp('v') / 'hub', **EOS_AS_PAD[request.param])
  loaded = tokenizers.load(folder)
  return folder, chat.of(loaded)[1] if loaded.chat_template else loaded


def rows(vocabulary, padding='right'):
  """(tokens i32[3, 9], mask): rows of three lengths that end in eos."""
  rng = np.random.default_rng(0)
  lengths = np.array([9, 5, 2])
  mask = np.arange(9) < lengths[:, None]
  tokens = rng.integers(10, 200, mask.shape)
  tokens[np.arange(3), lengths - 1] = vocabulary.eos_id
  if padding == 'left':
    order = np.argsort(mask, axis=1, kind='stable')
    tokens, mask = np.take_along_axis(tokens, order, 1), np.take_along_axis(mask, order, 1)
  return tokens.astype(np.int32), mask


def head(width=16):
  return {'kernel': jax.random.normal(jax.random.key(3), (width, 1)), 'bias': jnp.zeros(1)}


def classifier(place, **options):
  return transformers.AutoModelForSequenceClassification.from_pretrained(
    place, attn_implementation='eager', **options).eval()


score = jax.jit(lm.score, static_argnums=0)


def test_a_whole_reward_model_goes_out_with_a_pad_that_ends_no_response(vocabulary, tmp_path):
  source, loaded = vocabulary
  model, base = tiny.make(vocab_size=loaded.vocab_size)
  pretrained.save(tmp_path / 'out', model, base, head=head(), tokenizer=loaded)
  one, other = (transformers.AutoTokenizer.from_pretrained(f) for f in (source, tmp_path / 'out'))
  theirs = classifier(tmp_path / 'out')
  for padding in ('right', 'left'):
    tokens, mask = rows(loaded, padding)
    expected = score(model, base, {'head': head()}, tokens, mask)
    batch = np.where(mask, tokens, other.pad_token_id)
    assert releases.distance(releases.logits(theirs, batch, mask)[:, 0], expected) < 1e-5
  pads = {json.loads((tmp_path / 'out' / name).read_text())['pad_token_id']
          for name in ('config.json', 'generation_config.json')}
  assert pads == {theirs.config.pad_token_id} == {other.pad_token_id}
  assert not pads & {*loaded.stop_ids} and max(pads) < loaded.vocab_size
  again = pretrained.load_head(tmp_path / 'out')
  assert 'unread' not in again
  # Words keep their ids, whatever pads them.
  texts = ['an oat latte', 'tea <unk> <|im_start|>x']
  assert one(texts)['input_ids'] == other(texts)['input_ids']


def test_an_adapter_over_a_base_with_eos_as_pad_scores_as_documented(tmp_path):
  loaded = chat.of(tokenizers.load(checkpoints.qwen2(
    tmp_path / 'hub', pad_token='<|im_end|>')))[1]
  theirs = releases.make('llama', vocab_size=loaded.vocab_size, eos_token_id=loaded.eos_id,
                         pad_token_id=loaded.eos_id, bos_token_id=None)
  theirs.save_pretrained(tmp_path / 'base')
  model, base, _ = pretrained.load(tmp_path / 'base')
  adapter = tiny.lora(base, head=True)
  adapter['head'] = head()
  peft_format.save(tmp_path / 'out', adapter, base, tokenizer=loaded, base_digest='d')
  tokens, mask = rows(loaded)
  expected = score(model, base, adapter, tokens, mask)
  pad = transformers.AutoTokenizer.from_pretrained(tmp_path / 'out').pad_token_id
  plain = classifier(tmp_path / 'base', num_labels=1, pad_token_id=pad)  # docs/checkpoints.md
  served = peft.PeftModel.from_pretrained(plain, tmp_path / 'out').eval()
  found = releases.logits(served, np.where(mask, tokens, pad), mask)[:, 0]
  assert releases.distance(found, expected) < 1e-5
  assert releases.distance(peer.outputs(
    str(tmp_path / 'base'), str(tmp_path / 'out'), tokens, mask, scored=True), expected) < 1e-5
  as_before = peft.PeftModel.from_pretrained(
    classifier(tmp_path / 'base', num_labels=1), tmp_path / 'out').eval()
  wrong = releases.logits(as_before, np.where(mask, tokens, loaded.eos_id), mask)[:, 0]
  assert releases.distance(wrong, expected) > 1e-3  # what the pad id mends


def test_a_vocabulary_of_one_special_token_is_padded_with_nothing(tmp_path, caplog):
  """Batches are refused by transformers then; rows one by one are scored as they should be."""
  loaded = tokenizers.load(checkpoints.gpt2(tmp_path / 'hub', pad_token='<|endoftext|>'))
  model, base = tiny.make(vocab_size=loaded.vocab_size)
  pretrained.save(tmp_path / 'out', model, base, head=head(), tokenizer=loaded)
  assert 'no token to pad a reward model with' in caplog.text
  assert transformers.AutoTokenizer.from_pretrained(tmp_path / 'out').pad_token is None
  theirs, (tokens, mask) = classifier(tmp_path / 'out'), rows(loaded)
  with pytest.raises(ValueError, match='batch sizes > 1'):
    releases.logits(theirs, tokens, mask)
  expected = score(model, base, {'head': head()}, tokens, mask)
  assert releases.distance(peer.scores(theirs, tokens, mask), expected) < 1e-5


def test_a_pad_beyond_the_embedding_is_not_exported(tmp_path):
  folder = checkpoints.qwen2(tmp_path / 'hub', pad_token='<|im_end|>')
  loaded = tokenizers.load(folder)
  apart = loaded.padding_apart(300)  # the ordinary ids alone have rows
  assert 'pad_token' not in apart.special_tokens
  assert loaded.padding_apart(301).special_tokens['pad_token'] == '<|endoftext|>'
  assert loaded.special_tokens['pad_token'] == '<|im_end|>'  # and this one stays as it was


# --- Reward models of others


@pytest.mark.parametrize('family, padding', [('llama', 'left'), ('gpt2', 'right')])
def test_a_published_reward_model_with_eos_as_pad_is_read_where_it_was_trained(
    family, padding, tmp_path, caplog):
  theirs = releases.make(family, kind='SequenceClassification', num_labels=1, pad_token_id=2)
  theirs.save_pretrained(tmp_path / 'rm')
  model, base, _ = pretrained.load(tmp_path / 'rm')
  tokens, mask = releases.rows(padding=padding)
  last = mask & (np.cumsum(mask[:, ::-1], 1)[:, ::-1] == 1)
  tokens = np.where(mask, tokens, 2)
  tokens[last & (np.arange(3) < 2)[:, None]] = 2  # two of three rows end
  expected = releases.logits(theirs, tokens, mask)[:, 0]
  found = score(model, base, {'head': pretrained.load_head(tmp_path / 'rm')}, tokens, mask)
  assert releases.distance(found, expected) < 1e-4
  assert 'pads with the token that ends a response' in caplog.text
  at_the_end = pretrained.load_head(tmp_path / 'rm')
  del at_the_end['unread']
  other = score(model, base, {'head': at_the_end}, tokens, mask)
  assert releases.distance(other[:2], expected[:2]) > 1e-3
  only = np.full((1, 4), 2, np.int32)  # a row of pads alone: its first token
  found = score(
    model, base, {'head': pretrained.load_head(tmp_path / 'rm')}, only, np.ones((1, 4), bool))
  assert releases.distance(found, releases.logits(theirs, only, only == 2)[:, 0]) < 1e-4


def test_an_adapter_pads_as_the_tokenizer_beside_it_or_else_as_its_base(tmp_path, caplog):
  loaded = tokenizers.load(checkpoints.qwen2(tmp_path / 'alike', pad_token='<|im_end|>'))
  checkpoints.qwen2(tmp_path / 'apart')
  (tmp_path / 'alone').mkdir()
  base = tmp_path / 'base'
  base.mkdir()
  (base / 'config.json').write_text(json.dumps({'pad_token_id': loaded.eos_id}))
  read = lambda name: scored_token.head(head(), tmp_path / name, str(base), loaded.stop_ids)
  caplog.set_level(logging.WARNING)
  assert [*map(int, read('alike')['unread'])] == [loaded.eos_id] and 'alike' in caplog.text
  assert [*map(int, read('alone')['unread'])] == [loaded.eos_id]
  assert 'unread' not in read('apart')
  (tmp_path / 'alike' / 'perl.json').write_text('{"head_bias": 0.0}')  # trained here, at the end
  assert 'unread' not in read('alike')


def test_rollouts_are_judged_at_that_token_too():
  model, base = tiny.make()
  reward = tiny.lora(base, head=True)
  reference = tiny.lora(base, 1, head=False)
  tokens = jnp.array([[5, 6, 7, 8, 2], [5, 6, 9, 2, 2]])
  mask = jnp.array([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]], bool)
  response = mask & (jnp.arange(5) > 1)
  rollout = Rollout(tokens, mask, response, jnp.zeros(tokens.shape), mask.any(1))
  alike = {**reward, 'head': reward['head'] | {'unread': jnp.array([2])}}
  expected = score(model, base, reward, tokens, mask & (tokens != 2))
  for forwards in ('separate', 'stacked'):
    judge = rewards.make_judge(model, max_new_tokens=3, forwards=forwards)
    found = judge(base, {'reward': alike, 'reference': reference}, rollout).scores
    np.testing.assert_allclose(found, expected, rtol=1e-5)
  assert np.abs(expected - score(model, base, reward, tokens, mask)).min() > 1e-4
