"""What the two Taskmaster datasets share: from judged dialogues to examples, and their metrics.

Byrne, Krishnamoorthi and Ganesh, Google, CC BY 4.0; released with PERL (Sidahmed et al. 2024).
Home: github.com/google-research-datasets/Taskmaster.

Splits: `dialogue.split_of(dialogue.split_key(turns))`. Rows of one dialogue share their first user
turn, so no context of one split is a prefix of one in another; that key is the `group` of every
example.
"""

import json
from collections.abc import Mapping
from typing import Any

from perl.data.examples import (
  SPLITS,
  Demonstration,
  Document,
  Labelled,
  Preference,
  Prompt,
  check_request,
)
from perl.data.sources.records import Load
from perl.data.sources.tfds import Source, records
from perl.data.text import dialogue


def _documents(rows: list[dict[str, Any]]) -> list[Document]:
  return [Document(dialogue.render_document(row['turns']), **_about(row)) for row in rows]


def _demonstrations(rows: list[dict[str, Any]]) -> list[Demonstration]:
  """Every agent turn after the turns before it."""
  return [Demonstration(*dialogue.render(row['turns'][:i], turn), **_about(row, turn=i))
          for row in rows for i, turn in enumerate(row['turns']) if turn['role'] == 'agent']


def _labelled(rows: list[dict[str, Any]]) -> list[Labelled]:
  return [Labelled(*dialogue.render(row['turns'], row['generation']), float(row['reward']),
                   **_about(row)) for row in rows]


def _preferences(rows: list[dict[str, Any]]) -> list[Preference]:
  """Every distinct approved turn against every distinct rejected one in the same context.

  A turn that was both approved and rejected there tells nothing about itself: no such pair.
  """
  contexts: dict[str, tuple[dict[str, Labelled], dict[str, Labelled]]] = {}
  for row, example in zip(rows, _labelled(rows)):
    thumbs = contexts.setdefault(json.dumps(row['turns'], sort_keys=True), ({}, {}))
    generation = json.dumps(row['generation'], sort_keys=True)
    thumbs[int(example.label)].setdefault(generation, example)
  return [
    Preference(up.prompt, up.response, down.response, group=up.group, meta=up.meta | {
      'rejected_conversation_id': down.meta['conversation_id']})
    for rejected, approved in contexts.values()
    for up in approved.values() for down in rejected.values() if up.response != down.response]


def _prompts(rows: list[dict[str, Any]]) -> list[Prompt]:
  """The distinct contexts that people judged turns in: where the reward model knows its way."""
  distinct = {dialogue.render(row['turns'], None)[0]: row for row in reversed(rows)}
  return [Prompt(prompt, **_about(row)) for prompt, row in reversed(distinct.items())]


def _about(row: dict[str, Any], **more: Any) -> dict[str, Any]:
  return {'group': dialogue.split_key(row['turns']),
          'meta': {'conversation_id': row['conversation_id'], **more}}


MAKERS = {
  'document': ('dialogues', _documents),
  'demonstration': ('dialogues', _demonstrations),
  'preference': ('thumbs', _preferences),
  'labelled': ('thumbs', _labelled),
  'prompt': ('thumbs', _prompts),
}
"""Kind -> (the part that it is made of, how)."""
KINDS = tuple(MAKERS)


def loader(source: Source, *, apart: bool = False) -> Load:
  """The `load` of a dataset, for which its data are given: no seed changes them.

  Documents and demonstrations (every agent turn) are of the dialogues; thumbs, preferences (same
  context, opposite thumbs) and prompts (distinct contexts) of the judged turns.

  Args of `load`: as in `sources.records.loader`, but for the parts.

  Args:
    source: the dataset.
    apart: leave out the dialogues that open like a judged one of any split: what a base or an
      anchor learns from is then foreign to every fold of a cross-validation over the thumbs.

  Raises:
    ValueError, OSError: as in `sources.records.loader`.
  """
  def load(split, kind, *, mirror='', data_dir='', seed=0):
    del seed
    check_request(source.name, split, kind, KINDS)
    part, make = MAKERS[kind]
    rows = records(source, part, split, mirror, data_dir)
    if apart and part == 'dialogues':
      judged = {dialogue.split_key(row['turns']) for other in SPLITS
                for row in records(source, 'thumbs', other, mirror, data_dir)}
      rows = [row for row in rows if dialogue.split_key(row['turns']) not in judged]
    examples = make(rows)
    if not examples:
      raise ValueError(f'{source.name}: expected examples of kind {kind!r} in split {split!r}; '
                       'found none; add files to the mirror')
    return examples

  return load


def response_metrics(prompt: str, response: str, reference: str, *,
                     apis: Mapping[str, frozenset[str]]) -> dict[str, float]:
  """How a response compares with the agent's own turn; each figure is 0. or 1.

  exact_match: the two are the same text up to white space.
  valid_api_call: the response could be carried out. One that opens with '{' is meant as a call: it
    has to be JSON with exactly one known API and known argument names whose values are strings
    (or lists and objects of strings: the rendered `attributes` and `addons`). Any other text is a
    reply, and valid unless it is empty.
  api_accuracy: the response is a well-formed call of the API that the reference calls; only there
    when the reference is a call, so that its mean is over those.
  """
  del prompt  # all three are about the response alone
  metrics = {'exact_match': float(response.split() == reference.split()),
             'valid_api_call': float(_valid(response.strip(), apis))}
  expected = dialogue.parse_response(reference).get('api')
  if expected:
    called = dialogue.parse_response(response.strip()).get('api', {})
    metrics['api_accuracy'] = float(list(called) == list(expected))
  return metrics


def _valid(response: str, apis: Mapping[str, frozenset[str]]) -> bool:
  if not response.startswith('{'):
    return bool(response)
  call = dialogue.parse_response(response).get('api', {})
  return all(
    name in apis and arguments.keys() <= apis[name] and all(map(_strings, arguments.values()))
    for name, arguments in call.items()) and bool(call)


def _strings(value: Any) -> bool:
  """Whether a value is a string, or holds nothing but strings."""
  if isinstance(value, (list, dict)):
    return all(map(_strings, value.values() if isinstance(value, dict) else value))
  return isinstance(value, str)
