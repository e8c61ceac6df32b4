"""Folders as checkpoints are published in, small: tokenizers and templates in the known styles."""

import functools
import json
import pathlib

CORPUS = ['an oat latte please', 'one more tea with milk', 'and sugar, thank you',
          'naïve café: 3 items\n\nand 12 eggs'] * 20

# --- Templates, as their families have them; written for these tests

CHATML = """{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""

QWEN2 = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0]['role'] == 'system' %}{{- messages[0]['content'] + '\\n\\n' }}{%- endif %}
    {{- '# Tools\\n<tools>' }}
    {%- for tool in tools %}{{- '\\n' }}{{- tool | tojson }}{%- endfor %}
    {{- '\\n</tools><|im_end|>\\n' }}
{%- elif messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nYou help.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'system' and loop.first %}{%- continue %}{%- endif %}
    {%- if message.role == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>' + message.content + '</tool_response>' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content }}
        {%- for call in message.tool_calls or [] %}
            {{- '\\n<tool_call>' }}{{- call.function | tojson }}{{- '</tool_call>' }}
        {%- endfor %}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

LLAMA3 = """{{- bos_token }}
{%- set ns = namespace(system='') %}
{%- if messages[0]['role'] == 'system' %}
    {%- set ns.system = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- endif %}
{%- if ns.system %}
    {{- '<|start_header_id|>system<|end_header_id|>\\n\\n' + ns.system + '<|eot_id|>' }}
{%- endif %}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

GEMMA = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}\
{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}\
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('Conversation roles must alternate \
user/assistant/user/assistant/...') }}{% endif %}{% if (message['role'] == 'assistant') %}\
{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}\
{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}\
{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}"""

LLAMA2 = """{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}\
{% set system = messages[0]['content'] %}{% else %}{% set rest = messages %}\
{% set system = false %}{% endif %}{% for message in rest %}\
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}\
{% if loop.index0 == 0 and system != false %}\
{% set content = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + message['content'] %}\
{% else %}{% set content = message['content'] %}{% endif %}\
{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}\
{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}\
{% endfor %}"""

ZEPHYR = """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\\n'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""

# SmolLM2's: a system turn of its own where the chat has none.
DEFAULT = """{% for message in messages %}\
{% if loop.first and messages[0]['role'] != 'system' %}\
{{ '<|im_start|>system\\nYou help.<|im_end|>\\n' }}{% endif %}\
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}\
{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

# A thought is written with the last turn only: earlier turns are written anew.
THINKING = """{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.role == 'assistant' and loop.last %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
    {{- message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""

TEMPLATES = {'chatml': CHATML, 'qwen2': QWEN2, 'llama3': LLAMA3, 'gemma': GEMMA, 'llama2': LLAMA2,
             'zephyr': ZEPHYR}

# The same with blocks around what the assistant says.
GENERATION = {
  'chatml': """{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['role'] == 'assistant' %}
{%- generation %}{{- message['content'] + '<|im_end|>' }}{%- endgeneration %}
{%- else %}{{- message['content'] + '<|im_end|>' }}{%- endif %}
{{- '\\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}""",
  'llama3': """{{- bos_token }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {%- if message['role'] == 'assistant' %}
        {%- generation %}
            {{- message['content'] | trim + '<|eot_id|>' }}
        {%- endgeneration %}
    {%- else %}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}""",
  'llama2': """{% for message in messages %}{% if message['role'] == 'user' %}\
{{ bos_token + '[INST] ' + message['content'].strip() + ' [/INST] ' }}{% else %}\
{% generation %}{{ message['content'].strip() + eos_token }}{% endgeneration %}\
{% endif %}{% endfor %}""",
}

# --- Folders


def added(**tokens: int) -> dict:
  """An entry for added_tokens_decoder, {text: id}."""
  plain = dict.fromkeys(('lstrip', 'rstrip', 'normalized', 'single_word'), False)
  return {str(index): {'content': text, **plain, 'special': True} for text, index in tokens.items()}


@functools.cache
def _bpe(special: tuple[str, ...]) -> str:
  """A byte-level BPE whose special tokens have the last ids, as a JSON text."""
  import tokenizers
  from tokenizers import decoders, models, pre_tokenizers, trainers

  made = tokenizers.Tokenizer(models.BPE())
  made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  made.decoder = decoders.ByteLevel()
  made.train_from_iterator(CORPUS, trainers.BpeTrainer(
    vocab_size=300, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
  made.add_special_tokens([tokenizers.AddedToken(token, special=True) for token in special])
  return made.to_str()


def byte_level(folder: pathlib.Path, special: tuple[str, ...], config: dict,
               processors: tuple = ()) -> pathlib.Path:
  """A folder with a byte-level tokenizer.json; `processors` are post-processors in a row."""
  import tokenizers

  folder.mkdir(parents=True)
  made = tokenizers.Tokenizer.from_str(_bpe(special))
  steps = [make(made) for make in processors]
  if steps:
    made.post_processor = steps[0] if len(steps) == 1 else tokenizers.processors.Sequence(steps)
  made.save(str(folder / 'tokenizer.json'))
  ids = {text: made.token_to_id(text) for text in special}
  config = {'tokenizer_class': 'PreTrainedTokenizerFast', 'added_tokens_decoder': added(**ids)
            } | config
  (folder / 'tokenizer_config.json').write_text(json.dumps(config))
  return folder


def opens_with(token):
  """A maker of the post-processor that puts `token` before a text."""
  def make(made):
    from tokenizers import processors
    return processors.TemplateProcessing(
      single=f'{token} $A', pair=f'{token} $A {token} $B',
      special_tokens=[(token, made.token_to_id(token))])
  return make


def trims(made):
  """The post-processor that leaves white space out of the offsets."""
  from tokenizers import processors
  del made
  return processors.ByteLevel(trim_offsets=True)


def llama3(folder, **config):
  """bos by a TemplateProcessing in a Sequence; nothing in the config says so."""
  special = ('<|begin_of_text|>', '<|end_of_text|>', '<|start_header_id|>', '<|end_header_id|>',
             '<|eot_id|>')
  config = {'bos_token': special[0], 'eos_token': special[4], 'chat_template': LLAMA3} | config
  return byte_level(folder, special, config, (trims, opens_with(special[0])))


def qwen2(folder, **config):
  """No bos: a null in the config."""
  special = ('<|endoftext|>', '<|im_start|>', '<|im_end|>')
  config = {'bos_token': None, 'eos_token': '<|im_end|>', 'pad_token': '<|endoftext|>',
            'unk_token': None, 'add_bos_token': False, 'chat_template': QWEN2} | config
  return byte_level(folder, special, config)


def gpt2(folder, **config):
  """One token for bos, eos and unk, which a text does not open with."""
  token = '<|endoftext|>'
  config = {'bos_token': token, 'eos_token': token, 'unk_token': token} | config
  return byte_level(folder, (token,), config, (trims,))


def neox(folder, **config):
  """As GPT-2, with padding of its own."""
  special = ('<|endoftext|>', '<|padding|>')
  config = {'bos_token': special[0], 'eos_token': special[0], 'unk_token': special[0],
            'tokenizer_class': 'GPTNeoXTokenizer', 'add_prefix_space': False} | config
  return byte_level(folder, special, config, (trims,))


def gpt2_of_old(folder, **config):
  """vocab.json and merges.txt, without a tokenizer.json."""
  settings = json.loads(_bpe(('<|endoftext|>',)))
  vocabulary = settings['model']['vocab'] | {'<|endoftext|>': settings['added_tokens'][0]['id']}
  folder.mkdir(parents=True)
  (folder / 'vocab.json').write_text(json.dumps(vocabulary))
  merges = [merge if isinstance(merge, str) else ' '.join(merge)
            for merge in settings['model']['merges']]
  (folder / 'merges.txt').write_text('\n'.join(['#version: 0.2', *merges]) + '\n')
  config = {'tokenizer_class': 'GPT2Tokenizer', 'model_max_length': 1024} | config
  (folder / 'tokenizer_config.json').write_text(json.dumps(config))
  return folder


@functools.cache
def _sentencepiece(**options) -> bytes:
  import io

  import sentencepiece

  model = io.BytesIO()
  options = {'model_type': 'bpe', 'byte_fallback': True, 'remove_extra_whitespaces': False,
             'normalization_rule_name': 'identity'} | options
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(' '.join(line.split()) for line in CORPUS), model_writer=model,
    vocab_size=320, hard_vocab_limit=False, minloglevel=2, **options)
  return model.getvalue()


def llama2(folder, **config):
  """A SentencePiece model with <s> before a text, and two tokens beyond its pieces."""
  folder.mkdir(parents=True)
  (folder / 'tokenizer.model').write_bytes(_sentencepiece())
  tokens = {'<unk>': 0, '<s>': 1, '</s>': 2, '<|im_start|>': 320, '<|im_end|>': 321}
  written = lambda text: {'__type': 'AddedToken', 'content': text, 'normalized': False}
  config = {'tokenizer_class': 'LlamaTokenizer', 'bos_token': written('<s>'),
            'eos_token': written('</s>'), 'unk_token': written('<unk>'), 'pad_token': None,
            'add_bos_token': True, 'add_eos_token': False, 'legacy': False,
            'added_tokens_decoder': added(**tokens), 'chat_template': LLAMA2} | config
  (folder / 'tokenizer_config.json').write_text(json.dumps(config))
  return folder


def gemma(folder, **config):
  """A SentencePiece model without a space before a text, its turns among its pieces."""
  folder.mkdir(parents=True)
  (folder / 'tokenizer.model').write_bytes(_sentencepiece(
    add_dummy_prefix=False, pad_id=0, eos_id=1, bos_id=2, unk_id=3, pad_piece='<pad>',
    eos_piece='<eos>', bos_piece='<bos>',
    user_defined_symbols='<mask>,<start_of_turn>,<end_of_turn>'))
  config = {'tokenizer_class': 'GemmaTokenizer', 'bos_token': '<bos>', 'eos_token': '<eos>',
            'unk_token': '<unk>', 'pad_token': '<pad>', 'add_bos_token': True,
            'chat_template': GEMMA} | config
  (folder / 'tokenizer_config.json').write_text(json.dumps(config))
  return folder


def converted(make):
  """The same checkpoint as transformers saves it: with a tokenizer.json and a template file."""
  def build(folder, **config):
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(make(folder.with_name(f'{folder.name}_source'), **config)
                                  ).save_pretrained(folder)
    return folder
  return build


STYLES = {'llama3': llama3, 'qwen2': qwen2, 'gpt2': gpt2, 'neox': neox, 'gpt2_of_old': gpt2_of_old,
          'llama2': llama2, 'gemma': gemma, 'llama2_converted': converted(llama2),
          'gemma_converted': converted(gemma)}
