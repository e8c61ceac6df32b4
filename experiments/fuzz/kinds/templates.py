"""Chat templates: jinja2 with statements of a stranger in it."""

import pathlib
import random
from typing import Any

from experiments.fuzz import _mutations as mutations
from perl import bounded
from perl.data.text import templates

SHARE = 10
NAMED = False

CHATML = """{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
BLOCKS = """{{- bos_token }}{%- for message in messages %}{{- message['role'] }}
{%- if message['role'] == 'assistant' %}{%- generation %}{{- message['content'] | trim + '!' }}
{%- endgeneration %}{%- else %}{{- message['content'] }}{%- endif %}{%- endfor %}"""
HOSTILE = (
  '{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}'
  '{% endfor %}{% endfor %}',
  "{{ 'a' * 3000000000 }}", "{{ 'abc' * 10**9 }}", '{{ 9**999999999 }}', "{{ '%1000000000d' % 1 }}",
  "{{ '{:>999999999}'.format(1) }}", "{{ 'a' | center(2000000000) }}", '{{ [0] * 10**10 }}',
  '{{ lipsum(n=100000) }}', "{{ 'a' | indent(10**9) }}",
  '{{ ([1] * 1000) | tojson(indent=10**7) }}',
  '{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}',
  '{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}',
  "{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
  '{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}'
  '{{ ns.x | tojson }}', "{{ strftime_now('%1000000000Y') }}",
  "{% for i in range(60000) %}{% for j in range(60000) %}x{% endfor %}{% endfor %}",
  "{{ ''.__class__.__mro__ }}", '{{ messages.__init__.__globals__ }}', '{{ cycler.__init__ }}',
  "{{ 'a'.encode('rot13') }}", "{% include 'x' %}", '{% extends x %}', '{{ raise_exception(1) }}',
  '{{ messages[0].content.foo.bar }}', '{{ 1 / 0 }}', '{% if %}', '{{',
  '{% for x in 1 %}{% endfor %}',
  '(' * 3000, '{{ ' + '(' * 3000 + '1' + ')' * 3000 + ' }}', '{{ ' + '-' * 5000 + '1 }}',
  '{% if 1 %}' * 300, '{{ "\ud800" }}', '{% set x = "\ufdd0" %}{{ x }}',
  '{{ self._TemplateReference__context }}',
  "{% generation %}{% generation %}a{% endgeneration %}{% endgeneration %}",
)
_MESSAGES = [{'role': 'user', 'content': 'tea'}, {'role': 'assistant', 'content': 'green?'},
             {'role': 'user', 'content': 'yes'}, {'role': 'assistant', 'content': 'done'}]
_SPECIAL = {'bos_token': '<s>', 'eos_token': '</s>'}


def prepare() -> None:
  """A second in place of the five that users have: many of the inputs take all of it."""
  templates._write = bounded.Function(templates._write.name, bounded.Bounds(seconds=1.0))


def files() -> dict[str, bytes]:
  """A template in a file of its own."""
  return {'chat_template.jinja': CHATML.encode()}


def spoil(valid: dict[str, bytes], rng: random.Random) -> dict[str, bytes | None]:
  """Hostile statements put in, characters changed; half of them are only that."""
  del valid
  text = rng.choice([CHATML, BLOCKS])
  if rng.random() < 0.15:
    at = rng.choice([0, len(text), rng.randrange(len(text))])
    text = text[:at] + rng.choice(HOSTILE) + text[at:]
  else:
    text = _cut(text, rng) if rng.random() < 0.3 else mutations.spoilt_bytes(
      text.encode(), rng).decode('utf-8', 'replace')
  return {'chat_template.jinja': text.encode('utf-8', 'surrogatepass')}


def _cut(text: str, rng: random.Random) -> str:
  """Words of the template in another order."""
  words = text.split(' ')
  i, j = rng.randrange(len(words)), rng.randrange(len(words))
  words[i], words[j] = words[j], words[i]
  return ' '.join(words)


def read(folder: pathlib.Path, rng: random.Random) -> Any:
  """What it writes, and which of that the assistant says."""
  del rng
  source = (folder / 'chat_template.jinja').read_bytes().decode('utf-8', 'surrogatepass')
  template = templates.Template(source, _SPECIAL)
  text = template.render(_MESSAGES[:1], add_generation_prompt=True)
  return text, template.spans(_MESSAGES)
