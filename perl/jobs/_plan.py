"""A stage by shapes alone: no array, no data, no tokenizer. What a forecast compiles.

A job makes its programs of a `Plan` by the functions that it runs itself, so that what is lowered
here is what the job runs at its longest batch, and a forecast cannot drift from it.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from perl.data.examples import KINDS, Example
from perl.data.text import tokenizer as tokenizers
from perl.hub import pretrained
from perl.jobs._artefacts import Artefacts, Base
from perl.jobs._data import Data
from perl.jobs._run import Run
from perl.models import lm
from perl.quantization import quantize_tree
from perl.quantized import NATIVE
from perl.train import memory, sharding
from perl.train import step as steps
from perl.types import Batch, Tree


class Program(NamedTuple):
  """A jitted function with what it is called with, by shape."""

  function: Any  # jax.jit's
  arguments: tuple
  batch: Tree  # those of the arguments that are the step's own: prompts, rollouts, experience
  static: dict[str, Any] = {}  # keyword arguments that are no arrays

  def trace(self) -> jax.stages.Traced:
    """The program as a jaxpr."""
    return self.function.trace(*self.arguments, **self.static)

  def lower(self) -> jax.stages.Lowered:
    """The program as StableHLO."""
    return self.trace().lower()

  def compile(self, options: dict[str, str] | None = None) -> jax.stages.Compiled:
    """The program for the default backend, with options of its compiler; nothing is run."""
    return self.lower().compile(options)

  def result(self, mesh: Mesh) -> Tree:
    """What it returns, by shape, as the next program is handed it: rows over the mesh."""
    call = functools.partial(self.function, **self.static)
    arrays = [x for x in self.arguments if not callable(x)]
    fixed = [x for x in self.arguments if callable(x)]  # a model comes first
    return spread(jax.eval_shape(functools.partial(call, *fixed), *arrays), mesh)


class Stage(NamedTuple):
  """What a stage holds on its devices, and what it runs there.

  Every tree is of jax.ShapeDtypeStruct, with its placement on the mesh.
  """

  model: Any  # perl.models.transformer.Transformer
  base: Tree  # frozen parameters
  state: steps.TrainState  # what learns; in rl its adapters are by role
  frozen: dict[str, Tree]  # adapters that do not learn, by role
  batch: Batch  # of the training stream, at its longest
  programs: dict[str, Program]  # in the order in which a step runs them


class Vocabulary(NamedTuple):
  """What shapes need of a tokenizer: one id a character, as many ids as config says."""

  vocab_size: int
  pad_id: int = 0
  bos_id: int = 1
  eos_id: int = 2
  stop_ids: tuple[int, ...] = (2,)
  adds_bos: bool = True
  chat_template: None = None
  special: tuple[str, ...] = ()
  special_tokens: dict[str, str] = {}

  def token(self, index: int) -> None:
    """None: an id is a character, whichever."""

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    """Ids beyond the special ones, different where characters are."""
    return [[3 + ord(character) % 8 for character in text] for text in texts]

  def encode_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[list[int], int]]:
    """(the ids of both texts as one, how many are the first's) of each pair."""
    return [(ids, len(first)) for ids, (first, _) in
            zip(self.encode_batch([first + second for first, second in pairs]), pairs)]


class _Run(Run):
  """A run whose batches are shapes, of as many rows as an update has."""

  def place(self, batch: Batch, rows: int = 0) -> Batch:
    rows = rows or self.section.batch_size // self.section.get('samples', 1)
    sharding.check_rows(rows, self.mesh)
    spread = sharding.batch_sharding(self.mesh)
    shape = lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype, sharding=spread)
    return {name: shape(x) for name, x in batch.items()}


class _Artefacts(Artefacts):
  """Artefacts that stand on no disk."""

  def _vocabulary(self) -> Vocabulary:
    """As many tokens as the config will have; a checkpoint and a published size keep their own."""
    config = self.run.config
    if config.tokenizer.path and not config.model.checkpoint:
      return Vocabulary(tokenizers.load(config.tokenizer.path).vocab_size)
    return Vocabulary(1 if config.model.checkpoint else config.tokenizer.vocab_size)


@dataclasses.dataclass(frozen=True)
class Plan:
  """A stage of a valid config, before anything of it is there."""

  config: ConfigDict
  stage: str

  @functools.cached_property
  def run(self) -> Run:
    """The stage's run, in no folder."""
    return _Run(self.config, '', self.stage)

  @functools.cached_property
  def artefacts(self) -> Artefacts:
    """A stand-in for the tokenizer; no base, no adapter."""
    return _Artefacts(self.run)

  @property
  def data(self) -> Data:
    """Its batches are shapes."""
    return self.artefacts.data

  @functools.cached_property
  def anchor(self) -> Base:
    """The frozen parameters of every stage, by shape: anchor and base are alike in it.

    Quantized as the jobs have them; pretraining has them dense.
    """
    model, checkpoint = self.artefacts.model(), self.run.config.model.checkpoint
    saved = pretrained.scheme(checkpoint) if checkpoint else None
    scheme = None if self.stage == 'pretrain' else saved or self.artefacts.scheme
    scheme = pretrained.native(checkpoint) if scheme == NATIVE else scheme
    params = quantize_tree(lm.abstract(model), scheme, like=True)
    return Base(model, placed(params, sharding.base_shardings(params, self.run.mesh)), '')

  def batch(self, kind: str, size: int = 0) -> Batch:
    """The longest batch of a kind, through the pipeline that batches come from; of `size` rows
    where that is not what an update has.
    """
    rows, section = self.data.rows([self.longest(kind)], kind), self.run.section
    layout = {'packed': section.get('packed'), 'shared_prompt': section.get('share_prompt')}
    batches = self.data.evaluation_batches(
      rows, kind, **{name: True for name, wanted in layout.items() if wanted})
    return self.run.place(memory.longest(batches), size)

  def longest(self, kind: str) -> Example:
    """An example that fills the config's limits to the last token (bos and eos are added)."""
    config = self.run.config.data
    prompt, response = 'p' * (config.max_prompt_tokens - 1), 'r' * (config.max_response_tokens - 1)
    other = 's' * max(1, len(response))
    texts = {
      'document': (prompt + 'p' + response,), 'demonstration': (prompt, response),
      'labelled': (prompt, response, 1.0), 'preference': (prompt, response, other),
      'ranked': (prompt, (response, other)),  # filled up to K
      'rated': (prompt, response, 1.0), 'prompt': (prompt,),
    }
    return KINDS[kind](*texts[kind])

  def adapter(self, make: Callable[[Base], Tree]) -> Tree:
    """make(anchor) by shapes, on the mesh."""
    base, model = self.anchor.params, self.anchor.model
    shapes = jax.eval_shape(lambda params: make(Base(model, params, '')), base)
    return placed(shapes, sharding.state_shardings(shapes, base, self.run.mesh))

  def first_state(
    self, learning: Tree, tx: Any, running: Tree | None = None
  ) -> tuple[steps.TrainState, Tree]:
    """`Run.first_state` by shapes."""
    placements = []

    def make(base, learning):
      state, places = self.run.first_state(base, learning, tx, running)
      placements.append(places)
      return state

    state = jax.eval_shape(make, self.anchor.params, learning)
    return placed(state, placements[0]), placements[0]

  def updating(
    self, state: steps.TrainState, step: Callable, batch: Batch, *, fixed: Tree | None = None,
    frozen: dict[str, Tree] | None = None,
  ) -> Stage:
    """A stage with an update and nothing else; `fixed` is its base where that holds more."""
    base = self.anchor.params
    update = Program(step, (state, base if fixed is None else fixed, batch), batch)
    return Stage(self.anchor.model, base, state, frozen or {}, batch, {'update': update})


def placed(tree: Tree, shardings: Tree) -> Tree:
  """Shapes with their placement."""
  return jax.tree.map(lambda x, s: x.update(sharding=s), tree, shardings)


def spread(tree: Tree, mesh: Mesh) -> Tree:
  """What one program hands to the next: rows over the mesh, as the compiler leaves them."""
  rows = sharding.batch_sharding(mesh)
  whole = NamedSharding(mesh, PartitionSpec())
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(
    x.shape, x.dtype, sharding=rows if x.ndim else whole, weak_type=x.weak_type), tree)
