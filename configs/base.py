"""Every field at its default; an experiment file changes what it needs.

python -m experiments.launch --config=configs/base.py --help_fields
"""

from ml_collections import ConfigDict

from perl.config import schema


def get_config() -> ConfigDict:
  """The defaults: perl/config/schema.py."""
  return schema.get_config()
