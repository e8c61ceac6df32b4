"""What a stage reads, by content: a path says where something lies, not what it is.

A stage keeps {what: digest} in read.json of its folder. Whoever skips it as finished, or goes on
from its checkpoints, compares (_unchanged.py, and `note` here): other rows, another tokenizer, base
or adapter behind the same path are another run.
"""

import functools
import hashlib
from collections.abc import Callable

import jax

from perl import documents, paths
from perl.data.text import chat
from perl.data.text import tokenizer as tokenizers
from perl.hub import adapters as peft_format
from perl.hub import pretrained, tensors
from perl.jobs import ADAPTERS, STAGES, _identity
from perl.jobs._identity import Flat
from perl.train import checkpoint, metrics, storage

FILE = 'read.json'


class Reading:
  """What a stage has read so far.

  Args:
    folder: the stage's, which keeps it; '' keeps nothing.
    stamp: of the data (perl.data.sets.stamp): the same stamp is the same rows, and they need not be
      read to be compared.
  """

  def __init__(self, folder: str = '', stamp: str = ''):
    self.folder, self.stamp, self.digests = folder, stamp, {}
    self.known = recorded(folder) if folder and _has_checkpoints(folder) else {}

  def note(self, what: str, digest: str) -> None:
    """Remembers that `what` was read.

    Raises:
      MismatchError: the stage has checkpoints, and read something else there before.
    """
    check({what: self.known.get(what, digest)}, {what: digest}, self.folder)
    self.digests[what] = digest
    if self.folder and jax.process_index() == 0:
      metrics.write_json(paths.of(self.folder) / FILE, {
        'stamp': self.stamp, 'digests': self.known | self.digests})


def recorded(folder: str) -> dict[str, str]:
  """What the stage of a folder has read; {} of a version that kept no record."""
  return _record(folder).get('digests', {})


def is_stamped(folder: str, stamp: str) -> bool:
  """Whether the stage of a folder has read data of that very stamp."""
  return _record(folder).get('stamp') == stamp


_RECORD = documents.record(
  stamp=documents.either(documents.TEXT, documents.NULL),
  digests=documents.either(documents.mapping(documents.TEXT), documents.NULL))


def _record(folder: str) -> dict:
  file = paths.of(folder) / FILE
  return paths.read_json(file, _RECORD) if file.exists() else {}


def check(before: dict[str, str], now: dict[str, str], folder: str) -> None:
  """Raises MismatchError, which names what is there in both and differs."""
  lines = [f'  {what}: expected {now[what][:12]}, found {before[what][:12]}'
           for what in before if before[what] != now.get(what, before[what])]
  if lines:
    raise checkpoint.MismatchError('\n'.join([
      f'the stage in {folder} has read something else than is there now (digests):', *lines,
      f'remedy: give it what it read before, use a new --workdir, or delete {folder}']))


def _has_checkpoints(folder: str) -> bool:
  place = paths.of(folder) / 'checkpoints'
  return place.is_dir() and any(place.iterdir())


def of_inputs(config: Flat, stage: str, folder_of: Callable[[str], str]) -> dict[str, str]:
  """{what: digest} of the results of other stages, and of published files, that a stage reads.

  Args:
    config: flat.
    stage: its name.
    folder_of: name of an input -> the folder of the stage that made it.
  """
  digests = {}
  for name in _identity.inputs(config, stage):
    if _identity.from_checkpoint(config, name):
      digests[name] = _published(config, name)
    elif name == 'tokenizer':
      digests[name] = _text(config, tokenizers.load(folder_of(name)))
    elif (name, config['inputs.anchor']) != ('anchor', 'base'):
      digests[name] = of_result(folder_of(name), name)
  if stage == 'tokenizer' and (path := config['tokenizer.path'] or config['model.checkpoint']):
    digests['tokenizer.path'] = _text(config, tokenizers.load(path))
  if stage == 'pretrain' and config['model.checkpoint']:
    digests['model.checkpoint'] = checkpoint_digest(config['model.checkpoint'])
  for section in STAGES[stage].sections:
    if start := config.get(f'{section}.adapter'):
      digests[f'{section}.adapter'] = _of_peft(start)
  if stage == 'best_of_n' and (folder := config['best_of_n.sampled']):
    digests['best_of_n.sampled'] = _of_file(f'{folder}/samples.json')
  return digests


def of_result(folder: str, name: str) -> str:
  """The digest of what a finished stage has made: the input `name` of others."""
  place = paths.of(folder)
  if name in ADAPTERS and (place / peft_format.CONFIG).exists():
    return _of_peft(folder)
  tree = paths.absolute(place / ('adapter' if name in ADAPTERS else name))
  if not (tree / storage.FILES).exists():
    raise FileNotFoundError(
      f'expected the {name} in {tree}, found none; give the folder of a finished stage that makes '
      'one')
  # Adapters of older versions do not say their digest; the list of their files does as well.
  return storage.read_about(tree)['meta'].get('digest') or _of_file(str(tree / storage.FILES))


def _published(config: Flat, name: str) -> str:
  folder = config['model.checkpoint']
  if name == 'base':
    return checkpoint_digest(folder)
  path = config['tokenizer.path']
  tokenizer = tokenizers.load(path) if path else pretrained.load_tokenizer(folder)
  return _text(config, tokenizer) if tokenizer else ''


def _text(config: Flat, tokenizer: tokenizers.Tokenizer) -> str:
  """The digest of what turns text into ids in a run with this tokenizer."""
  uses = config['data.chat_template'] and tokenizer.chat_template is not None
  template, stopping = chat.of(tokenizer, config['data.date']) if uses else (None, tokenizer)
  return chat.text_digest(stopping, template)


def _of_peft(folder: str) -> str:
  place = paths.of(folder)
  weights = tensors.digest(tensors.find(place, peft_format.WEIGHTS))
  return hashlib.sha256((weights + _of_file(str(place / peft_format.CONFIG))).encode()).hexdigest()


def _of_file(path: str) -> str:
  return hashlib.sha256(paths.of(path).read_bytes()).hexdigest()


def checkpoint_digest(folder: str) -> str:
  """`pretrained.digest`, read again only where a file has changed meanwhile."""
  return _digest(folder, tuple(paths.stamps(folder)))


@functools.lru_cache(maxsize=8)
def _digest(folder: str, stamps: tuple) -> str:
  del stamps  # part of what is remembered
  return pretrained.digest(folder)
