"""What stages hand to one another on disk: tokenizer, base, adapters over it, the anchor."""

import dataclasses
import functools
import hashlib
import logging
import os
from collections.abc import Sequence

import flax.serialization
import jax
import jax.numpy as jnp

from perl import paths, quantized, trees
from perl.data.text import chat
from perl.data.text import tokenizer as tokenizers
from perl.hub import adapters as peft_format
from perl.hub import pretrained, scored_token
from perl.jobs import _vocabulary
from perl.jobs._base import Base, digest_of, over, write_base
from perl.jobs._data import Data
from perl.jobs._run import Run
from perl.models import config as model_config
from perl.models import lm
from perl.models.transformer import Transformer
from perl.peft import adapters, composition, protocol, rounding
from perl.peft.protocol import Kind
from perl.quantized import Scheme, scheme_of
from perl.train import bases, checkpoint, provenance, sharding
from perl.types import Tree


@dataclasses.dataclass(frozen=True)
class Artefacts:
  """Reads what a run builds on, and writes what it leaves."""

  run: Run

  @property
  def tokenizer(self) -> tokenizers.Tokenizer:
    """The tokenizer stage's result, or the checkpoint's; it stops where its chat template does.

    Raises:
      FileNotFoundError: neither is there.
    """
    return self._chat[1]

  @functools.cached_property
  def _chat(self) -> tuple[chat.Template | None, tokenizers.Tokenizer]:
    vocabulary = self._vocabulary()
    uses = self.run.config.data.chat_template and vocabulary.chat_template is not None
    return chat.of(vocabulary, self.run.config.data.date) if uses else (None, vocabulary)

  @property
  def text(self) -> dict:
    """What turns text into ids, by chat.text_identity: the same in stages that build on another."""
    return chat.text_identity(self.tokenizer, self._chat[0])

  def _vocabulary(self) -> tokenizers.Tokenizer:
    """The tokenizer as it was read; of a published base one that fits its embedding."""
    return _vocabulary.read(self.run)

  @functools.cached_property
  def data(self) -> Data:
    """The run's data, by its tokenizer and template."""
    template, tokenizer = self._chat
    return Data(self.run, tokenizer, template)

  @property
  def scheme(self) -> Scheme | None:
    """How config.model quantizes the frozen base; None where it does not."""
    model = self.run.config.model
    return quantized.chosen(model.quantize, model.quantize_block, model.double_quantize)

  def model(self) -> Transformer:
    """The transformer that config.model describes: its checkpoint's, or of its size."""
    config, vocab_size = self.run.config.model, self.tokenizer.vocab_size
    options = dict(dtype=config.dtype, param_dtype=config.param_dtype, remat=config.remat)
    if config.checkpoint:
      shape = pretrained.read_config(config.checkpoint, **options)
    else:
      shape = model_config.sized(config.size, vocab_size=vocab_size, **options)
    if vocab_size > shape.vocab_size:
      raise ValueError(
        f'expected a tokenizer of at most {shape.vocab_size} tokens for this model, found '
        f'{vocab_size}; use the one that was published with it')
    return Transformer(model_config.replace(shape, scan_unroll=config.scan_unroll))

  # --- The base and the anchor

  def save_base(self, model: Transformer, params: Tree) -> None:
    """Writes <workdir>/base, once: no later stage writes it again."""
    base = Base(model, params, trees.digest(params))
    write_base(self.run.workdir, base, self.tokenizer.digest)

  def base(self) -> Base:
    """The pretrain stage's result or the published checkpoint, sharded over the mesh.

    Quantized as it is read, where config.model.quantize says so, or as it was saved.

    Raises:
      MismatchError: it has another vocabulary or shape than the config asks for.
    """
    model, scheme = self.model(), self.scheme
    if self.run.from_checkpoint('base'):
      return self.published(model, scheme)
    folder = os.path.join(self.run.input('base'), 'base')
    params, meta = bases.load(folder, lm.abstract(model), scheme=scheme, mesh=self.run.mesh)
    checkpoint.check_meta({'tokenizer': self.tokenizer.digest}, meta)
    digest = meta['digest']
    return Base(model, params, digest if scheme is None or meta.get('quantized') else (
      scheme.of(digest)))

  def published(self, model: Transformer, scheme: Scheme | None = None) -> Base:
    """config.model.checkpoint, as the model says that it is run; quantized by the scheme."""
    folder, config = self.run.config.model.checkpoint, model.config
    model, params, _ = pretrained.load(
      folder, dtype=config.dtype, param_dtype=config.param_dtype, mesh=self.run.mesh,
      remat=config.remat, scan_unroll=config.scan_unroll, quantize=scheme)
    return Base(model, params, digest_of(folder, scheme))

  def anchor(self) -> Base:
    """The anchor: the base with the SFT adapter merged in float32. The other roles lie over it.

    One that cannot be merged, lies over a quantized base, or would be rounded away (its change by
    more than rounding.LIMIT), stays a tree of its own, frozen below those of the roles. With
    inputs.anchor = 'base' it is the base itself.
    """
    return self.anchor_over(self.base())[0]

  def anchor_over(self, base: Base) -> tuple[Base, Tree]:
    """(the anchor, the SFT adapter that makes it of the base); (base, {}) where it is the base.

    It is known by what it is made of, not by its merged floats, whose last bits are the machine's.
    """
    if self.run.config.inputs.anchor == 'base':
      return base, {}
    adapter, _ = self.adapter(self.run.input('anchor'), base)
    parts = [base.digest, trees.digest(flax.serialization.to_state_dict(adapter))]
    digest = hashlib.sha256(''.join(parts).encode()).hexdigest()
    if not self._merges(base, adapter):
      return Base(base.model, base.params, digest, below=adapter), adapter
    params = adapters.merge(base.params, adapter)
    params = sharding.place(params, sharding.base_shardings(params, self.run.mesh))
    former = functools.cache(lambda: trees.digest(params))
    return Base(base.model, params, digest, former=former), adapter

  def _merges(self, base: Base, adapter: Tree) -> bool:
    """Whether the adapter is to be folded into the base."""
    if scheme_of(base.params) is not None or not adapters.mergeable(base.params, adapter):
      return False
    dtype = base.model.config.dtype
    if not (holds := rounding.holds(base.params, adapter, dtype)):
      logging.info('%s: merged into the base, %.0f %% of what sft learnt would be rounded away: '
                   'its adapter stays apart', self.run.stage,
                   100 * rounding.error(base.params, adapter, dtype))
    return holds

  # --- Adapters

  def new_adapter(
    self, base: Base, key: jax.Array, *, head: bool = False, reads: Sequence[str] = (),
    start: str = '',
  ) -> Tree:
    """An adapter over the base, on the mesh: fresh, of the config's method, or read from `start`.

    Args:
      base: over what.
      key: of its initialisation.
      head: with a reward or value head; that of `start` where it has one.
      reads: what else a fresh head reads.
      start: a folder in PEFT's format, to go on from.
    """
    method = self.run.config.peft.name
    if start:
      adapter, width = _from_peft(start, base), base.model.config.width
      _check_method(adapter, method, start)
      own = adapter.pop('head', None)
      if head:
        adapter['head'] = own or adapters.init_head(jax.random.fold_in(key, 1), width, reads=reads)
    else:
      adapter = adapters.init(
        key, base.params, method, head=head, reads=reads, **self.run.peft_options())
    return self.place(over(base, adapter), base.params)

  def reference(self, base: Base, policy: Tree) -> Tree:
    """The explicit adapter that the policy's KL is taken to: a copy of the policy at its start.

    Methods that cannot begin as the base's function have the anchor's own in place of it.
    """
    config = self.run.config
    started = config[self.run.stage].get('adapter', config.rl.adapter)
    if started or getattr(adapters.find(config.peft.name), 'IDENTITY', True):
      return jax.tree.map(jnp.copy, policy)
    return self.place(over(base, {}), base.params)

  def place(self, adapter: Tree, params: Tree) -> Tree:
    """Low-rank adapters replicated, full copies sharded like their base."""
    return sharding.place(adapter, sharding.state_shardings(adapter, params, self.run.mesh))

  def meta(self, base: Base, *, head: bool = False) -> dict:
    """What has to agree when an adapter is loaded again."""
    run = self.run
    options = run.peft_options() | {'targets': list(run.config.peft.targets)}
    if start := run.section.adapter:  # it has ranks and modules of its own
      options = {'started_from': str(paths.absolute(start))}
    return {
      'method': run.config.peft.name, **options, 'head': head, 'base_digest': base.digest,
      'tokenizer': self.tokenizer.digest, 'text': self.text}

  def _renamed(self, base: Base, meta: dict) -> dict:
    """A saved meta by today's names; older ones do not say what turned text into ids."""
    return {'text': self.text} | base.renamed(meta)

  def resumed(self, base: Base | None = None, *, head: bool = False) -> dict:
    """The arguments of train.loop.fit by which a stage knows its own checkpoints again.

    They are the fields that determine its result, all of them and no others, and the adapter's
    meta, where an adapter learns over a base. A field that a checkpoint lacks is younger than it.
    """
    fields = self.run.identity()
    if base is None:
      return {'meta': fields | {'tokenizer': self.tokenizer.digest, 'text': self.text},
              'renamed': lambda meta: fields | {'text': self.text} | meta}
    return {'meta': fields | self.meta(base, head=head),
            'renamed': lambda meta: fields | self._renamed(base, meta)}

  def save_adapter(self, base: Base, adapter: Tree, *, head: bool = False) -> None:
    """Writes <workdir>/adapter: the adapter or the stack alone, with what it was trained on."""
    meta = self.meta(base, head=head)
    tree = flax.serialization.to_state_dict(composition.upper(adapter))
    meta |= {'commit': provenance.commit(), 'parameters': adapters.count(adapter),
             'digest': trees.digest(tree)}
    if members := adapters.members(adapter):
      meta['members'] = members
    checkpoint.save_tree(os.path.join(self.run.workdir, 'adapter'), tree, meta)

  def adapter(self, folder: str, base: Base) -> tuple[Tree, dict]:
    """(adapter on the mesh, its meta) of a stage's folder; of the method it was saved with.

    The folder may also be one in PEFT's format, whose meta is empty.

    Raises:
      MismatchError: it was trained over another base or with another tokenizer.
      ValueError: one in PEFT's format is wanted over an anchor that is not the base.
    """
    if (paths.of(folder) / peft_format.CONFIG).exists():
      return self._published_adapter(folder, base), {}
    tree, meta = checkpoint.load_tree(os.path.join(folder, 'adapter'))
    expected = {'base_digest': base.digest, 'tokenizer': self.tokenizer.digest, 'text': self.text}
    hint = base.hint(folder) + (
      '; of text, a template that reads the clock goes by data.date' if self.text['date'] else '')
    checkpoint.check_meta(expected, self._renamed(base, meta), hint=hint)
    adapter = adapters.rebuild(tree, meta['method'], meta)
    return self.place(over(base, adapter), base.params), meta

  def _published_adapter(self, folder: str, base: Base) -> Tree:
    """PEFT's adapters are trained over the checkpoint, as the anchor's adapter is."""
    inputs = self.run.config.inputs
    if folder != inputs.anchor and inputs.anchor != 'base':
      raise ValueError(
        f'expected inputs.anchor=base, for {folder} was trained over the checkpoint itself, found '
        f'{inputs.anchor or "the sft stage"!r}, which changes it; set inputs.anchor=base, or train '
        'a reward model over that anchor')
    adapter = _from_peft(folder, base)
    if folder == inputs.reward:
      if 'head' not in adapter:
        raise ValueError(
          f'expected a reward model with score.weight in {folder}, found an adapter without a '
          'head; save one that was trained for sequence classification')
      adapter['head'] = scored_token.head(
        adapter['head'], folder, self.run.config.model.checkpoint, self.tokenizer.stop_ids)
    return self.place(adapter, base.params)


def _check_method(adapter: Tree, method: str, folder: str) -> None:
  """What is trained further is saved, and read again, as an adapter of the config's method."""
  known = [Kind.of(kind, {}).arrays for kind in protocol.classes(protocol.find(method))]
  for node in adapters.nodes(adapter).values():
    if Kind.of(type(node), {}).arrays not in known:
      raise ValueError(
        f'expected an adapter of config.peft.name={method} in {folder}, found '
        f'{type(node).__name__}; set peft.name to its method')


def _from_peft(folder: str, base: Base) -> Tree:
  return peft_format.load(
    folder, base.params, heads=base.model.config.heads, base_digest=base.digest)
