"""Calls of tools: OpenAI's messages are read, written as each template wants them, or refused."""

import json

import checkpoints
import pytest

from perl.data.batches import encoding
from perl.data.examples import Demonstration
from perl.data.sets import local
from perl.data.text import chat, tool_calls
from perl.data.text import tokenizer as tokenizers

ASKED = {'role': 'user', 'content': 'tea?'}
ARGUMENTS = {'q': 'a "green" tea', 'n': 2}
TEXT = json.dumps(ARGUMENTS, separators=(',', ':'))
RESULT = {'role': 'tool', 'content': '{"tea": 3}', 'tool_call_id': 'x'}
DONE = {'role': 'assistant', 'content': 'done'}

_LOOP = """{%- for m in messages %}{{- '<|im_start|>' + m.role + '\n' }}BODY\
{{- '<|im_end|>\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"""
WRITERS = {
  # As Qwen and Llama 3 have it: an object, by tojson, and nothing beside it.
  'tojson': "{%- if m.content %}{{ m.content }}{%- endif %}{%- for c in m.tool_calls or [] %}"
            "{{- c.function.name + ' ' }}{{ c.function.arguments | tojson }}{%- endfor %}",
  # As DeepSeek: text, joined, and only where the content is none.
  'joined': "{%- if m.role == 'assistant' and m.content is none %}{%- for c in m.tool_calls %}"
            "{{- c.function.name + ' ' + c.function.arguments }}{%- endfor %}{%- else %}"
            "{{- m.content }}{%- endif %}",
  # As older ones: whatever is there, which need be no none.
  'printed': "{{- m.content + '' }}{%- for c in m.tool_calls or [] %}"
             "{{- c.function.name }} {{ c.function.arguments }}{%- endfor %}",
  'careful': "{{- m.content or '' }}{%- for c in m.tool_calls or [] %}{{- c.function.name }} "
             "{% if c.function.arguments is string %}{{ c.function.arguments }}{% else %}"
             "{{ c.function.arguments | tojson }}{% endif %}{%- endfor %}"}


def template(body):
  return chat.Template(_LOOP.replace('BODY', body), {'eos_token': '<|im_end|>'})


def call(arguments, **content):
  about = {'name': 'find', 'arguments': arguments}
  return {'role': 'assistant', 'tool_calls': [{'id': 'x', 'type': 'function', 'function': about}],
          **content}


def load(folder, kind, *rows):
  folder.mkdir(exist_ok=True)
  (folder / 'train.jsonl').write_text('\n'.join(json.dumps(row) for row in rows))
  return local.load('train', kind, mirror=str(folder))


@pytest.mark.parametrize('content', [{}, {'content': None}, {'content': ''}])
@pytest.mark.parametrize('arguments', [ARGUMENTS, TEXT])
@pytest.mark.parametrize('name', WRITERS)
def test_a_call_is_written_as_json_whatever_the_template_wants(name, arguments, content, tmp_path):
  row = {'messages': [ASKED, call(arguments, **content), RESULT, DONE]}
  example = load(tmp_path, 'demonstration', row)[0]
  said = chat.apply(template(WRITERS[name]), example).response
  name, _, written = said.partition(' ')
  assert name == 'find' and json.loads(written) == ARGUMENTS
  spaced = json.dumps(ARGUMENTS)
  assert written in (spaced, TEXT)


@pytest.mark.parametrize('name', WRITERS)
def test_a_later_turn_sees_the_call(name, tmp_path):
  row = {'messages': [ASKED, call(TEXT), RESULT, DONE]}
  _, later = load(tmp_path, 'demonstration', row)
  shown = chat.apply(template(WRITERS[name]), later)
  assert 'find {"q"' in shown.prompt and shown.response == 'done'


@pytest.mark.parametrize('body', ["{{ m.content }}", "{{ m.content + '' }}",
                                  "{% if m.content %}{{ m.content }}{% endif %}"])
@pytest.mark.parametrize('kind', ['demonstration', 'document'])
def test_a_call_that_a_template_leaves_out_is_refused(body, kind, tmp_path):
  """It would be learnt as a turn that says nothing."""
  examples = load(tmp_path, kind, {'messages': [ASKED, call(TEXT), RESULT, DONE]})
  match = 'train.jsonl, line 1: .*tool calls of message 1 .*leaves them out; use'
  with pytest.raises(ValueError, match=match):
    for example in examples:
      chat.apply(template(body), example)
  spoken = load(tmp_path, kind, {'messages': [ASKED, call(TEXT, content='wait'), RESULT, DONE]})
  assert 'wait' in str(chat.apply(template(body), spoken[0]))


def test_a_template_that_refuses_a_call_is_named_by_its_own_words(tmp_path):
  body = "{% if m.tool_calls %}{{ raise_exception('no tools here') }}{% endif %}{{ m.content }}"
  (example,) = load(tmp_path, 'demonstration', {'messages': [ASKED, call(TEXT)]})
  with pytest.raises(ValueError, match='line 1: .*no tools here'):
    chat.apply(template(body), example)


def test_whole_chats_learn_calls(tmp_path):
  source = _LOOP.replace('BODY', WRITERS['tojson'])
  folder = checkpoints.qwen2(tmp_path / 'hub', chat_template=source)
  opened, loaded = chat.of(tokenizers.load(folder))
  documents = load(tmp_path / 'a', 'document', {'messages': [ASKED, call(TEXT), RESULT, DONE]})
  (row,), _ = encoding.encode_chats(documents, loaded, opened, max_tokens=300)
  said = loaded.decode(row['tokens'][row['loss_mask']], skip_special=False)
  assert said == f'find {json.dumps(ARGUMENTS)}<|im_end|>done<|im_end|>'


@pytest.mark.parametrize('message, expected', [
  (call(TEXT), '{"find":{"q":"a \\"green\\" tea","n":2}}'),
  (call(TEXT, content='Wait.'), 'Wait. {"find":{"q":"a \\"green\\" tea","n":2}}'),
  (call('{}') | {'tool_calls': [{'name': 'f', 'arguments': ''}, {'name': 'g'}]},
   '[{"f":{}},{"g":{}}]')])
def test_our_markers_write_calls_too(message, expected, tmp_path):
  (example,) = load(tmp_path, 'demonstration', {'messages': [ASKED, message]})
  assert (example.prompt, example.response) == ('<|user|>tea?<|agent|>', expected)
  assert tool_calls.parsed('[1]') == '[1]' and tool_calls.parsed('{') == '{'


@pytest.mark.parametrize('calls', ['find', [3], [{}], [{'function': {'arguments': '{}'}}],
                                   [{'function': {'name': 'f', 'arguments': '{'}}],
                                   [{'function': {'name': 'f', 'arguments': '[1]'}}],
                                   [{'function': {'name': 'f', 'arguments': 3}}]])
def test_what_is_no_call_is_refused(calls, tmp_path):
  row = {'messages': [ASKED, {'role': 'assistant', 'content': None, 'tool_calls': calls}]}
  with pytest.raises(ValueError, match="'tool_calls' to be a list of .*line 1; found .*repair"):
    load(tmp_path, 'demonstration', row)


@pytest.mark.parametrize('message', [
  {'role': 'assistant'}, {'role': 'assistant', 'content': None},
  {'role': 'assistant', 'content': None, 'tool_calls': []}, {'role': 'user', 'content': None},
  {'role': 'user', 'content': None, 'tool_calls': call(TEXT)['tool_calls']}])
def test_nobody_else_may_say_nothing(message, tmp_path):
  with pytest.raises(ValueError, match="'messages' to be a list .*line 1; found .*repair"):
    load(tmp_path, 'prompt', {'messages': [ASKED, message]})


def test_neighbours_that_become_one_keep_their_calls():
  messages = [ASKED, call(TEXT, content='a'), call(TEXT, content='b') | {'weight': 0}]
  body = ("{% if loop.previtem and loop.previtem.role == m.role %}{{ raise_exception('turns') }}"
          f"{{% endif %}}{WRITERS['tojson']}")
  asked = Demonstration('', '', messages=(*messages, ASKED, DONE))
  assert chat.apply(template(body), asked).prompt.count('find {"q"') == 2
  assert template(body).render([ASKED, DONE])
  plain = chat._plain(messages)[1]
  assert plain['weight'] == 0 and plain['content'] == 'a\n\nb' and len(plain['tool_calls']) == 2
