"""What a stranger wrote ends: by its bounds, with an error, and without harm to what follows."""

import os
import signal

import pytest

from perl import bounded
from perl.data.text import templates
from perl.data.text.templates import Refusal, Template

LOOP = '{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}'


@pytest.fixture
def quick(monkeypatch):
  """Templates with less time and less to write."""
  write = bounded.Function(templates._write.name, bounded.Bounds(0.3, 300, 10_000))
  monkeypatch.setattr(templates, '_write', write)
  yield write
  write.close()


@pytest.mark.parametrize('expression, why', [
  (LOOP, '0.3 s of processor time'),
  ('{{ 9**(99999999 * messages | length) }}', 'processor time'),
  ('{% if messages %}{{ "a" * 3000000000 }}{% endif %}', 'MemoryError'),
  ('{{ "a" * (20000 * messages | length) }}', 'more than 10,000 characters'),
  ('{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = [ns.x, ns.x] %}'
   '{% endfor %}{{ ns.x | string }}', 'processor time|MemoryError|end of its process'),
  ('{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}', 'RecursionError'),
])
def test_a_template_has_bounds(expression, why, quick):
  template = Template(expression, {})
  with pytest.raises(Refusal, match=f'(?s)expected it to render .*; found .*({why}).*; change'):
    template.render([{'role': 'user', 'content': 'a'}])
  assert Template('{{ messages[0].content }}', {}).render([{'role': 'user', 'content': 'a'}]) == 'a'


def test_compiling_has_bounds_too(quick):
  with pytest.raises(ValueError, match='expected a jinja2 template; found more than 0.3 s'):
    Template('{{ 9**99999999 }}', {})  # jinja2 folds constants


def test_the_process_is_one_and_starts_again(quick):
  template = Template('{{ messages[0].content }}', {})
  message = [{'role': 'user', 'content': 'é\ud800'}]
  assert template.render(message) == 'é\ud800'
  process = quick._process
  assert template.render(message) == 'é\ud800' and quick._process is process
  os.kill(process.pid, signal.SIGKILL)
  with pytest.raises(Refusal, match='end of its process'):
    template.render(message)
  assert template.render(message) == 'é\ud800' and quick._process is not process
