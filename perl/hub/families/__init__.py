"""Published families: a config.json to a `Config` and back, one file each, named as its model_type.

The protocol of `perl/hub/families/<model_type>.py`: ``ARCHITECTURE``, the class of transformers
without its end (``CAUSAL``, else 'ForCausalLM'); ``read(fields) -> options of Config``;
``write(config) -> fields``, but for a family that is only read. What `write` cannot say is found by
reading it again: `describe` takes the family whose words give the same Config. `find(model_type)`
imports the file: there is no registry.
"""

from types import ModuleType
from typing import Any

from perl import choices
from perl.documents import shown
from perl.hub.config_json import Fields, Unsupported
from perl.models.config import Config, differences


def find(model_type: str, where: str = 'config.json') -> ModuleType:
  """The module of a family; `where` is the file that names it.

  Raises:
    Unsupported: no such file; the known ones are listed.
  """
  known = choices.names(__name__)
  if model_type not in known:
    raise Unsupported(
      f'expected a model_type among {", ".join(known)} in {where}, found {shown(model_type)}; '
      'add it as a file of perl/hub/families, or use a model of a known family')
  return choices.find(__name__, model_type)


def parse(config_json: dict[str, Any], *, where: str = 'config.json', **run: Any) -> Config:
  """The `Config` of a config.json.

  Args:
    config_json: its fields, of transformers 4 or 5.
    where: the file, for errors.
    **run: fields of Config that say how it is run (dtype, param_dtype, remat, scan_unroll).

  Raises:
    Unsupported: an architecture or a field that would change the mathematics, and is not known.
  """
  family = find(config_json.get('model_type', 'no model_type'), where)
  fields = Fields(config_json, where)
  options = family.read(fields)
  fields.check_rest()
  try:
    return Config(**{**options, **run})
  except ValueError as error:  # of how the options fit together
    raise Unsupported(f'{where}: {error}') from error


def describe(config: Config, model_type: str = '') -> dict[str, Any]:
  """The config.json of a `Config`, without its architecture: the inverse of `parse`.

  Args:
    config: the model's.
    model_type: the family to be used; '', and one that is only read, take the first that has these
      options.

  Raises:
    Unsupported: no published family has these options; says what comes nearest.
  """
  lacking = {}
  own = [name for name in choices.names(__name__) if hasattr(find(name), 'write')]
  for name in [model_type] if model_type in own else own:
    family = find(name)
    fields = {**family.write(config), 'model_type': name}
    try:
      lacking[name] = differences(config, parse(fields))
    except Unsupported as error:
      lacking[name] = [str(error)]
    if not lacking[name]:
      return fields
  nearest = min(lacking, key=lambda name: len(lacking[name]))
  raise Unsupported(
    f'expected options that a published family has, found none that has all of these; {nearest!r} '
    f'differs in {"; ".join(lacking[nearest])} (ours, its); save the base as an Orbax tree instead')
