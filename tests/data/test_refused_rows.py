"""What a template or a tokenizer refuses, with its file and row; templates that open a thought."""

import json

import checkpoints
import pytest

from perl.data.batches import encoding
from perl.data.examples import Demonstration, Document, Prompt
from perl.data.sets import local
from perl.data.text import chat
from perl.data.text import tokenizer as tokenizers

ASKED = {'role': 'user', 'content': 'tea?'}
GREEN, DONE = ({'role': 'assistant', 'content': content} for content in ('green', 'done'))
END = '<｜end▁of▁sentence｜>'
# DeepSeek-R1's, but for its tools: a thought is asked for, and never written.
R1 = """{{- bos_token }}{%- for message in messages %}
{%- if message['role'] == 'user' %}{{- '<｜User｜>' + message['content'] }}{%- endif %}
{%- if message['role'] == 'assistant' %}{%- set content = message['content'] %}
{%- if '</think>' in content %}{%- set content = content.split('</think>')[-1] %}{%- endif %}
{{- '<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>' }}{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '<｜Assistant｜><think>\n' }}{%- endif %}"""


@pytest.fixture(scope='module')
def r1(tmp_path_factory):
  """(template, tokenizer) in DeepSeek-R1's style."""
  special = ('<｜begin▁of▁sentence｜>', END, '<｜User｜>', '<｜Assistant｜>')
  folder = checkpoints.byte_level(tmp_path_factory.mktemp('r1') / 'hub', special, {
    'bos_token': special[0], 'eos_token': END, 'add_bos_token': True, 'chat_template': R1})
  return chat.of(tokenizers.load(folder))


def load(folder, kind, *rows):
  folder.mkdir(exist_ok=True)
  (folder / 'train.jsonl').write_text('\n'.join(map(json.dumps, rows)))
  return local.load('train', kind, mirror=str(folder))


# --- Templates


@pytest.mark.parametrize('kind', ['document', 'demonstration', 'prompt'])
def test_a_chat_that_a_strict_template_refuses_names_its_row(kind, tmp_path):
  strict = checkpoints.GEMMA.replace(
    '%}{% if (message', "%}{% if not message.content %}{{ raise_exception('empty') }}{% endif %}"
    '{% if (message', 1)
  assert strict != checkpoints.GEMMA
  loaded = tokenizers.load(checkpoints.gemma(tmp_path / 'hub', chat_template=strict))
  template, loaded = chat.of(loaded)
  good, bad = {'messages': [ASKED, DONE]}, {'messages': [GREEN, ASKED, DONE]}
  examples = load(tmp_path / 'a', kind, good, bad)
  said = r'train.jsonl, line 2: chat template: .*change the messages'
  with pytest.raises(ValueError, match=said):
    for example in examples:
      chat.apply(template, example)
  if kind == 'document':
    with pytest.raises(ValueError, match=r'train.jsonl, line 2: .*must alternate'):
      encoding.encode_chats(examples, loaded, template, max_tokens=200)


@pytest.mark.parametrize('content, said', [
  ('<think>\nIs it tea?\n</think>\n\nYes.', 'Is it tea?\n</think>\n\nYes.'),
  ('Is it tea?</think>Yes.', 'Is it tea?</think>Yes.'), ('Yes.', '\n</think>\n\nYes.')])
def test_a_row_of_the_last_turn_is_what_a_policy_says_after_the_opened_thought(r1, content, said):
  template, loaded = r1
  context = [ASKED, GREEN | {'content': '<think>\nHm.\n</think>\n\ngreen'}, ASKED]
  row = Demonstration('', '', messages=(*context, DONE | {'content': content}))
  example = chat.apply(template, row)
  asked = template.render(context, add_generation_prompt=True)
  assert (example.prompt, example.response) == (asked, said)
  assert 'Hm.' not in example.prompt and example.prompt.endswith('<think>\n')
  (row,), _ = encoding.encode([example], loaded, kind='demonstration', max_prompt_tokens=99,
                              max_response_tokens=99)
  assert loaded.decode(row['tokens'], skip_special=False) == asked + said + END
  assert loaded.eos_id == row['tokens'][-1] and chat.apply(
    template, Prompt('', messages=tuple(context))).prompt == asked


def test_a_thought_that_stands_in_a_field_of_its_own(r1):
  said = DONE | {'reasoning_content': 'Is it tea?'}
  example = chat.apply(r1[0], Demonstration('', '', messages=(ASKED, said)))
  assert example.response == 'Is it tea?\n</think>\n\ndone'


@pytest.mark.parametrize('talk', [[ASKED, DONE], [ASKED, GREEN, ASKED, DONE]])
def test_whole_chats_of_such_a_template_are_refused_with_the_way_out(r1, talk):
  template, loaded = r1
  document = Document('', messages=tuple(talk), meta={'source': 'a.jsonl, line 3'})
  with pytest.raises(ValueError, match='a.jsonl, line 3: .*sft.whole_chats=false: a row a turn'):
    encoding.encode_chats([document], loaded, template, max_tokens=99)
  for end in range(2, len(talk) + 1, 2):  # which works
    chat.apply(template, Demonstration('', '', messages=tuple(talk[:end])))


def test_a_template_whose_prompt_opens_no_turn_of_its_own_is_refused(tmp_path):
  source = checkpoints.CHATML.replace("'<|im_start|>assistant\\n' }}", "'<|im_start|>robot\\n' }}")
  folder = checkpoints.qwen2(tmp_path / 'a', chat_template=source)
  with pytest.raises(ValueError, match='does not open its turns; .*data.chat_template=false'):
    chat.of(tokenizers.load(folder))


# --- Tokenizers


@pytest.fixture(scope='module')
def strict(tmp_path_factory):
  """A tokenizer that has no ids for what it does not know."""
  import tokenizers as library
  from tokenizers import models, pre_tokenizers

  made = library.Tokenizer(models.BPE({'a': 0, 'b': 1, '</s>': 2}, [], unk_token='<unk>'))
  made.pre_tokenizer = pre_tokenizers.Whitespace()
  folder = tmp_path_factory.mktemp('strict')
  made.save(str(folder / 'tokenizer.json'))
  return tokenizers.load(folder)


@pytest.mark.parametrize('kind, rows', [
  ('prompt', [{'prompt': 'a'}, {'prompt': 'a c'}]),
  ('demonstration', [{'prompt': 'a', 'response': 'b'}, {'prompt': 'a', 'response': 'c'}]),
  ('preference', [{'prompt': 'a', 'chosen': 'b', 'rejected': 'a'},
                  {'prompt': 'a', 'chosen': 'b', 'rejected': 'c'}]),
  ('ranked', [{'prompt': 'a', 'responses': ['b', 'a']}, {'prompt': 'a', 'responses': ['b', 'c']}]),
  ('document', [{'text': 'a'}, {'text': 'c'}])])
def test_text_without_ids_names_its_row(kind, rows, strict, tmp_path):
  examples = load(tmp_path / 'a', kind, *rows)
  limits = dict(max_prompt_tokens=9, max_response_tokens=9)
  with pytest.raises(ValueError, match='train.jsonl, line 2: .*has ids for; found .*use a token'):
    encoding.encode(examples, strict, kind=kind, **limits)
  assert encoding.encode(examples[:1], strict, kind=kind, **limits)[0]
  if kind == 'prompt':
    with pytest.raises(ValueError, match='line 2'):
      encoding.encode_sampled(examples, [[0], [1]], strict, max_prompt_tokens=9)


def test_a_chat_without_ids_names_its_row(strict):
  source = "{% for m in messages %}{{ ' a ' }}{{ m.content }}{{ '</s>' }}{% endfor %}{% if " \
    "add_generation_prompt %} a {% endif %}"
  document = Document('', messages=(ASKED, GREEN), meta={'source': 'a.jsonl, line 3'})
  with pytest.raises(ValueError, match='a.jsonl, line 3: .*has ids for'):
    encoding.encode_chats([document], strict, chat.Template(source, {}), max_tokens=99)
