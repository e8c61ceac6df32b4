"""Taskmaster-4 coffee: ordering at a coffee bar, with API calls, and thumbs for single agent turns.

From TM-4-2024 of github.com/google-research-datasets/Taskmaster (CC BY 4.0), released with PERL
(Sidahmed et al. 2024, arXiv 2403.10704). 3,710 dialogues with about 22 k agent turns give documents
and demonstrations; 3,228 judged turns (86 % up) give labelled responses, preferences and prompts.
"""

from perl.data.examples import Example
from perl.data.sets import _taskmaster as taskmaster
from perl.data.sets import _taskmaster_files as files

APIS = {name: frozenset(arguments.split()) for name, arguments in {
  'show_menu': '',
  'get_menu_items': 'query fields',
  'get_addons': 'query menu_item_id scope',
  'add_order_item': 'menu_item_id quantity attributes addons notes order_id',
  'get_order_details': 'order_id',
  'update_order': 'order_id attributes',
  'update_order_item': 'order_item_id quantity attributes addons notes',
  'remove_order_item': 'order_item_id',
  'cancel_order': 'order_id',
  'finish_order': 'order_id',
}.items()}
"""The APIs of the coffee bar and their arguments, as the dialogues and approved turns use them."""
SOURCE = files.source(
  'taskmaster_coffee',
  dialogues=(files.numbered('TM-4-2024/data', 'data', 8), files.dialogues),
  thumbs=(files.numbered('TM-4-2024/reward', 'reward', 7), files.thumbs))
KINDS = taskmaster.KINDS


def load(split: str, kind: str, *, mirror: str = '', data_dir: str = '',
         seed: int = 0) -> list[Example]:
  """The examples of one split ('train', 'dev', 'test') and kind.

  Args:
    kind: 'document' and 'demonstration' (every agent turn) come from the dialogues, less the few
      (23 of 3,710) that open like a judged one; 'labelled', 'preference' (same context, opposite
      thumbs) and 'prompt' (distinct contexts) from the thumbs.
    mirror: a folder laid out like the public home (TM-4-2024/...); '' downloads from there.
    data_dir: where prepared data is kept; '' is $TFDS_DATA_DIR or ~/tensorflow_datasets.
    seed: not used; the data are given.

  Raises:
    ValueError: an unknown split or kind, an empty split, a malformed file.
    OSError: the files are neither under the mirror nor can be downloaded.
  """
  del seed
  return taskmaster.examples(SOURCE, split, kind, mirror, data_dir, apart=True)


def response_metrics(prompt: str, response: str, reference: str) -> dict[str, float]:
  """exact_match, valid_api_call, api_accuracy: see `taskmaster.response_metrics`."""
  return taskmaster.response_metrics(prompt, response, reference, apis=APIS)
