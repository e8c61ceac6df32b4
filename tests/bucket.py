"""An object store that is a folder: gs:// as etils.epath and Orbax see it, with the store's habits.

A folder is there as long as something lies in it, making one does nothing, and nothing can be
appended to. What would reach past epath finds no such file.
"""

import os
import pathlib
import shutil

import pytest
from etils.epath import backend, gpath
from orbax.checkpoint._src.path import gcs_utils

from perl import paths


class Bucket(backend.Backend):
  """gs://name/... is <folder>/name/..."""

  def __init__(self, folder: pathlib.Path):
    self.folder = folder

  def local(self, path) -> str:
    text = os.fspath(path)
    assert text.startswith('gs://'), f'{text} is handed to the object store'
    return os.path.join(self.folder, text.removeprefix('gs://'))

  def open(self, path, mode):
    if 'a' in mode:
      raise NotImplementedError('objects cannot be appended to')
    if 'w' in mode:
      os.makedirs(os.path.dirname(self.local(path)), exist_ok=True)
    return backend.os_backend.open(self.local(path), mode)

  def exists(self, path):
    return os.path.isfile(self.local(path)) or self.isdir(path)

  def isdir(self, path):
    return any(files for _, _, files in os.walk(self.local(path)))

  def listdir(self, path):
    here = self.local(path)
    return [name for name in os.listdir(here) if self.exists(os.path.join(os.fspath(path), name))]

  def glob(self, path):
    found = backend.os_backend.glob(self.local(path))
    return ['gs://' + os.path.relpath(one, self.folder) for one in found]

  def walk(self, top, **how):
    raise NotImplementedError

  def makedirs(self, path, **how):
    self.local(path)

  mkdir = makedirs

  def rmtree(self, path):
    shutil.rmtree(self.local(path))

  def remove(self, path):
    os.remove(self.local(path))

  def rename(self, path, dst):
    os.makedirs(os.path.dirname(self.local(dst)), exist_ok=True)
    os.rename(self.local(path), self.local(dst))

  replace = rename

  def copy(self, path, dst, overwrite):
    os.makedirs(os.path.dirname(self.local(dst)), exist_ok=True)
    shutil.copyfile(self.local(path), self.local(dst))

  def stat(self, path):
    return backend.os_backend.stat(self.local(path))


@pytest.fixture
def bucket(tmp_path, monkeypatch) -> str:
  """'gs://bucket', kept in a folder; the working folder is another, and stays empty."""
  store, here = tmp_path / 'store', tmp_path / 'here'
  store.mkdir(), here.mkdir()
  monkeypatch.chdir(here)
  fake = Bucket(store)
  monkeypatch.setitem(gpath._PREFIX_TO_BACKEND, 'gs', fake)
  monkeypatch.setattr(gpath, '_is_tf_installed', lambda: False)
  monkeypatch.setitem(paths.SERVED, 'gs', 'json')  # a package that is there
  monkeypatch.setattr(gcs_utils, 'get_kvstore_for_gcs', lambda path: {
    'driver': 'file', 'path': fake.local(path)})
  yield 'gs://bucket'
  assert not list(here.iterdir()), 'something was written past epath'
