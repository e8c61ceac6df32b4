"""Taskmaster-4 coffee: ordering at a coffee bar, with API calls, and thumbs for single agent turns.

From TM-4-2024 of github.com/google-research-datasets/Taskmaster (CC BY 4.0), released with PERL
(Sidahmed et al. 2024, arXiv 2403.10704). 3,710 dialogues with about 22 k agent turns, less the 23
that open like a judged one, give documents and demonstrations; 3,228 judged turns (86 % up) give
labelled responses, preferences and prompts.
"""

import functools

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
load = taskmaster.loader(SOURCE, apart=True)
response_metrics = functools.partial(taskmaster.response_metrics, apis=APIS)
"""(prompt, response, reference) -> exact_match, valid_api_call, api_accuracy."""
