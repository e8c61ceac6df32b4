"""Gemma's own Orbax checkpoints (github.com/google-deepmind/gemma) into our base tree."""

import pathlib
from collections.abc import Callable
from typing import Any

from perl.models.config import Config
from perl.types import Tree


def is_one(folder: pathlib.Path) -> bool:
  """Whether the folder is such a checkpoint."""
  return False


def plan(
  folder: pathlib.Path, *, config: Config | None = None, dtype: Any = None, progress: bool = True
) -> tuple[Config, Callable[[Tree | None], Tree]]:
  """(the model's Config, a function of the base's shardings that reads it)."""
  raise NotImplementedError


def digest(folder: pathlib.Path) -> str:
  """What ties adapters to it."""
  raise NotImplementedError
