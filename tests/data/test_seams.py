"""The seam of prompt and response: their ids are those of the whole text, for every vocabulary.

What a token is that lies across the seam, and what a policy is asked, are in encoding.py.
"""

import functools
import json

import checkpoints
import numpy as np
import pytest

from perl.data.batches import encoding
from perl.data.examples import Demonstration, Labelled, Preference, Prompt, Ranked, Rated
from perl.data.text import chat
from perl.data.text import tokenizer as tokenizers

CORPUS = [*checkpoints.CORPUS, *['the capital of France is Paris', 'Fran', 'ce is', 'ence'] * 20]
SPECIAL = ('<unk>', '<s>', '</s>', '<|user|>', '<|assistant|>')
TEXTS = ['the capital of France is Paris', '<|user|>tea<|assistant|> milk, thank you</s>',
         'an  oat ', '<|user|>\nnaïve ☕🏽 x<|assistant|>\ndone', 'please\n\nand 12 eggs<|user|>']


def _metaspace(scheme):
  """As Mistral and Zephyr are converted by transformers: a space put before a text."""
  import tokenizers as library
  from tokenizers import decoders, models, pre_tokenizers, trainers

  made = library.Tokenizer(models.BPE(byte_fallback=True, unk_token='<unk>'))
  made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
  made.decoder = decoders.Sequence([decoders.Replace('▁', ' '), decoders.ByteFallback(),
                                    decoders.Fuse(), decoders.Strip(' ', 1, 0)])
  bytes_ = [f'<0x{i:02X}>' for i in range(256)]
  made.train_from_iterator(CORPUS, trainers.BpeTrainer(
    vocab_size=500, show_progress=False, special_tokens=[*SPECIAL, *bytes_]))
  settings = json.loads(made.to_str())
  settings['added_tokens'] = settings['added_tokens'][: len(SPECIAL)]  # bytes are no special tokens
  return settings


def _prepended():
  """As Llama-2 is converted: the space is put there by a normalizer, and words are not cut."""
  settings = _metaspace('always')
  settings['pre_tokenizer'] = None
  settings['normalizer'] = {'type': 'Sequence', 'normalizers': [
    {'type': 'Prepend', 'prepend': '▁'},
    {'type': 'Replace', 'pattern': {'String': ' '}, 'content': '▁'}]}
  return settings


def _swallowing():
  """As Phi-3 is converted: special tokens take the white space after them."""
  settings = _prepended()
  for token in settings['added_tokens']:
    token['rstrip'] = token['content'].startswith('<|')
  return settings


def _byte_level(prefix_space):
  settings = json.loads(checkpoints._bpe(SPECIAL))
  settings['pre_tokenizer']['add_prefix_space'] = prefix_space
  return settings


JSON = {
  'metaspace_always': lambda: _metaspace('always'), 'metaspace_first': lambda: _metaspace('first'),
  'metaspace_never': lambda: _metaspace('never'), 'prepended': _prepended,
  'swallowing': _swallowing, 'byte_level': lambda: _byte_level(False),
  'byte_level_prefixed': lambda: _byte_level(True),
}
SENTENCEPIECE = {
  'llama2': {}, 'llama2_legacy': {'legacy': True}, 'gemma': {}}
STYLES = (*JSON, *SENTENCEPIECE)


@functools.cache
def written(style):
  return json.dumps(JSON[style]())


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  """A maker of the folder of a style, with a template, each made once."""
  root, made = tmp_path_factory.mktemp('seams'), {}

  def folder(style, template=None):
    place = made.setdefault((style, template), root / str(len(made)))
    if place.exists():
      return place
    if style in SENTENCEPIECE:
      make = checkpoints.STYLES[style.removesuffix('_legacy')]
      return make(place, **SENTENCEPIECE[style], chat_template=template)
    place.mkdir()
    (place / 'tokenizer.json').write_text(written(style))
    (place / 'tokenizer_config.json').write_text(json.dumps({
      'tokenizer_class': 'PreTrainedTokenizerFast', 'bos_token': '<s>', 'eos_token': '</s>',
      'unk_token': '<unk>', 'add_bos_token': True, 'chat_template': template}))
    return place

  return folder


@pytest.fixture(params=STYLES)
def style(request):
  return request.param


def theirs(folder, text):
  """The ids of transformers."""
  transformers = pytest.importorskip('transformers')
  if (folder / 'tokenizer.json').exists():
    made = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / 'tokenizer.json'))
  else:
    made = transformers.AutoTokenizer.from_pretrained(folder)
  return made(text, add_special_tokens=False)['input_ids']


def rows_of(loaded, kind, *examples, **options):
  return encoding.encode(examples, loaded, kind=kind, **{
    'max_prompt_tokens': 200, 'max_response_tokens': 200, **options})[0]


def test_a_word_that_is_cut_is_read_as_a_whole(style, folders):
  loaded = tokenizers.load(folders(style))
  (row,) = rows_of(loaded, 'demonstration', Demonstration('the capital of Fran', 'ce is Paris'))
  assert loaded.decode(row['tokens']).strip() == 'the capital of France is Paris'
  assert row['tokens'].tolist() == [
    *[loaded.bos_id] * loaded.adds_bos, *theirs(folders(style), TEXTS[0]), loaded.eos_id]


@pytest.mark.parametrize('text', TEXTS)
def test_ids_of_prompt_and_response_are_those_of_the_whole_wherever_it_is_cut(style, text, folders):
  loaded = tokenizers.load(folders(style))
  whole, (ids, offsets) = theirs(folders(style), text), loaded.encode_with_offsets(text)
  assert ids == whole
  pairs = [(text[:seam], text[seam:]) for seam in range(len(text) + 1)]
  counts = []
  for seam, (ids, count) in enumerate(loaded.encode_pairs(pairs)):
    assert ids == whole
    assert all(end <= seam and begin < seam for begin, end in offsets[:count])
    assert all(end > seam or begin >= seam for begin, end in offsets[count:])
    counts.append(count)
  assert counts == sorted(counts) and (counts[0], counts[-1]) == (0, len(whole))


def test_all_kinds_read_one_text_alike(style, folders):
  """SFT, reward models of all kinds and pairs; the prompt of several is what they share."""
  loaded = tokenizers.load(folders(style))
  prompt, first, second = '<|user|>tea<|assistant|>\nthe capital of Fran', 'ce is Paris', 'k is'
  (learnt,) = rows_of(loaded, 'demonstration', Demonstration(prompt, first))
  for kind, example in (('labelled', Labelled(prompt, first, 1.0)),
                        ('rated', Rated(prompt, first, 0.5))):
    (row,) = rows_of(loaded, kind, example)
    np.testing.assert_array_equal(row['tokens'], learnt['tokens'])
    np.testing.assert_array_equal(
      np.arange(len(row['tokens'])) >= row['prompt_tokens'], learnt['loss_mask'])
  (pair,) = rows_of(loaded, 'preference', Preference(prompt, first, second))
  (ranked,) = rows_of(loaded, 'ranked', Ranked(prompt, (first, second)), responses=2)
  np.testing.assert_array_equal(pair['chosen'], learnt['tokens'])
  for ours, other in zip((pair['chosen'], pair['rejected']), ranked['responses']):
    np.testing.assert_array_equal(ours, other)
  start = pair['prompt_tokens']
  assert start == ranked['prompt_tokens'] <= int(np.argmax(learnt['loss_mask']))
  np.testing.assert_array_equal(pair['chosen'][:start], pair['rejected'][:start])
  bos = [loaded.bos_id] * loaded.adds_bos
  assert pair['rejected'].tolist() == [
    *bos, *theirs(folders(style), prompt + second), loaded.eos_id]


def test_a_token_across_the_seam_is_the_responses(folders):
  loaded = tokenizers.load(folders('metaspace_always'))
  (row,) = rows_of(loaded, 'demonstration', Demonstration('the capital of Fran', 'ce is Paris'))
  said = row['tokens'][row['loss_mask']]
  assert loaded.decode(said) == 'France is Paris'
  # A policy is asked what a server would send: the prompt alone.
  (asked,) = rows_of(loaded, 'prompt', Prompt('the capital of Fran'))
  assert asked['tokens'].tolist() == [
    loaded.bos_id, *theirs(folders('metaspace_always'), 'the capital of Fran')]


def test_a_marker_that_swallows_the_space_after_it_stays_the_prompts(folders):
  loaded = tokenizers.load(folders('swallowing'))
  ids, count = loaded.encode_pairs([('<|assistant|>\n', ' \n tea')])[0]
  assert count == 1 and ids[0] == loaded.encode('<|assistant|>')[0]
  assert loaded.encode_with_offsets('a<|user|> \n b')[1][1:] == [
    (0, 1), (1, 9), (12, 13), (12, 13)]


@pytest.mark.parametrize('name', ['zephyr', 'llama2', 'chatml', 'llama3'])
def test_a_row_of_the_last_turn_is_the_whole_chat(style, name, folders):
  """To the id, and learnt alike: where the template's turns end in a token of this vocabulary."""
  template, end = checkpoints.TEMPLATES[name], '<eos>' if style == 'gemma' else '</s>'
  template = template.replace('<|im_end|>', end).replace('<|eot_id|>', end)
  loaded = tokenizers.load(folders(style, template))
  template, loaded = chat.of(loaded)
  talk = [{'role': 'user', 'content': 'naïve: tea?'}, {'role': 'assistant', 'content': 'with milk'},
          {'role': 'user', 'content': 'yes'}, {'role': 'assistant', 'content': 'done ☕'}]
  ids, learnt = chat.encode(loaded, template, talk)
  for turns in (2, 4):
    example = chat.apply(template, Demonstration('', '', messages=tuple(talk[:turns])))
    (row,) = rows_of(loaded, 'demonstration', example)
    length = len(row['tokens']) - (row['tokens'][-1] == loaded.eos_id and loaded.eos_id not in ids)
    assert row['tokens'][:length].tolist() == ids[:length]
    start = int(np.argmax(row['loss_mask']))
    assert row['loss_mask'][start:length].tolist() == learnt[start:length] and not learnt[start - 1]
  whole = theirs(folders(style, template.source), template.render(talk))
  assert ids == [loaded.bos_id] * (len(ids) - len(whole)) + whole


def test_sampled_ids_are_taken_as_they_are(folders):
  loaded = tokenizers.load(folders('metaspace_always'))
  # Other pieces than the text would have, no end, and an end in the middle.
  cut, odd = loaded.encode('mil'), [*loaded.encode('k'), loaded.eos_id, *loaded.encode('k')]
  rows = encoding.encode_sampled(
    [Prompt('an oat'), Prompt('tea with milk')], [cut, odd], loaded, max_prompt_tokens=4)
  asked = rows_of(loaded, 'prompt', Prompt('an oat'), Prompt('tea with milk'),
                  max_prompt_tokens=4, overlong='truncate')
  for row, prompt, response in zip(rows, asked, (cut, odd)):
    assert row['tokens'].tolist() == [*prompt['tokens'], *response]
    assert row['prompt_tokens'] == len(prompt['tokens']) and row['index'] == prompt['index']
  with pytest.raises(ValueError):
    encoding.encode_sampled([Prompt('a')], [cut, odd], loaded, max_prompt_tokens=4)
