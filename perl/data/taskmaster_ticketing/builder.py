"""The TFDS builder of Taskmaster-3 ticketing. TFDS looks for metadata beside this module."""

import tensorflow_datasets as tfds

from perl.data import taskmaster_files as files

_FILES = files.numbered('TM-3-2020/reward', 'reward', 8)


class TaskmasterTicketing(files.SharedBuilder, tfds.core.GeneratorBasedBuilder):
  """Taskmaster-3 ticketing: configs `dialogues` and `thumbs`."""

  BUILDER_CONFIGS = [
    tfds.core.BuilderConfig(name='dialogues', description='Whole dialogues, as turns.'),
    tfds.core.BuilderConfig(name='thumbs', description='Agent turns judged in their context.'),
  ]
  source = files.Source('taskmaster_ticketing', dialogues=(_FILES, files.approved_dialogues),
                        thumbs=(_FILES, files.thumbs))
