"""Chat templates: what they render, what the assistant says in it, and what they may not do."""

import dataclasses
import datetime

import checkpoints
import pytest

from perl.data.batches import encoding
from perl.data.examples import (
  Demonstration,
  Document,
  Labelled,
  Preference,
  Prompt,
  Ranked,
  Rated,
)
from perl.data.text import chat, tokenizer
from perl.data.text.dialogue import render

SYSTEM = {'role': 'system', 'content': 'Be brief.'}
ASKED = {'role': 'user', 'content': ' an oat latte <b>"please"</b>'}
GREEN = {'role': 'assistant', 'content': 'naïve ☕, with milk?\n'}
YES = {'role': 'user', 'content': 'yes\n\nthank you'}
DONE = {'role': 'assistant', 'content': 'done'}
TOOL = {'role': 'tool', 'content': '{"tea": 3}'}
TALK = [ASKED, GREEN, YES, DONE]
TOOLS = [{'type': 'function', 'function': {'name': 'order', 'b': '<é>', 'a': 1}}]
TOKENS = {'bos_token': '<s>', 'eos_token': '</s>'}
IM = {'eos_token': '<|im_end|>'}

# The styles whose tokenizers know the tokens of a template.
HOMES = {'chatml': 'qwen2', 'qwen2': 'qwen2', 'llama3': 'llama3', 'gemma': 'gemma',
         'llama2': 'llama2', 'zephyr': 'llama2_converted'}


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  """A maker of the folder of a style with a template, each made once."""
  root, made = tmp_path_factory.mktemp('chats'), {}

  def folder(style, template):
    if (style, template) not in made:
      path = root / str(len(made)) / style
      made[style, template] = checkpoints.STYLES[style](path, chat_template=template)
    return made[style, template]

  return folder


def auto(folder):
  transformers = pytest.importorskip('transformers')
  transformers.logging.set_verbosity_error()
  return transformers.AutoTokenizer.from_pretrained(folder)


def opened(folder):
  """(tokenizer, template) of a folder."""
  loaded = tokenizer.load(folder)
  return loaded, chat.Template(loaded.chat_template, loaded.special_tokens)


# --- Rendering


@pytest.mark.parametrize('messages', [TALK, TALK[:3], [SYSTEM, *TALK], [ASKED, GREEN, TOOL, DONE],
                                      [ASKED, DONE | {'tool_calls': None, 'extra': None}]])
@pytest.mark.parametrize('name', checkpoints.TEMPLATES)
def test_texts_are_those_of_transformers(name, messages, folders):
  folder = folders(HOMES[name], checkpoints.TEMPLATES[name])
  theirs, (_, template) = auto(folder), opened(folder)
  for options in ({}, {'add_generation_prompt': True}, {'tools': TOOLS}):
    try:
      expected = theirs.apply_chat_template(messages, tokenize=False, **options)
    except Exception as refused:  # jinja2's own
      with pytest.raises(ValueError, match='expected it to render'):
        template.render(messages, **options)
      assert 'alternate' in str(refused) or 'not supported' in str(refused)
    else:
      assert template.render(messages, **options) == expected


def test_texts_by_hand():
  template = chat.Template(checkpoints.LLAMA2, TOKENS)
  assert template.render([SYSTEM, *TALK[2:], *TALK[2:]]) == (
    '<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nyes\n\nthank you [/INST] done </s>'
    '<s>[INST] yes\n\nthank you [/INST] done </s>')
  template = chat.Template(checkpoints.CHATML, {})
  assert template.render([YES], add_generation_prompt=True) == (
    '<|im_start|>user\nyes\n\nthank you<|im_end|>\n<|im_start|>assistant\n')


@pytest.mark.parametrize('source', [
  '{{ messages | tojson }}', '{{ messages | tojson(indent=2) }}', '{{ tools | tojson }}',
  "{{ messages[0] | tojson(separators=(',', ':'), sort_keys=true, ensure_ascii=true) }}",
  '{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.role }}{% endfor %}',
  '{% set n = namespace(a=1) %}{% for m in messages %}{% set n.a = n.a + 1 %}{% endfor %}{{ n.a }}',
  "{{ dict(a=1).items() | list }}{{ nothing }}{{ strftime_now('%%') }}{{ bos_token }}",
  '  {% if true %}\n  a\n  {% endif %}\n{# note #}\nb\n'])
def test_the_dialect_is_that_of_transformers(source, folders):
  folder = folders('llama2', checkpoints.LLAMA2)
  theirs = auto(folder).apply_chat_template(
    TALK, tools=TOOLS, chat_template=source, tokenize=False)
  assert chat.Template(source, opened(folder)[0].special_tokens).render(TALK, tools=TOOLS) == theirs


def test_a_field_that_is_null_is_absent(folders):
  source = "{% for m in messages %}{{ m }}{{ m.get('calls', 'none') }}{% endfor %}"
  messages = [YES | {'calls': None}, DONE | {'calls': [None]}]
  folder = folders('llama2', checkpoints.LLAMA2)
  theirs = auto(folder).apply_chat_template(messages, chat_template=source, tokenize=False)
  assert chat.Template(source, TOKENS).render(messages) == theirs
  assert theirs.startswith(f'{YES}none')


# --- What the assistant says


@pytest.mark.parametrize('name, home', [
  ('chatml', 'qwen2'), ('chatml', 'gpt2'), ('chatml', 'llama2_converted'), ('chatml', 'llama2'),
  ('chatml', 'gemma'), ('llama3', 'llama3'), ('llama3', 'gpt2'), ('llama2', 'llama2_converted'),
  ('llama2', 'llama2'), ('llama2', 'llama3'), ('llama2', 'gpt2')])
def test_ids_and_masks_are_those_of_transformers(name, home, folders):
  folder = folders(home, checkpoints.GENERATION[name])
  talk = [ASKED, DONE, YES, GREEN | {'content': 'with milk, 12 ☕ x'}]
  theirs = auto(folder).apply_chat_template(
    talk, return_dict=True, return_assistant_tokens_mask=True)
  loaded, template = opened(folder)
  ids, mask = chat.encode(loaded, template, talk)
  # transformers leaves it to the template to write bos; this template may be of another family.
  added = loaded.adds_bos and theirs['input_ids'][0] != loaded.bos_id
  assert ids == [loaded.bos_id] * added + theirs['input_ids']
  assert mask == [False] * added + [bool(said) for said in theirs['assistant_masks']]
  assert any(mask) and not all(mask)


@pytest.mark.parametrize('name', checkpoints.GENERATION)
def test_blocks_and_prefixes_find_the_same(name):
  tokens = {'bos_token': '<s>', 'eos_token': '</s>'}
  blocks = chat.Template(checkpoints.GENERATION[name], tokens)
  plain = chat.Template(checkpoints.TEMPLATES[name], tokens)
  said = []
  for template in (blocks, plain):
    text, spans = template.spans([ASKED, DONE, YES, DONE])
    assert text == template.render([ASKED, DONE, YES, DONE])
    said.append([text[begin:end].strip() for begin, end in spans])
  stop = {'chatml': 'done<|im_end|>', 'llama3': 'done<|eot_id|>', 'llama2': 'done</s>'}[name]
  assert said[0] == [stop, stop]
  assert [turn.replace(' ', '') for turn in said[1]] == [stop, stop]


@pytest.mark.parametrize('name, stop', [
  ('chatml', 'done<|im_end|>'), ('qwen2', 'done<|im_end|>'), ('llama3', 'done<|eot_id|>'),
  ('gemma', 'done<end_of_turn>'), ('llama2', ' done </s>'), ('zephyr', 'done</s>')])
def test_spans_hold_the_turn_and_what_ends_it(name, stop):
  template = chat.Template(checkpoints.TEMPLATES[name], TOKENS)
  text, spans = template.spans([ASKED, DONE, YES, DONE])
  assert [text[begin:end] for begin, end in spans] == [stop, stop]
  assert text == template.render([ASKED, DONE, YES, DONE])
  assert template.spans([ASKED])[1] == []


def test_blocks_that_are_written_by_macros_are_found_too():
  source = ("{% macro say(m) %}({% generation %}{{ m.content }}!{% endgeneration %}){% endmacro %}"
            "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% else %}"
            "{% set turn = say(m) %}{{ turn }}{% endif %}{% endfor %}")
  text, spans = chat.Template(source, {}).spans([YES, DONE, YES, DONE])
  assert text == 'yes\n\nthank you(done!)' * 2
  assert [text[begin:end] for begin, end in spans] == ['done!', 'done!']


def test_blocks_that_are_worked_on_are_refused():
  source = ('{% set turn %}{% generation %} {{ messages[0].content }} {% endgeneration %}'
            '{% endset %}{{ turn | length }}')
  with pytest.raises(ValueError, match='works on their text afterwards.*change the template'):
    chat.Template(source, {}).spans([DONE])


def test_a_template_that_writes_earlier_turns_anew_is_refused():
  template = chat.Template(checkpoints.THINKING, IM)
  text, (span,) = template.spans(TALK[:2])
  assert text[slice(*span)].startswith('<think>\n\n</think>\n\nnaïve')
  with pytest.raises(ValueError, match=r'message 1 .*<think>.*writes earlier turns anew.*blocks'):
    template.spans(TALK)


def test_mask_by_hand(folders):
  loaded, template = opened(folders('gemma', checkpoints.GEMMA))
  ids, mask = chat.encode(loaded, template, [{'role': 'user', 'content': 'tea'}, DONE])
  said = loaded.encode('done<end_of_turn>')
  assert ids == loaded.encode('<bos><start_of_turn>user\ntea<end_of_turn>\n<start_of_turn>model\n'
                              'done<end_of_turn>\n')
  assert [i for i, mine in zip(ids, mask) if mine] == said
  assert mask == [False] * (len(ids) - len(said) - 1) + [True] * len(said) + [False]


# --- The clock, and what identifies a text's ids

CLOCK = "{{ strftime_now('%d %b %Y, %H:%M') }}" + checkpoints.CHATML


def test_a_template_that_reads_the_clock_is_told_the_day_of_the_run():
  template = chat.Template(CLOCK, {}, '2025-12-24')
  assert template.render([YES]).startswith('24 Dec 2025, 00:00<|im_start|>')
  assert (template.date, chat.Template(checkpoints.CHATML, {}, '2025-12-24').date) == (
    '2025-12-24', '')
  today = datetime.date.today()
  assert chat.Template(CLOCK, {}).date in (today.isoformat(), datetime.date.today().isoformat())
  with pytest.raises(ValueError, match="data.date .*found '24.12.2025'; write it so"):
    chat.Template(CLOCK, {}, '24.12.2025')


def test_whatever_changes_ids_changes_the_digest_of_texts(folders, tmp_path):
  def digest(template=checkpoints.CHATML, date='2025-12-24', **config):
    folder = checkpoints.qwen2(tmp_path / str(len(digests)), chat_template=template, **config)
    opened, loaded = chat.of(tokenizer.load(folder), date)
    return chat.text_digest(loaded, opened)

  digests = []
  digests += [digest()]
  assert digests[0] == chat.text_digest(*reversed(chat.of(tokenizer.load(tmp_path / '0'))))
  digests += [digest(CLOCK)]
  digests += [digest(CLOCK, '2025-12-25')]
  digests += [digest(checkpoints.QWEN2)]
  digests += [digest(eos_token='<|endoftext|>')]
  digests += [digest(pad_token='<|im_start|>')]
  plain = tokenizer.load(folders('gpt2', None))
  digests += [chat.text_digest(plain, None)]
  assert len(set(digests)) == len(digests) and digests[-1] == plain.digest


# --- bos


@pytest.mark.parametrize('name', checkpoints.TEMPLATES)
def test_bos_is_there_once_whoever_writes_it(name, folders):
  loaded, template = opened(folders(HOMES[name], checkpoints.TEMPLATES[name]))
  ids, mask = chat.encode(loaded, template, [YES, DONE])
  assert len(ids) == len(mask) and not mask[0]
  assert ids.count(loaded.bos_id) == (1 if loaded.adds_bos else 0) or loaded.bos_id == loaded.eos_id
  assert (ids[0] == loaded.bos_id) is loaded.adds_bos


@pytest.mark.parametrize('name', checkpoints.TEMPLATES)
def test_the_pipeline_does_not_put_a_second_bos_before_a_template(name, folders):
  loaded, template = opened(folders(HOMES[name], checkpoints.TEMPLATES[name]))
  example = chat.apply(template, Demonstration('x', '', messages=(YES, DONE)))
  (row,), _ = encoding.encode([example], loaded, kind='demonstration', max_prompt_tokens=200,
                              max_response_tokens=100)
  tokens = row['tokens'].tolist()
  assert (tokens[0] == loaded.bos_id) is loaded.adds_bos
  assert loaded.bos_id == loaded.eos_id or tokens.count(loaded.bos_id) == int(loaded.adds_bos)
  assert tokens.count(loaded.eos_id) - loaded.encode(example.prompt).count(loaded.eos_id) == 1
  assert tokens[-1] == loaded.eos_id


@pytest.mark.parametrize('name, said', [
  ('chatml', 'done<|im_end|>'), ('qwen2', 'done<|im_end|>'), ('llama3', 'done<|eot_id|>'),
  ('gemma', 'done<end_of_turn>\n<eos>')])  # its turns do not end in its eos, which is added
def test_rows_of_the_pipeline_are_the_whole_chat(name, said, folders):
  loaded, template = opened(folders(HOMES[name], checkpoints.TEMPLATES[name]))
  example = chat.apply(template, Demonstration('x', '', messages=tuple(TALK)))
  (row,), _ = encoding.encode([example], loaded, kind='demonstration', max_prompt_tokens=500,
                              max_response_tokens=100)
  assert row['tokens'][row['loss_mask']].tolist() == loaded.encode(said)
  ids, _ = chat.encode(loaded, template, TALK)
  length = min(len(ids), len(row['tokens']))  # the one ends in '\n', the other may in eos
  assert row['tokens'][:length].tolist() == ids[:length]
  assert abs(len(ids) - len(row['tokens'])) <= 1


# --- What a template may not do


@pytest.mark.parametrize('source', ['{% for m in messages %}', '{{ messages', '{% unknown %}',
                                    '{% generation %}x', None])
def test_what_is_no_template(source):
  with pytest.raises(ValueError, match='chat template: expected .*; found .*; (repair|give)'):
    chat.Template(source, {})


@pytest.mark.parametrize('source, found', [
  ("{{ ''.__class__.__mro__ }}", 'SecurityError'),
  ("{{ ''.__class__.__mro__[1].__subclasses__() }}", 'SecurityError'),
  ('{{ raise_exception.__globals__.json }}', 'SecurityError'),
  ("{{ messages.append({'role': 'user'}) }}", 'SecurityError'),
  ("{{ messages[0].update(content='x') }}", 'SecurityError'),
  ("{{ namespace(__class__=1) }}", 'SecurityError'),
  ("{% set n = namespace() %}{% set n._a = 1 %}{{ n }}", 'SecurityError'),
  ("{{ '{0.__class__.__mro__}'.format(1) }}", 'SecurityError'),
  ('{{ open("x") }}', 'UndefinedError'),
  ('{{ __import__("os").system("true") }}', 'UndefinedError'),
  ('{% include "x" %}', 'TypeError'),
  ('{{ nothing() }}', 'UndefinedError'),
  ('{{ messages[9].content.strip() }}', 'UndefinedError'),
  ("{{ messages[0].content + 3 }}", 'TypeError'),
  ('{% for i in range(10 ** 9) %}{% endfor %}', 'OverflowError'),
  ('{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}', 'RecursionError'),
  ("{{ raise_exception('Only tea.') }}", 'TemplateError: Only tea.')])
def test_what_a_template_may_not_do(source, found):
  messages = [{'role': 'user', 'content': 'tea'}]
  with pytest.raises(ValueError, match=rf'roles \[user\]; found {found}.*; change the messages'):
    chat.Template(source, {}).render(messages)
  assert messages == [{'role': 'user', 'content': 'tea'}]


# --- Our own markup


@pytest.mark.parametrize('text, expected', [
  ('<|user|>tea<|agent|>', [('user', 'tea')]),
  ('<|user|>tea<|agent|>{"f":{}}<|eos|><|api|>{"x":1}<|agent|>ok<|eos|>',
   [('user', 'tea'), ('assistant', '{"f":{}}'), ('tool', '{"x":1}'), ('assistant', 'ok')]),
  ('<|agent|><|eos|><|user|>a\n b<|agent|>c ', [('assistant', ''), ('user', 'a\n b'),
                                              ('assistant', 'c ')]),
  ('plain', [('user', 'plain')]), ('', [])])
def test_our_markup_as_messages(text, expected):
  assert chat.as_messages(text) == [{'role': r, 'content': c} for r, c in expected]


def test_messages_are_what_was_rendered():
  turns = [{'role': 'user', 'text': 'tea'}, {'role': 'agent', 'text': 'which?'},
           {'role': 'agent', 'api': {'find': {'q': 'tea'}}},
           {'role': 'api', 'response': {'find': {'name': 'x'}}}]
  assert chat.as_messages(render(turns, None)[0]) == [
    {'role': 'user', 'content': 'tea'}, {'role': 'assistant', 'content': 'which?'},
    {'role': 'assistant', 'content': '{"find":{"q":"tea"}}'},
    {'role': 'tool', 'content': '{"name":"x"}'}]


# --- Examples

CHATML_PROMPT = '<|im_start|>user\ntea<|im_end|>\n<|im_start|>assistant\n'
MARKED = '<|user|>tea<|agent|>'


@pytest.mark.parametrize('prompt', [MARKED, 'tea'])
@pytest.mark.parametrize('make, said', [
  (lambda prompt, **about: Prompt(prompt, **about), {}),
  (lambda prompt, **about: Demonstration(prompt, 'ok', **about), {'response': 'ok'}),
  (lambda prompt, **about: Labelled(prompt, 'ok', 1.0, **about), {'response': 'ok'}),
  (lambda prompt, **about: Preference(prompt, 'ok', 'no', 0.5, **about),
   {'chosen': 'ok', 'rejected': 'no'}),
  (lambda prompt, **about: Ranked(prompt, ('ok', 'no', 'so'), **about),
   {'responses': ('ok', 'no', 'so')}),
  (lambda prompt, **about: Rated(prompt, 'ok', 0.5, **about), {'response': 'ok'})])
def test_examples_by_a_template(make, said, prompt):
  template = chat.Template(checkpoints.CHATML, IM)
  example = make(prompt, group='g', meta={'source': 's'})
  assert chat.apply(template, example) == dataclasses.replace(
    example, prompt=CHATML_PROMPT, **said)


@pytest.mark.parametrize('name, tokens, response', [
  ('chatml', IM, 'done'), ('chatml', TOKENS, 'done<|im_end|>\n'), ('llama2', TOKENS, ' done '),
  ('llama3', {'eos_token': '<|eot_id|>'}, 'done'), ('gemma', TOKENS, 'done<end_of_turn>\n'),
  ('zephyr', TOKENS, 'done')])
def test_only_the_tokenizers_own_eos_is_left_to_the_pipeline(name, tokens, response):
  template = chat.Template(checkpoints.TEMPLATES[name], tokens)
  example = chat.apply(template, Demonstration('', '', messages=tuple(TALK)))
  assert example.response == response
  assert example.prompt == template.render(TALK[:3], add_generation_prompt=True)
  assert example.messages == tuple(TALK)


def test_messages_of_a_preference_are_its_context_and_its_two_turns():
  template = chat.Template(checkpoints.CHATML, IM)
  example = chat.apply(template, Preference('', 'x', 'y', messages=(YES, DONE, GREEN)))
  assert (example.chosen, example.rejected) == ('done', GREEN['content'])
  assert example.prompt == template.render([YES], add_generation_prompt=True)
  ranked = chat.apply(template, Ranked('', ('x', 'y'), messages=(YES, DONE, GREEN)))
  assert ranked.responses == ('done', GREEN['content']) and ranked.prompt == example.prompt
  assert chat.as_prompt(ranked).messages == (YES,)


def test_documents_are_rendered_whole_and_plain_text_is_left():
  template = chat.Template(checkpoints.CHATML, IM)
  whole = template.render([YES, DONE])
  assert chat.apply(template, Document('', messages=(YES, DONE))).text == whole.rstrip()
  assert chat.apply(template, Document('<|user|>tea<|agent|>ok<|eos|>')).text == (
    CHATML_PROMPT + 'ok<|im_end|>')
  other = chat.Template(checkpoints.CHATML, TOKENS)  # its turns do not end in this eos
  assert chat.apply(other, Document('', messages=(YES, DONE))).text == whole
  plain = Document('an oat latte <|user|>')
  assert chat.apply(template, plain) is plain


def test_tools_of_an_example_are_shown():
  template = chat.Template(checkpoints.QWEN2, IM)
  call = DONE | {'tool_calls': [{'function': {'name': 'order', 'arguments': {}}}]}
  example = chat.apply(template, Demonstration('', '', meta={'tools': TOOLS}, messages=(YES, call)))
  assert '"name": "order", "b": "<é>", "a": 1' in example.prompt
  assert example.response == 'done\n<tool_call>{"name": "order", "arguments": {}}</tool_call>'


def test_roles_that_a_template_refuses_become_the_users():
  template = chat.Template(checkpoints.GEMMA, {'bos_token': '<bos>'})
  talk = (SYSTEM, YES, DONE, TOOL, YES, DONE)
  example = chat.apply(template, Demonstration('', '', messages=talk))
  assert example.prompt == (
    '<bos><start_of_turn>user\nBe brief.\n\nyes\n\nthank you<end_of_turn>\n'
    '<start_of_turn>model\ndone<end_of_turn>\n'
    '<start_of_turn>user\n{"tea": 3}\n\nyes\n\nthank you<end_of_turn>\n<start_of_turn>model\n')
  assert example.response == 'done<end_of_turn>\n'
  document = chat.apply(template, Document('', messages=talk))
  assert document.text == example.prompt + example.response


def test_roles_that_a_template_takes_stay():
  template = chat.Template(checkpoints.QWEN2, IM)
  talk = (SYSTEM, YES, YES, DONE, TOOL, DONE)
  prompt = chat.apply(template, Demonstration('', '', messages=talk)).prompt
  assert prompt == template.render(talk[:-1], add_generation_prompt=True)
  assert prompt.count('<|im_start|>user') == 3 and '<tool_response>' in prompt


def test_a_second_turn_of_the_assistant():
  template = chat.Template(checkpoints.GEMMA, {'bos_token': '<bos>'})
  text = '<|user|>tea<|agent|>which?<|eos|><|agent|>'
  prompt = chat.apply(template, Prompt(text)).prompt
  shown = chat.apply(template, Demonstration(text, '{"find":{}}'))
  assert shown.prompt == prompt and shown.response == '{"find":{}}<end_of_turn>\n'


# --- An assistant that opens

DEFAULT = '<|im_start|>system\nYou help.<|im_end|>\n'
HEADER = '<|im_start|>assistant\n'


@pytest.mark.parametrize('name, prompt', [
  ('chatml', HEADER), ('default', DEFAULT + HEADER), ('qwen2', DEFAULT + HEADER),
  ('llama3', '<s><|start_header_id|>assistant<|end_header_id|>\n\n'),
  ('zephyr', '<|assistant|>\n'), ('thinking', HEADER),
  # These want the user to begin.
  ('gemma', '<s><start_of_turn>user\n<end_of_turn>\n<start_of_turn>model\n'),
  ('llama2', '<s>[INST]  [/INST]')])
def test_the_prompt_of_an_assistant_that_opens_is_what_the_template_writes_before_it(name, prompt):
  source = {'thinking': checkpoints.THINKING, 'default': checkpoints.DEFAULT}.get(name)
  template = chat.Template(source or checkpoints.TEMPLATES[name], TOKENS)
  assert chat.apply(template, Prompt('<|agent|>')).prompt == prompt
  said = chat.apply(template, Demonstration('<|agent|>', 'done'))
  assert said.prompt == prompt and said.response.strip().startswith(
    'done' if name != 'thinking' else '<think>\n\n</think>\n\ndone')


CHATS = {'opens': (DONE, ASKED, GREEN), 'alone': (DONE,), 'system': (SYSTEM, DONE),
         'twice': (DONE, GREEN), 'two users': (YES, ASKED, DONE), 'tool': (ASKED, DONE, TOOL, DONE),
         'system later': (ASKED, SYSTEM, DONE), 'tool opens': (TOOL, DONE)}


@pytest.mark.parametrize('messages', CHATS.values(), ids=CHATS)
@pytest.mark.parametrize('name', [*checkpoints.TEMPLATES, 'default'])
def test_every_kind_of_example_asks_the_same_of_any_order_of_roles(name, messages):
  """What RL asks is what SFT, the reward model and whole chats have before the response."""
  template = chat.Template({'default': checkpoints.DEFAULT}.get(name) or
                           checkpoints.TEMPLATES[name], TOKENS)
  context, last = messages[:-1], messages[-1]
  asked = chat.apply(template, Prompt('<|agent|>', messages=context)).prompt
  for kind in (Demonstration('', ''), Labelled('', '', 1.0), Rated('', '', 0.5)):
    shown = chat.apply(template, dataclasses.replace(kind, messages=messages))
    assert shown.prompt == asked
  for kind in (Preference('', '', ''), Ranked('', ('', ''))):
    pair = chat.apply(template, dataclasses.replace(kind, messages=(*messages, last)))
    assert pair.prompt == asked and {*pair.answers} == {shown.response}
  if [message['role'] for message in context][-1:] != ['assistant']:
    whole = chat.apply(template, Document('', messages=messages)).text
    bare = whole.rstrip().removesuffix(TOKENS['eos_token'])
    assert (asked + shown.response).rstrip() == bare.rstrip()
  for message in messages[:-1]:  # nothing is lost
    assert message['content'].strip() in asked


@pytest.mark.parametrize('name', checkpoints.TEMPLATES)
def test_a_whole_chat_that_the_assistant_opens(name, folders):
  loaded, template = opened(folders(HOMES[name], checkpoints.TEMPLATES[name]))
  talk = (DONE, YES, GREEN)
  ids, mask = chat.encode_document(loaded, template, Document('', messages=talk))
  said = ''.join(loaded.decode([i for i, mine in zip(ids, mask) if mine]).split())
  stop = ''.join(template.turn([YES], DONE)[1].split()).removeprefix('done')
  shown = ''.join(loaded.decode(loaded.encode(text + stop)) for text in ('done', GREEN['content']))
  assert said == ''.join(shown.split())


def test_agent_is_a_name_of_the_assistant():
  template = chat.Template(checkpoints.GEMMA, {})
  talk = (YES, DONE | {'role': 'agent'})
  assert chat.apply(template, Demonstration('', '', messages=talk)).response.startswith('done')


@pytest.mark.parametrize('source, match', [
  ("{{ raise_exception('never') }}", 'roles .user.; found TemplateError: never'),
  ("{% for m in messages %}{{ m.content }}{% endfor %}"
   "{% if add_generation_prompt %}A:{% endif %}",
   'message 1 .*does not open its turns; .*data.chat_template')])
def test_examples_that_cannot_be_rendered(source, match):
  with pytest.raises(ValueError, match=match):
    chat.apply(chat.Template(source, {}), Demonstration('tea', 'ok'))
