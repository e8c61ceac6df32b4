"""What a run reads: examples of its dataset, rows of token ids, batches."""

import dataclasses
import functools
import itertools
import logging
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from perl import choices
from perl.data import examples as kinds
from perl.data import sets
from perl.data.batches import encoding, pipeline
from perl.data.examples import Example
from perl.data.text import chat, special_text
from perl.data.text.tokenizer import Tokenizer
from perl.evaluate import references
from perl.jobs import _folds as folds
from perl.jobs._run import Run
from perl.types import Batch

ROWS = 'rows'
"""Begins the name of what is kept of rows: 'rows <dataset> <kind> <split>'."""


def load(
  config: ConfigDict, split: str, kind: str, name: str = '', *, read: Callable = sets.load,
  dataset: ModuleType | None = None,
) -> Any:
  """read(dataset, split, kind, ...) of config.data's dataset, or of another one of that name."""
  parts = {'parts': tuple(config.parts)} if config.parts and name in ('', config.name) else {}
  return read(
    dataset or choices.find(sets.SETS, name or config.name), split, kind, mirror=config.mirror,
    data_dir=config.data_dir, seed=config.seed, **parts)


@dataclasses.dataclass(frozen=True)
class Data:
  """The data of a run.

  Attributes:
    run: whose config says what is read.
    tokenizer: that of the run's base.
    template: what writes dialogues: the tokenizer's chat template, or None for our markers.
    edges: {kind: padded lengths} of what is learnt from, where data.auto_buckets chose them:
      evaluation takes the same, for each length is a program.
  """

  run: Run
  tokenizer: Tokenizer
  template: chat.Template | None = None
  edges: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict, compare=False)

  @functools.cached_property
  def dataset(self) -> ModuleType:
    """The dataset's module: perl/data/sets/<config.data.name>.py."""
    return choices.find(sets.SETS, self.run.config.data.name)

  def has(self, kind: str) -> bool:
    """Whether the dataset has examples of a kind."""
    return kind in sets.kinds(self.dataset, mirror=self.run.config.data.mirror)

  def offered(self, kind: str, *splits: str) -> list[tuple[str, str]]:
    """(kind, split) of each split; none of a kind that the dataset has not."""
    return [(kind, split) for split in splits] if self.has(kind) else []

  def first(self, split: str, kind: str) -> Example:
    """The first example of the fixed split; no more is read than it takes."""
    return load(self.run.config.data, split, kind, read=sets.first, dataset=self.dataset)

  def read(self, split: str, kind: str) -> list[Example]:
    """All examples of the fixed split, of which the run keeps no note."""
    return load(self.run.config.data, split, kind, dataset=self.dataset)

  def examples(self, split: str, kind: str) -> list[Example]:
    """Those of the dataset, of the fixed split or of config.data.fold.

    Documents, which a base is pretrained on, come from the datasets of config.data.also too.
    """
    config = self.run.config.data
    if config.folds:
      examples = folds.examples(self._load, split, kind, self._assigned)
    else:
      examples = self._load(split, kind)
    also = config.also if kind == 'document' else ()
    return [*examples, *itertools.chain.from_iterable(
      self._load(split, kind, name) for name in also)]

  def answered(self, split: str, kind: str = 'prompt') -> list[Example]:
    """Examples of a split to answer, `some` of them; none where the dataset has not the kind."""
    if not self.has(kind):
      logging.info('%s: %s has no examples of kind %s to answer', self.run.stage,
                   self.run.config.data.name, kind)
      return []
    return self.some(self.examples(split, kind))

  def turns(self, split: str) -> list[Example]:
    """Demonstrations of a split to answer, `some` of them; of those that bring all `references` of
    their prompt, one a prompt.
    """
    if not self.has('demonstration'):
      return self.answered(split, 'demonstration')
    examples = self.examples(split, 'demonstration')
    if examples and examples[0].meta.get(references.NAME):
      examples = list({example.prompt: example for example in reversed(examples)}.values())[::-1]
    return self.some(examples)

  def some(self, examples: list) -> list:
    """At most config.evaluate.max_examples of them, spread evenly."""
    limit = self.run.config.evaluate.max_examples or len(examples)
    return examples[:: max(1, len(examples) // limit)][:limit]

  def _load(self, split: str, kind: str, name: str = '') -> list[Example]:
    """Those of a dataset; the run keeps their digest."""
    config = self.run.config.data
    examples = load(config, split, kind, name, dataset=None if name else self.dataset)
    self.run.reading.note(f'{ROWS} {name or config.name} {kind} {split}', kinds.digest(examples))
    return examples

  @functools.cached_property
  def _assigned(self) -> dict[str, str]:
    """{group: split} of the fold."""
    config = self.run.config.data
    return folds.splits(folds.everything(self._load, 'labelled'), config.folds, config.fold)

  def rows(self, examples: list[Example], kind: str, longest: int = 0) -> list[dict]:
    """The examples as token rows; what was cut or left out is counted in the log.

    Args:
      examples: of one kind.
      kind: that.
      longest: tokens of a response, if more than data.max_response_tokens.
    """
    config = self.run.config.data
    examples = self._written(self._screened(examples, kind))
    rows, counts = pipeline.encode(
      examples, self.tokenizer, kind=kind, max_prompt_tokens=config.max_prompt_tokens,
      max_response_tokens=max(config.max_response_tokens, longest), overlong=config.overlong,
      responses=self.run.config.reward.responses,
    )
    logging.info('%s: %s examples: %s', self.run.stage, kind, counts)
    return rows

  def _written(self, examples: list[Example]) -> list[Example]:
    """The examples as the template writes them, if there is one."""
    if self.template is None:
      return examples
    return [chat.apply(self.template, example) for example in examples]

  def _screened(self, examples: list[Example], kind: str) -> list[Example]:
    """The examples, with the special tokens in their words broken, if data.special_text says so."""
    escape = self.run.config.data.special_text == 'escape'
    screen = special_text.Screen(self.tokenizer, self.template, escape=escape)
    examples = [screen(example) for example in examples]
    if screen.rows:
      logging.warning(
        '%s: %d of %d %s examples hold special tokens of the vocabulary in their words (%s; the '
        'first%s): %s', self.run.stage, screen.rows, len(examples), kind,
        ', '.join(f'{token} {count}' for token, count in screen.counts.most_common(3)),
        f' in {screen.first}' if screen.first else f' of {self.run.config.data.name}',
        'a space breaks them' if escape else 'they are read as these tokens, as in transformers; '
        'data.special_text=escape breaks them')
    return examples

  def sampled(self, prompts: list[Example], responses: Sequence[Sequence[int]]) -> list[dict]:
    """Rows of kind labelled, without a label, of responses as they were sampled."""
    prompts = self._screened([chat.as_prompt(example) for example in prompts], 'prompt')
    prompts = self._written(prompts)
    return encoding.encode_sampled(
      prompts, responses, self.tokenizer,
      max_prompt_tokens=self.run.config.data.max_prompt_tokens)

  def demonstrations(self, split: str) -> list[dict]:
    """What sft learns of a split: a row a turn of the agent or, with sft.whole_chats, a chat."""
    if not self.run.config.sft.whole_chats:
      return self.rows(self.examples(split, 'demonstration'), 'demonstration')
    if self.template is None:
      raise ValueError(
        'expected a tokenizer with a chat template for sft.whole_chats, found none (or '
        'data.chat_template=false); set sft.whole_chats=false')
    config = self.run.config.data
    rows, counts = encoding.encode_chats(
      self._screened(self.examples(split, 'document'), 'document'), self.tokenizer, self.template,
      max_tokens=config.max_prompt_tokens + config.max_response_tokens, overlong=config.overlong)
    logging.info('%s: whole chats: %s', self.run.stage, counts)
    return rows

  def stream(self, rows: list[dict], kind: str, batch_size: int = 0) -> pipeline.Batches:
    """The stage's endless training batches, of as many rows as an update reads or `batch_size`."""
    section = self.run.section
    self.edges.pop(kind, None)
    self.edges[kind] = self.buckets(rows, kind)
    return pipeline.batches(
      rows, kind=kind, batch_size=batch_size or section.batch_size,
      seed=self.run.config.seed, buckets=self.edges[kind],
      shard_index=jax.process_index(), shard_count=jax.process_count(),
      pad_id=self.tokenizer.pad_id, packed=section.get('packed', False),
      shared_prompt=section.get('share_prompt', False),
    )

  def evaluation_batches(self, rows: list[dict], kind: str, **layout: bool) -> list[Batch]:
    """All rows once, in batches of config.evaluate.batch_size; layout as pipeline's."""
    return pipeline.evaluation_batches(
      rows, kind=kind, batch_size=self.run.config.evaluate.batch_size,
      buckets=self.buckets(rows, kind), pad_id=self.tokenizer.pad_id, **layout,
    )

  def buckets(self, rows: list[dict], kind: str) -> tuple[int, ...]:
    """The config's lengths, with one that holds the longest row that there can be; or the rows'.

    With data.auto_buckets those of what is learnt from, where they hold these rows too.
    """
    config = self.run.config.data
    longest = config.max_prompt_tokens + (0 if kind == 'prompt' else config.max_response_tokens)
    longest = max(longest, *map(int, pipeline.lengths(rows, kind)))  # sampled ones may be longer
    if config.auto_buckets:
      if (known := self.edges.get(kind)) and max(pipeline.lengths(rows, kind)) <= known[-1]:
        return known
      edges = pipeline.auto_buckets(pipeline.lengths(rows, kind), count=config.auto_buckets)
      return tuple(sorted({min(edge, longest) for edge in edges}))
    return tuple(b for b in config.buckets if b < longest) + (longest,)

  def decode(self, ids: list[int]) -> str:
    """A response's text without what ends it; other special tokens show, for they are mistakes."""
    ids = ids[:-1] if ids and ids[-1] in self.tokenizer.stop_ids else ids
    return self.tokenizer.decode(ids, skip_special=False).strip()

  def gold_rewards(self, examples: list[Example], texts: list[str]) -> np.ndarray | None:
    """f64[N], the dataset's gold reward of each response; None where there is no gold."""
    gold = getattr(self.dataset, 'gold_reward', None)
    if gold is None:
      return None
    return np.array([gold(example.prompt, text) for example, text in zip(examples, texts)])
