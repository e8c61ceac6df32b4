"""A job's setting that stands on no disk: shapes for parameters, batches and a tokenizer."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from perl.data.examples import (
  Demonstration,
  Document,
  Example,
  Labelled,
  Preference,
  Prompt,
  Ranked,
  Rated,
)
from perl.data.text import tokenizer as tokenizers
from perl.hub import pretrained
from perl.jobs import _artefacts as artefacts
from perl.jobs._setting import Setting
from perl.models import lm
from perl.quantization import quantize_tree
from perl.train import memory, sharding
from perl.train import step as steps
from perl.types import Batch, Tree


class Vocabulary(NamedTuple):
  """What shapes need of a tokenizer: one id a character, as many ids as config says."""

  vocab_size: int
  pad_id: int = 0
  bos_id: int = 1
  eos_id: int = 2
  adds_bos: bool = True
  chat_template: None = None

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    """Ids beyond the special ones, different where characters are."""
    return [[3 + ord(character) % 8 for character in text] for text in texts]


class Plan(Setting):
  """A job's setting that stands on no disk: a stand-in for the tokenizer, shapes for batches."""

  def _vocabulary(self) -> Vocabulary:
    """As many tokens as the config will have; a checkpoint and a published size keep their own."""
    c = self.config
    if c.tokenizer.path and not c.model.checkpoint:
      return Vocabulary(tokenizers.load(c.tokenizer.path).vocab_size)
    return Vocabulary(1 if c.model.checkpoint else c.tokenizer.vocab_size)

  @functools.cached_property
  def anchor(self) -> artefacts.Base:
    """The frozen parameters of every stage, by shape: anchor and base are alike in it.

    Quantized as the jobs have them; pretraining has them dense.
    """
    model = self.model(self.tokenizer.vocab_size)
    checkpoint = self.config.model.checkpoint
    saved = pretrained.scheme(checkpoint) if checkpoint else None
    scheme = None if self.stage == 'pretrain' else saved or self.scheme
    params = quantize_tree(lm.abstract(model), scheme, like=True)
    return artefacts.Base(model, placed(params, sharding.base_shardings(params, self.mesh)), '')

  def place(self, batch: Batch, rows: int = 0) -> Batch:
    """Shapes of the batch with as many rows as an update has, spread over the mesh."""
    section, spread = self.config[self.stage], sharding.batch_sharding(self.mesh)
    rows = rows or section.batch_size // section.get('samples', 1)
    ways = self.mesh.shape['data'] * self.mesh.shape['fsdp']
    if rows % ways:
      raise ValueError(
        f'expected {self.stage}.batch_size to be of rows that the {ways} devices of the mesh '
        f'divide, found {rows}; change it, or config.mesh.data and config.mesh.fsdp'
      )
    shape = lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype, sharding=spread)
    return {name: shape(x) for name, x in batch.items()}

  def batch(self, kind: str, size: int = 0) -> Batch:
    """The longest batch of a kind, through the pipeline that batches come from; of `size` rows
    where that is not what an update has.
    """
    rows, section = self.rows([self.longest(kind)], kind), self.config[self.stage]
    asked = {'packed': section.get('packed'), 'shared_prompt': section.get('share_prompt')}
    layout = {name: True for name, wanted in asked.items() if wanted}
    return self.place(memory.longest(self.evaluation_batches(rows, kind, **layout)), size)

  def longest(self, kind: str) -> Example:
    """An example that fills the config's limits to the last token (bos and eos are added)."""
    c = self.config.data
    prompt, response = 'p' * (c.max_prompt_tokens - 1), 'r' * (c.max_response_tokens - 1)
    other = 's' * max(1, len(response))
    return {
      'document': lambda: Document(prompt + 'p' + response),
      'demonstration': lambda: Demonstration(prompt, response),
      'labelled': lambda: Labelled(prompt, response, 1.0),
      'preference': lambda: Preference(prompt, response, other),
      'ranked': lambda: Ranked(prompt, (response, other)),  # filled up to K
      'rated': lambda: Rated(prompt, response, 1.0),
      'prompt': lambda: Prompt(prompt),
    }[kind]()

  def adapter(self, make: Callable[['Plan', artefacts.Base], Tree]) -> Tree:
    """make(setting, anchor) by shapes, on the mesh."""
    base, model = self.anchor.params, self.anchor.model
    found = jax.eval_shape(lambda params: make(self, artefacts.Base(model, params, '')), base)
    return placed(found, sharding.state_shardings(found, base, self.mesh))

  def first_state(
    self, learning: Tree, tx: Any, running: Tree | None = None
  ) -> tuple[steps.TrainState, Tree]:
    """`artefacts.first_state` by shapes."""
    placements = []

    def make(base, learning):
      state, places = artefacts.first_state(self, base, learning, tx, running)
      placements.append(places)
      return state

    state = jax.eval_shape(make, self.anchor.params, learning)
    return placed(state, placements[0]), placements[0]


def placed(tree: Tree, shardings: Tree) -> Tree:
  """Shapes with their placement."""
  return jax.tree.map(lambda x, s: x.update(sharding=s), tree, shardings)


def spread(tree: Tree, mesh: Mesh) -> Tree:
  """What one program hands to the next: rows over the mesh, as the compiler leaves them."""
  rows = sharding.batch_sharding(mesh)
  whole = NamedSharding(mesh, PartitionSpec())
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(
    x.shape, x.dtype, sharding=rows if x.ndim else whole, weak_type=x.weak_type), tree)
