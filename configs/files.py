"""Names that resolve by file, found without importing anything."""

import importlib.util
import pathlib
import re


def package() -> pathlib.Path:
  """The folder of the package perl, found without importing it."""
  return pathlib.Path(importlib.util.find_spec('perl').submodule_search_locations[0])


def names_in(folder: str, defines: str = '') -> tuple[str, ...]:
  """The modules of perl/<folder>, or those that define or import a name."""
  return tuple(sorted(
    p.stem for p in (package() / folder).glob('*')
    if p.stem != '__init__' and (p.suffix == '.py' or (p / '__init__.py').exists())
    and (not defines or _defines(p, defines))
  ))


def _defines(file: pathlib.Path, name: str) -> bool:
  """Whether a module has that name, as its text says; nothing is imported."""
  text = file.read_text('utf-8') if file.is_file() else ''
  return re.search(rf'^(def {name}\(|class {name}\b|from .*\b{name}\b)', text, re.M) is not None
