"""The files of the two Taskmaster datasets, and how they are prepared: through TFDS, once.

The builder writes array_record and needs no TensorFlow. Its configs are `dialogues` (whole
dialogues as turns) and `thumbs` (agent turns that a person judged in their context). Turns are
kept as JSON and rendered when they are loaded, so that `dialogue.render` may change without a new
download.
"""

import functools
import hashlib
import json
import logging
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from perl.data import dialogue
from perl.data.examples import SPLITS

HOME = 'https://raw.githubusercontent.com/google-research-datasets/Taskmaster/master'
VERSION = '1.0.0'
CITATION = """@misc{sidahmed2024perl,
  title={Parameter Efficient Reinforcement Learning from Human Feedback},
  author={Sidahmed et al.}, year={2024}, eprint={2403.10704}, archivePrefix={arXiv}}"""

# Records of a config: file name -> its parsed rows, in; {'conversation_id': ..., ...}, out.
Reader = Callable[[Mapping[str, list]], Iterator[dict[str, Any]]]


# --- Files


def numbered(folder: str, stem: str, count: int) -> tuple[str, ...]:
  """('folder/stem_00.json', ...): how the home names its files."""
  return tuple(f'{folder}/{stem}_{i:02d}.json' for i in range(count))


def present(names: Sequence[str], mirror: str) -> dict[str, pathlib.Path]:
  """The files that the mirror holds; those it lacks are named in a warning.

  Raises:
    FileNotFoundError: it holds none of them.
  """
  paths = {name: pathlib.Path(mirror).expanduser() / name for name in names}
  found = {name: path for name, path in paths.items() if path.is_file()}
  missing = [name for name in names if name not in found]
  if not found:
    raise FileNotFoundError(
      f'taskmaster: expected {names[0]} to {names[-1]} under the mirror; found none in {mirror!r}; '
      f"lay the files out as in {HOME}, or set data.mirror to '' to download them")
  if missing:
    _warn_once(f'taskmaster: the mirror {mirror} holds {len(found)} of {len(names)} files; '
               f'missing: {", ".join(missing)}')
  return found


@functools.cache
def _warn_once(message: str) -> None:
  logging.warning(message)


def read_rows(path: pathlib.Path) -> list:
  """The array in a file.

  Raises:
    ValueError: the file is not a JSON array.
  """
  try:
    rows = json.loads(path.read_text('utf-8'))
  except ValueError as error:
    raise ValueError(f'taskmaster: expected a JSON array in {path}; found {error}; '
                     'fetch the file again') from error
  if not isinstance(rows, list):
    raise ValueError(f'taskmaster: expected a JSON array in {path}; found a '
                     f'{type(rows).__name__}; fetch the file again')
  return rows


# --- Records: what is prepared


def _each(files: Mapping[str, list], parse: Callable[[Any], Any]) -> Iterator[Any]:
  """parse(row) for all rows; what goes wrong names the file and the row."""
  for name, rows in files.items():
    for index, row in enumerate(rows):
      try:
        yield parse(row)
      except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
          f'taskmaster: expected a row as the README of the dataset describes; found '
          f'{type(error).__name__} ({error}) in {name}, row {index} (from 0); '
          'repair or delete the row') from error


def _thumb(row: Mapping[str, Any]) -> dict[str, Any]:
  context, generation = dialogue.turns_of_reward_row(row)
  if row['reward'] not in (0.0, 1.0):
    raise ValueError(f'reward {row["reward"]!r} is neither 0.0 nor 1.0')
  return {'conversation_id': row['conversation_id'], 'turns': json.dumps(context),
          'generation': json.dumps(generation), 'reward': float(row['reward'])}


def thumbs(files: Mapping[str, list]) -> Iterator[dict[str, Any]]:
  """The rows of the reward files; turns as JSON, without the agent's fixed greeting."""
  return _each(files, _thumb)


def dialogues(files: Mapping[str, list]) -> Iterator[dict[str, Any]]:
  """The dialogues of TM-4's data files, as the turns that the reward files use."""
  return _each(files, lambda row: {'conversation_id': row['conversation_id'],
                                   'turns': json.dumps(dialogue.turns_of_dialog(row))})


def approved_dialogues(files: Mapping[str, list]) -> Iterator[dict[str, Any]]:
  """Dialogues put together from reward rows: contexts, each with its generation if approved.

  Rows are successive turns of one dialogue, so a context that another one continues is left out.
  """
  rows = list(_each(files, dialogue.turns_of_reward_row))
  rewards = _each(files, lambda row: (row['conversation_id'], row['reward']))
  whole: dict[tuple[str, ...], str] = {}
  for (context, generation), (conversation_id, reward) in zip(rows, rewards):
    turns = context + [generation] if reward else context
    whole.setdefault(tuple(json.dumps(turn, sort_keys=True) for turn in turns), conversation_id)
  continued = {turns[:i] for turns in whole for i in range(len(turns))}
  for turns, conversation_id in whole.items():
    if turns not in continued:
      yield {'conversation_id': conversation_id, 'turns': f'[{", ".join(turns)}]'}


class Source:
  """The files and the reader of each config of one dataset."""

  def __init__(self, name: str, **configs: tuple[tuple[str, ...], Reader]):
    self.name = name
    self.configs = configs


# --- The builder


class SharedBuilder:
  """The part of the two TFDS builders that is the same; each adds `source` and its module.

  Args:
    mirror: a folder laid out like the home; '' downloads.
  """

  VERSION = VERSION
  source: Source

  def __init__(self, *, mirror: str = '', **kwargs: Any):
    self._mirror = mirror
    super().__init__(**kwargs)

  def _info(self) -> Any:
    import tensorflow_datasets as tfds

    features = {'conversation_id': tfds.features.Text(), 'turns': tfds.features.Text()}
    if self.builder_config.name == 'thumbs':
      features['generation'] = tfds.features.Text()
      features['reward'] = tfds.features.Scalar(np.float32)
    return self.dataset_info_from_configs(
      features=tfds.features.FeaturesDict(features), homepage=HOME, citation=CITATION,
      disable_shuffling=True)

  def _split_generators(self, dl_manager: Any) -> dict[str, Iterable]:
    names, reader = self.source.configs[self.builder_config.name]
    paths = present(names, self._mirror) if self._mirror else _download(names, dl_manager)
    splits: dict[str, list] = {}
    for record in reader({name: read_rows(path) for name, path in paths.items()}):
      key = dialogue.split_key(json.loads(record['turns']))
      splits.setdefault(dialogue.split_of(key), []).append(record)
    # TFDS refuses a split without rows; `records` tells the user of one.
    return {split: enumerate(splits[split]) for split in SPLITS if split in splits}

  def _generate_examples(self) -> None:
    """Nothing: `_split_generators` gives the rows, as it has to read them all to split them."""


def _download(names: Sequence[str], dl_manager: Any) -> dict[str, pathlib.Path]:
  try:
    paths = dl_manager.download({name: f'{HOME}/{name}' for name in names})
  except Exception as error:  # requests, urllib3 and TFDS each raise their own
    raise OSError(f'taskmaster: expected to download {names[0]} to {names[-1]} from {HOME}; found '
                  f'{type(error).__name__}: {error}; check the network, or set data.mirror to a '
                  'folder that holds the files in the same layout') from error
  return {name: pathlib.Path(path) for name, path in paths.items()}


def prepared_folder(source: Source, config: str, mirror: str, data_dir: str) -> pathlib.Path:
  """Where the prepared data lies: a mirror's own folder, named by the content of its files."""
  default = os.environ.get('TFDS_DATA_DIR', '~/tensorflow_datasets')
  folder = pathlib.Path(data_dir or default).expanduser()
  if not mirror:
    return folder
  digest = hashlib.sha256()
  for name, path in present(source.configs[config][0], mirror).items():
    digest.update(f'{name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n'.encode())
  return folder / f'mirror-{digest.hexdigest()[:16]}'


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


def records(builder_class: Callable[..., Any], config: str, split: str, mirror: str,
            data_dir: str) -> list[dict[str, Any]]:
  """The prepared rows of a split, in the order of the files; prepares them the first time.

  Raises:
    ValueError: the split is empty, or a file is malformed.
    OSError: the files cannot be had.
  """
  source = builder_class.source
  folder = prepared_folder(source, config, mirror, data_dir)
  builder = _prepared(functools.partial(
    builder_class, config=config, data_dir=folder, mirror=mirror, file_format='array_record'),
    quiet=bool(mirror))
  if split not in builder.info.splits:
    raise ValueError(f'{source.name}: expected rows in split {split!r} of {config}; found none '
                     f'({ {k: v.num_examples for k, v in builder.info.splits.items()} }); '
                     'add files to the mirror')
  rows = [{k: v.decode('utf-8') if isinstance(v, bytes) else v for k, v in row.items()}
          for row in builder.as_data_source(split)]
  return [row | {name: json.loads(row[name]) for name in ('turns', 'generation') if name in row}
          for row in rows]
