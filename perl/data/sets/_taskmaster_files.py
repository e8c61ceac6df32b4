"""The rows of the Taskmaster files and what becomes of them; `prepared` does the rest.

Parts are `dialogues` (whole dialogues as turns) and `thumbs` (agent turns that a person judged in
their context). Turns are kept as they are and rendered when they are loaded, so that
`dialogue.render` may change without a new download.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from perl import documents
from perl.data.sources import pins, tfds
from perl.data.text import dialogue

HOME = f'https://raw.githubusercontent.com/google-research-datasets/Taskmaster/{pins.TASKMASTER}'
CITATION = """@misc{sidahmed2024perl,
  title={Parameter Efficient Reinforcement Learning from Human Feedback},
  author={Sidahmed et al.}, year={2024}, eprint={2403.10704}, archivePrefix={arXiv}}"""

Records = Callable[[Mapping[str, list]], Iterator[dict[str, Any]]]
"""{file: its rows} -> {'conversation_id', 'turns', ...} of each record."""


def source(name: str, **parts: tuple[tuple[str, ...], Records]) -> tfds.Source:
  """A dataset of Taskmaster files; a record is of the split of its first user turn."""
  def split(read: Records) -> tfds.Reader:
    return lambda files: (
      (dialogue.split_of(dialogue.split_key(record['turns'])), record) for record in read(files))

  return tfds.Source(
    name, HOME, {part: tfds.Part(names, split(read)) for part, (names, read) in parts.items()},
    CITATION, pins.CHECKSUMS)


def numbered(folder: str, stem: str, count: int) -> tuple[str, ...]:
  """('folder/stem_00.json', ...): how the home names its files."""
  return tuple(f'{folder}/{stem}_{i:02d}.json' for i in range(count))


def _thumb(row: Mapping[str, Any]) -> dict[str, Any]:
  context, generation = dialogue.turns_of_reward_row(row)
  if row['reward'] not in (0.0, 1.0):
    raise ValueError(f'reward {row["reward"]!r} is neither 0.0 nor 1.0')
  return {'conversation_id': row['conversation_id'], 'turns': context, 'generation': generation,
          'reward': float(row['reward'])}


def thumbs(files: Mapping[str, list]) -> Iterator[dict[str, Any]]:
  """The rows of the reward files, without the agent's fixed greeting."""
  return tfds.each(files, _thumb)


def dialogues(files: Mapping[str, list]) -> Iterator[dict[str, Any]]:
  """The dialogues of TM-4's data files, as the turns that the reward files use."""
  return tfds.each(files, lambda row: {'conversation_id': row['conversation_id'],
                                           'turns': dialogue.turns_of_dialog(row)})


def approved_dialogues(files: Mapping[str, list]) -> Iterator[dict[str, Any]]:
  """Dialogues put together from reward rows: contexts, each with its generation if approved.

  Rows are successive turns of one dialogue, so a context that another one continues is left out.
  """
  rows = list(tfds.each(files, dialogue.turns_of_reward_row))
  rewards = tfds.each(files, lambda row: (row['conversation_id'], row['reward']))
  whole: dict[tuple[str, ...], str] = {}
  for (context, generation), (conversation_id, reward) in zip(rows, rewards):
    turns = context + [generation] if reward else context
    whole.setdefault(tuple(json.dumps(turn, sort_keys=True) for turn in turns), conversation_id)
  continued = {turns[:i] for turns in whole for i in range(len(turns))}
  for turns, conversation_id in whole.items():
    if turns not in continued:
      yield {'conversation_id': conversation_id,
             'turns': [documents.parse(turn, conversation_id) for turn in turns]}
