"""Published files and what is prepared of them, once, through TFDS.

A dataset is a `Source`: its home, and parts (configs of TFDS), each with its files and a reader
that says what their rows become and which split each belongs to. Files come from the home, or from
a mirror: a folder laid out like it. The builder writes array_record and needs no TensorFlow;
records are kept as JSON.
"""

import csv
import functools
import hashlib
import io
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from perl import documents, paths
from perl.data.examples import SPLITS
from perl.data.sources import pins, row_files

VERSION = '2.0.0'
"""Of the prepared form: one JSON text a record."""

Reader = Callable[[Mapping[str, list]], Iterator[tuple[str, dict[str, Any]]]]
"""{file: its rows} -> (split, record) of each record."""


class Part(NamedTuple):
  """Files that are read together."""

  files: tuple[str, ...]
  read: Reader


class Source(NamedTuple):
  """Where a dataset comes from."""

  name: str
  home: str  # URL; the names of files are relative to it
  parts: Mapping[str, Part]
  citation: str = ''
  checksums: Mapping[str, str] = {}  # of files: perl/data/sources/pins.py


# --- Files


def present(source: Source, names: Sequence[str], mirror: str) -> dict[str, epath.Path]:
  """The files that the mirror holds; those it lacks are named in a warning.

  Raises:
    FileNotFoundError: it holds none of them.
  """
  places = {name: paths.of(mirror) / name for name in names}
  files = {name: path for name, path in places.items() if path.is_file()}
  missing = [name for name in names if name not in files]
  if not files:
    raise FileNotFoundError(
      f'{source.name}: expected {_range(names)} under the mirror; found none in {mirror!r}; lay '
      f"the files out as in {source.home}, or set data.mirror to '' to download them")
  if missing:
    _warn_once(f'{source.name}: the mirror {mirror} holds {len(files)} of {len(names)} files; '
               f'missing: {", ".join(missing)}')
  return files


def _range(names: Sequence[str]) -> str:
  return names[0] if len(names) == 1 else f'{names[0]} to {names[-1]}'


@functools.cache
def _warn_once(message: str) -> None:
  logging.warning(message)


def read_rows(path: epath.Path, name: str = '') -> list:
  """The rows of a file: a JSON array or one JSON value a line, gzipped or not, told by content.

  Args:
    path: the file.
    name: that of its home, if the file has lost it; one that ends in .csv has a head and columns,
      and its rows are {column: text}.

  Raises:
    ValueError: it is none of these, or was cut short.
  """
  text = row_files.read_text(path).strip()
  if name.endswith('.csv'):
    return list(csv.DictReader(io.StringIO(text), strict=True))
  return documents.parse(text, path, documents.LIST) if text.startswith('[') else [
    documents.parse(line, f'{path}, line {number}')
    for number, line in enumerate(text.split('\n'), start=1) if line.strip()]


def each(files: Mapping[str, list], parse: Callable[[Any], Any]) -> Iterator[Any]:
  """parse(row) for all rows of all files; errors as in `each_by_file`."""
  return (parsed for _, parsed in each_by_file(files, parse))


def each_by_file(
  files: Mapping[str, list], parse: Callable[[Any], Any]
) -> Iterator[tuple[str, Any]]:
  """(the file's name, parse(row)) for all rows of all files.

  Raises:
    ValueError: parse could not read a row; the file and the row are named.
  """
  for name, rows in files.items():
    for index, row in enumerate(rows):
      try:
        yield name, parse(row)
      except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
          f'expected a row as the dataset describes it; found {type(error).__name__} ({error}) in '
          f'{name}, row {index} (from 0); repair or delete the row') from error


# --- The builder


@functools.cache
def _builder_class() -> Any:
  """The class of all builders; TFDS takes a second to import."""
  import tensorflow_datasets as tfds

  class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A part of a source as a TFDS dataset; `of` gives it both."""

    VERSION = VERSION
    source: Source

    def __init__(self, *, mirror: str = '', **kwargs: Any):
      self._mirror = mirror
      super().__init__(**kwargs)

    def _info(self) -> Any:
      return self.dataset_info_from_configs(
        features=tfds.features.FeaturesDict({'record': tfds.features.Text()}),
        homepage=self.source.home, citation=self.source.citation, disable_shuffling=True)

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterable]:
      names, read = self.source.parts[self.builder_config.name]
      files = (present(self.source, names, self._mirror) if self._mirror
               else _download(self.source, names, dl_manager))
      splits: dict[str, list] = {}
      try:
        for split, record in read({name: read_rows(path, name) for name, path in files.items()}):
          splits.setdefault(split, []).append({'record': json.dumps(record)})
      except (ValueError, csv.Error) as error:
        raise ValueError(f'{self.source.name}: {error}') from error
      # TFDS refuses a split without rows; `records` tells the user of one.
      return {split: enumerate(splits[split]) for split in SPLITS if split in splits}

    def _generate_examples(self) -> None:
      """Nothing: `_split_generators` gives the rows, as it has to read them all to split them."""

  return Builder


def _of(source: Source) -> Any:
  """The builder class of one source."""
  import tensorflow_datasets as tfds

  configs = [tfds.core.BuilderConfig(name=name, description='') for name in source.parts]
  base = _builder_class()
  members = {'name': source.name, 'source': source, 'BUILDER_CONFIGS': configs,
          '__module__': __name__}
  return type(base)(source.name, (base,), members, skip_registration=True)


def _download(source: Source, names: Sequence[str], dl_manager: Any) -> dict[str, epath.Path]:
  try:
    files = dl_manager.download({name: f'{source.home}/{name}' for name in names})
  except Exception as error:  # requests, urllib3 and TFDS each raise their own
    raise OSError(f'{source.name}: expected to download {_range(names)} from {source.home}; found '
                  f'{type(error).__name__}: {error}; check the network, or set data.mirror to a '
                  'folder that holds the files in the same layout') from error
  files = {name: epath.Path(path) for name, path in files.items()}
  for name, file in files.items():
    if name in source.checksums:
      pins.check(f'{source.name}: {name}', file, source.checksums[name])
    else:
      logging.warning('%s: no checksum is known of %s; what was downloaded has sha256 %s',
                      source.name, name, pins.digest(file))
  return files


def folder(source: Source, part: str, mirror: str, data_dir: str) -> epath.Path:
  """Where the prepared data lies: a mirror's own folder, named by the content of its files."""
  default = os.environ.get('TFDS_DATA_DIR', '~/tensorflow_datasets')
  root = paths.of(data_dir or default)
  if not mirror:
    return root
  digest = hashlib.sha256()
  for name, path in present(source, source.parts[part].files, mirror).items():
    digest.update(f'{name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n'.encode())
  return root / f'mirror-{digest.hexdigest()[:16]}'


def _prepared(make_builder: Callable[[], Any], quiet: bool) -> Any:
  """A builder of prepared data; progress bars only where there is something to wait for."""
  import tensorflow_datasets as tfds

  if quiet:
    tfds.disable_progress_bar()
  try:
    builder = make_builder()
    builder.download_and_prepare()
  except FileExistsError:
    # Another process has prepared the same data meanwhile: theirs is as good.
    builder = make_builder()
  finally:
    tfds.enable_progress_bar()
  return builder


def records(source: Source, part: str, split: str, mirror: str,
            data_dir: str) -> list[dict[str, Any]]:
  """The prepared records of a split, in the order of the files; prepares them the first time.

  Args:
    source: the dataset.
    part: a key of source.parts.
    split: 'train', 'dev' or 'test'.
    mirror: a folder laid out like the home; '' downloads.
    data_dir: where prepared data is kept; '' is $TFDS_DATA_DIR or ~/tensorflow_datasets.

  Raises:
    ValueError: the split is empty, or a file is malformed.
    OSError: the files cannot be had.
  """
  builder = _prepared(functools.partial(
    _of(source), config=part, data_dir=folder(source, part, mirror, data_dir), mirror=mirror,
    file_format='array_record'), quiet=bool(mirror))
  if split not in builder.info.splits:
    raise ValueError(f'{source.name}: expected rows in split {split!r} of {part}; found none '
                     f'({ {k: v.num_examples for k, v in builder.info.splits.items()} }); '
                     'add files to the mirror')
  return [documents.parse(row['record'], f'the prepared {source.name}')
          for row in builder.as_data_source(split)]
