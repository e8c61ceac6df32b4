"""A config whose algorithm has decided what was left to it."""

from ml_collections import ConfigDict

from perl.rl import algorithms


def decided(config: ConfigDict) -> ConfigDict:
  """The config with the values that config.rl leaves open: perl/rl/algorithms/__init__.py."""
  made = config.copy_and_resolve_references()
  with made.unlocked():
    made.rl = ConfigDict(algorithms.resolve(config.rl.algorithm, config.rl.to_dict()))
  return made
