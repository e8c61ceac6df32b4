"""The house: imports run down only, folders of choices hold choices, files are small and explained.

Each test reads every file and names all that break its law.
"""

import ast
import functools
import pathlib
from collections.abc import Iterator

from perl import choices

ROOT = pathlib.Path(__file__).parents[1]
GROUND = ('types', 'masked', 'trees', 'products', 'quantized', 'quantization', 'choices',
          'options', 'paths', 'documents', 'patterns', 'bounded', 'machine')
WINGS = ('data', 'peft', 'models', 'train', 'objectives')
FLOORS = ('hub', 'preference', 'rl', 'evaluate', 'jobs', 'config', 'report', 'forecast', 'cli')
"""Above ground and wings, from the lowest; each may look into all below it."""
CHOICES = {
  'perl.data.sets': 'load', 'perl.peft.methods': 'init', 'perl.hub.families': 'read',
  'perl.hub.adapters': 'load', 'perl.preference.methods': 'Method', 'perl.rl.rules': 'rewards',
  'perl.rl.algorithms': 'policy_loss', 'perl.jobs': 'run', 'perl.cli': 'main',
}
"""A folder of choices -> what each of its public files has."""
FOREIGN = ('configs', 'experiments', 'notebooks', 'tests')
CONFIGURED = ('jobs', 'config', 'report', 'forecast', 'cli')
"""The rooms that may see a ConfigDict or a flag."""
MAX_LINES = 300
LATE = {
  'gguf': 'extra gguf', 'torch': 'extra hf', 'transformers': 'extra hf', 'peft': 'extra hf',
  'tensorflow_datasets': 'a second to import', 'pyarrow': 'heavy, for Parquet and patterns',
  'grain': 'seconds to import, and not on every machine that measures',
  'sentencepiece': 'for such models alone', 'tensorboardX': 'for runs that log to it',
  'resource': 'not on every system', 'sacrebleu': 'extra references',
  'rouge_score': 'extra references',
}
"""Packages that a function may import, and why; all else is imported at the top of a file."""

FILES = {
  '.'.join(path.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__'): path
  for path in sorted((ROOT / 'perl').rglob('*.py'))}
"""Module -> file."""


@functools.cache
def parsed(module: str) -> ast.Module:
  return ast.parse(FILES[module].read_text())


@functools.cache
def imports(module: str) -> frozenset[str]:
  """Modules that a file imports, wherever in it; relative ones are resolved."""
  found: set[str] = set()
  for node in ast.walk(parsed(module)):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    if isinstance(node, ast.ImportFrom):
      package = module.split('.')
      package = package if FILES[module].stem == '__init__' else package[:-1]
      above = package[: len(package) - node.level + 1] if node.level else []
      source = '.'.join([*above, *([node.module] if node.module else [])])
      inner = {f'{source}.{alias.name}' for alias in node.names}
      found |= (inner & FILES.keys()) | ({source} if inner - FILES.keys() else set())
  return frozenset(found)


def room(module: str) -> str:
  """'perl.models.lm' -> 'models'; 'perl' -> ''."""
  return (module.split('.') + [''])[1]


def allowed(home: str) -> set[str]:
  """The rooms that a room may import from."""
  if home in GROUND:
    return set(GROUND)
  if home in WINGS:
    return {*GROUND, home}
  return {*GROUND, *WINGS, *FLOORS[: FLOORS.index(home) + 1]}


def test_arrows_run_down_only_and_in_no_circle():
  rooms = {room(module) for module in FILES} - {''}
  assert rooms == {*GROUND, *WINGS, *FLOORS}
  wrong = []
  for module in FILES.keys() - {'perl'}:
    home = room(module)
    for imported in imports(module):
      top = imported.split('.')[0]
      up = top == 'perl' and imported != 'perl' and room(imported) not in allowed(home)
      outside = top in FOREIGN or (top in ('ml_collections', 'absl') and home not in CONFIGURED)
      if up or outside:
        wrong.append(f'{module} imports {imported}')
  assert not wrong, '\n'.join(sorted(wrong))
  below = {module: imports(module) & FILES.keys() - {module} for module in FILES}
  while below:
    free = {module for module, needs in below.items() if not needs & below.keys()}
    assert free, f'modules that import one another in a circle: {sorted(below)}'
    below = {module: needs for module, needs in below.items() if module not in free}


def test_functions_import_optional_packages_alone():
  """Programs set the environment before they import anything (perl/cli): no other import waits."""
  wrong, late = [], set()
  for module in FILES:
    inner = {node for function in ast.walk(parsed(module)) if isinstance(function, ast.FunctionDef)
             for node in ast.walk(function) if isinstance(node, ast.Import | ast.ImportFrom)}
    for node in inner:
      names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or '']
      packages = {name.split('.')[0] for name in names}
      late |= packages
      if packages - LATE.keys():
        wrong.append(f'{module}, line {node.lineno}: {ast.unparse(node)}')
  assert not wrong, '\n'.join(sorted(wrong))
  assert late == LATE.keys()  # the list names none that is no longer needed


def test_a_folder_of_choices_holds_choices_alone():
  wrong = []
  for package, member in CHOICES.items():
    for name in choices.names(package):
      if not hasattr(choices.find(package, name), member):
        wrong.append(f'{package}.{name} has no {member}')
  assert not wrong, '\n'.join(wrong)


def test_files_are_small_and_say_what_they_are():
  others = [*(ROOT / 'experiments').rglob('*.py'), *(ROOT / 'configs').glob('*.py')]
  wrong = []
  for path in [*FILES.values(), *others]:
    text = path.read_text()
    if len(text.splitlines()) > MAX_LINES:
      wrong.append(f'{path.relative_to(ROOT)}: more than {MAX_LINES} lines')
    if text.strip() and not ast.get_docstring(ast.parse(text)):
      wrong.append(f'{path.relative_to(ROOT)}: no docstring')
  assert not wrong, '\n'.join(wrong)


def public_functions(module: str) -> Iterator[tuple[str, ast.FunctionDef, bool]]:
  """(qualified name, function, whether it is a method) of every public function of a file.

  Linen's `setup` is a hook, like __call__.
  """
  tree = parsed(module)
  owners = [(tree, '', False)] + [
    (node, f'{node.name}.', True) for node in tree.body
    if isinstance(node, ast.ClassDef) and not node.name.startswith('_')
  ]
  for owner, prefix, method in owners:
    for node in owner.body:
      if isinstance(node, ast.FunctionDef) and not node.name.startswith(('_', 'setup')):
        yield prefix + node.name, node, method


def lacking(function: ast.FunctionDef, method: bool) -> list[str]:
  """What a public function does not say: types of arguments, of the result, a docstring."""
  decorators = {ast.unparse(d) for d in function.decorator_list}
  arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
  arguments = arguments[1:] if method and 'staticmethod' not in decorators else arguments
  stub = isinstance(function.body[-1], ast.Expr) and ast.unparse(function.body[-1]) == '...'
  return [*(f'no type of {a.arg}' for a in arguments if a.annotation is None),
          *(['no type of its result'] if function.returns is None else []),
          *(['no docstring'] if not ast.get_docstring(function) and not stub else [])]


def test_public_functions_have_types_and_say_what_they_do():
  wrong = [
    f'{module}.{name}: {", ".join(missing)}' for module in FILES
    for name, function, method in public_functions(module)
    if (missing := lacking(function, method))]
  assert not wrong, '\n'.join(wrong)


def test_no_function_swallows_what_was_misspelt():
  """`**options` that a function never reads would hide an option that nobody has."""
  wrong = [
    f'{module}.{node.name}: **{node.args.kwarg.arg}' for module in FILES
    for node in ast.walk(parsed(module)) if isinstance(node, ast.FunctionDef) and node.args.kwarg
    and not any(isinstance(name, ast.Name) and name.id == node.args.kwarg.arg
                for line in node.body for name in ast.walk(line))]
  assert not wrong, '\n'.join(wrong)


def test_no_two_test_files_have_one_name():
  """Pytest imports them by it."""
  names = [path.name for path in (ROOT / 'tests').rglob('test_*.py')]
  assert len(names) == len(set(names))


OWN_JSON = ('dumps', 'to_str', 'to_json_best_effort', '_receive')
"""Functions of ours and of libraries whose text json.loads may read: no file's."""


def test_json_of_files_is_read_in_one_place():
  """perl/documents.py bounds it; json.loads alone raises what it likes, and fills the memory."""
  wrong = []
  for module in FILES.keys() - {'perl.documents'}:
    for node in ast.walk(parsed(module)):
      called = node.func if isinstance(node, ast.Call) else None
      if not isinstance(called, ast.Attribute) or ast.unparse(called) not in (
          'json.load', 'json.loads'):
        continue
      inner = node.args[0].func if isinstance(node.args[0], ast.Call) else None
      if inner is None or ast.unparse(inner).split('.')[-1] not in OWN_JSON:
        wrong.append(f'{module}, line {node.lineno}: {ast.unparse(node)}')
  assert not wrong, '\n'.join(wrong)
