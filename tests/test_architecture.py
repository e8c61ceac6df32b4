"""Floors and arrows of the house: imports run down only, and files stay small and explained."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
GROUND = ('types', 'masked', 'trees', 'products', 'quantized', 'quantization')
WINGS = ('data', 'peft', 'models', 'train', 'objectives')
ABOVE = ('rl', 'evaluate', 'jobs')
# They stand above the wings though their addresses are in one, for their names are public: each
# looks into every wing, and no wing may import it.
DOORS = ('perl.models.pretrained', 'perl.peft.interop')
FOREIGN = ('configs', 'experiments', 'notebooks', 'tests', 'absl')
MAX_LINES = 300

FILES = sorted((ROOT / 'perl').rglob('*.py'))
NAMES = [str(path.relative_to(ROOT)) for path in FILES]


def parsed(name: str) -> ast.Module:
  return ast.parse((ROOT / name).read_text())


def module(name: str) -> str:
  """'perl/models/lm.py' -> 'perl.models.lm'."""
  return name.removesuffix('.py').removesuffix('/__init__').replace('/', '.')


MODULES = {module(name) for name in NAMES}


def imports(name: str) -> set[str]:
  """Modules that a file imports, wherever in it; relative ones are resolved."""
  found = set()
  for node in ast.walk(parsed(name)):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    if isinstance(node, ast.ImportFrom):
      package = module(name).split('.') if name.endswith('__init__.py') else (
        module(name).split('.')[:-1])
      above = package[: len(package) - node.level + 1] if node.level else []
      source = '.'.join([*above, *([node.module] if node.module else [])])
      inner = {f'{source}.{alias.name}' for alias in node.names}
      found |= (inner & MODULES) | ({source} if inner - MODULES else set())
  return found


def room(module: str) -> str:
  """'perl.models.lm' -> 'models'; 'perl' -> ''."""
  return (module.split('.') + [''])[1]


def door(module: str) -> bool:
  """Whether the module is a door, or behind one."""
  return any(module == d or module.startswith(f'{d}.') for d in DOORS)


def allowed(home: str) -> set[str]:
  """The rooms that a room may import from."""
  if home in GROUND or not home:
    return set(GROUND)
  if home in WINGS:
    return {*GROUND, home}
  return {*GROUND, *WINGS, *ABOVE[: ABOVE.index(home) + 1]}


def test_every_room_has_a_floor():
  rooms = {room(module(name)) for name in NAMES} - {''}
  assert rooms <= {*GROUND, *WINGS, *ABOVE}, rooms - {*GROUND, *WINGS, *ABOVE}


@pytest.mark.parametrize('name', NAMES)
def test_arrows_run_down_only(name):
  home = room(module(name))
  rooms = {*GROUND, *WINGS} if door(module(name)) else allowed(home)
  for imported in imports(name):
    assert imported.split('.')[0] not in FOREIGN, f'{name} imports {imported}'
    if imported.split('.')[0] == 'perl' and imported != 'perl':
      assert room(imported) in rooms, f'{name} imports {imported}: an arrow that runs up'
    if home in (*GROUND, *WINGS) and not door(module(name)):
      assert not door(imported), f'{name} imports the door {imported}: an arrow that runs up'


def test_no_circles():
  below = {module(name): imports(name) & MODULES - {module(name)} for name in NAMES}
  while below:
    free = {name for name, needs in below.items() if not needs & set(below)}
    assert free, f'modules that import one another in a circle: {sorted(below)}'
    below = {name: needs for name, needs in below.items() if name not in free}


@pytest.mark.parametrize('name', NAMES)
def test_files_are_small(name):
  assert len((ROOT / name).read_text().splitlines()) < MAX_LINES


def public_functions(name: str):
  """(qualified name, function, whether it is a method) of every public function of a file.

  Linen's `setup` is a hook, like __call__.
  """
  tree = parsed(name)
  owners = [(tree, '', False)] + [
    (node, f'{node.name}.', True) for node in tree.body
    if isinstance(node, ast.ClassDef) and not node.name.startswith('_')
  ]
  for owner, prefix, method in owners:
    for node in owner.body:
      if isinstance(node, ast.FunctionDef) and not node.name.startswith(('_', 'setup')):
        yield prefix + node.name, node, method


@pytest.mark.parametrize('name', NAMES)
def test_public_functions_have_types_and_say_what_they_do(name):
  lacking = []
  for qualified, function, method in public_functions(name):
    decorators = {ast.unparse(d) for d in function.decorator_list}
    arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    arguments = arguments[1:] if method and 'staticmethod' not in decorators else arguments
    untyped = [a.arg for a in arguments if a.annotation is None]
    untyped += ['return'] if function.returns is None else []
    if untyped:
      lacking.append(f'{qualified}: no type of {", ".join(untyped)}')
    stub = isinstance(function.body[-1], ast.Expr) and ast.unparse(function.body[-1]) == '...'
    if not ast.get_docstring(function) and not stub:
      lacking.append(f'{qualified}: no docstring')
  assert not lacking, f'{name}: {"; ".join(lacking)}'


@pytest.mark.parametrize('name', [n for n in NAMES if (ROOT / n).read_text().strip()])
def test_every_file_says_what_it_is(name):
  assert ast.get_docstring(parsed(name)), name


def test_no_two_test_files_have_one_name():
  """Pytest imports them by it."""
  names = [path.name for path in (ROOT / 'tests').rglob('test_*.py')]
  assert len(names) == len(set(names))
