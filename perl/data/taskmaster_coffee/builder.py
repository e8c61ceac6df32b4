"""The TFDS builder of Taskmaster-4 coffee. TFDS looks for metadata beside this module."""

import tensorflow_datasets as tfds

from perl.data import taskmaster_files as files


class TaskmasterCoffee(files.SharedBuilder, tfds.core.GeneratorBasedBuilder):
  """Taskmaster-4 coffee: configs `dialogues` and `thumbs`."""

  BUILDER_CONFIGS = [
    tfds.core.BuilderConfig(name='dialogues', description='Whole dialogues, as turns.'),
    tfds.core.BuilderConfig(name='thumbs', description='Agent turns judged in their context.'),
  ]
  source = files.Source(
    'taskmaster_coffee',
    dialogues=(files.numbered('TM-4-2024/data', 'data', 8), files.dialogues),
    thumbs=(files.numbered('TM-4-2024/reward', 'reward', 7), files.thumbs))
