"""The dialect of chat templates: jinja2 as transformers has it, in a sandbox.

`write` runs in a process of its own (perl/bounded.py): use templates.Template.
"""

import datetime
import functools
import json
from typing import Any

import jinja2
from jinja2 import ext, nodes, sandbox

OPEN, CLOSE = '\ufdd0', '\ufdd1'
"""Around what `{% generation %}` encloses, where MARKED is true: noncharacters of Unicode."""
MARKED = 'perl_marks_generation'


class _Generation(ext.Extension):
  """`{% generation %}...{% endgeneration %}`: what the assistant says, as transformers has it."""

  tags = {'generation'}

  def parse(self, parser: Any) -> nodes.Node:
    self.environment.generation_blocks = True
    line = next(parser.stream).lineno
    body = parser.parse_statements(('name:endgeneration',), drop_needle=True)
    call = self.call_method('_mark', [nodes.ContextReference()])
    return nodes.CallBlock(call, [], [], body).set_lineno(line)

  def _mark(self, context: Any, caller: Any) -> str:
    return OPEN + caller() + CLOSE if context.get(MARKED) else caller()


class _Namespace(jinja2.utils.Namespace):
  """A namespace that has no names of CPython's inner life."""

  def __init__(*arguments: Any, **values: Any):
    self, *arguments = arguments  # so that a template may name a value `self`
    jinja2.utils.Namespace.__init__(self)
    for name, value in dict(*arguments, **values).items():
      self[name] = value

  def __setitem__(self, name: str, value: Any) -> None:
    if str(name).startswith('_'):
      raise jinja2.exceptions.SecurityError(f'a namespace has no name {name!r}')
    super().__setitem__(name, value)


def _raise_exception(message: str) -> None:
  raise jinja2.TemplateError(message)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None,
             separators: tuple[str, str] | None = None, sort_keys: bool = False) -> str:
  """JSON with its keys in order; jinja2's own filter sorts them and escapes for HTML."""
  return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
                    sort_keys=sort_keys)


def _environment(date: datetime.date) -> sandbox.ImmutableSandboxedEnvironment:
  environment = sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, ext.loopcontrols])
  environment.generation_blocks = False
  environment.filters['tojson'] = _to_json
  environment.globals |= {
    'raise_exception': _raise_exception,
    'strftime_now': date.strftime,
    'dict': lambda *arguments, **values: dict(*arguments, **values),
    'namespace': _Namespace,
  }
  return environment


@functools.lru_cache(maxsize=16)
def _compiled(source: str, day: str) -> tuple[jinja2.Template, bool]:
  """(the template, whether it has `{% generation %}` blocks)."""
  environment = _environment(datetime.date.fromisoformat(day))
  template = environment.from_string(source)
  return template, environment.generation_blocks


def write(source: str, day: str, variables: dict[str, Any] | None = None) -> str | bool:
  """What a template writes of variables; of none, whether it has `{% generation %}` blocks."""
  template, has_blocks = _compiled(source, day)
  return has_blocks if variables is None else template.render(variables)
