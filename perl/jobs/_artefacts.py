"""What stages hand to one another on disk: the base, adapters over it, and the anchor."""

import dataclasses
import hashlib
import os
from collections.abc import Sequence

import flax.serialization
import jax
import jax.numpy as jnp
import optax

from perl import trees
from perl.hub import adapters as peft_format
from perl.hub import pretrained
from perl.jobs._setting import Setting
from perl.models import lm
from perl.models.transformer import Transformer
from perl.peft import adapters, composition, protocol
from perl.peft.protocol import Kind
from perl.quantized import Scheme, scheme_of
from perl.train import bases, checkpoint, paging, provenance, sharding
from perl.train import step as steps
from perl.types import Tree


@dataclasses.dataclass(frozen=True)
class Base:
  """Frozen parameters on the mesh, their module, and the digest that ties adapters to them."""

  model: Transformer
  params: Tree
  digest: str
  below: Tree = dataclasses.field(default_factory=dict)  # a frozen adapter under every role's own


def save_base(setting: Setting, model: Transformer, params: Tree) -> None:
  """Writes <workdir>/base, once: no later stage writes it again."""
  base = Base(model, params, trees.digest(params))
  write_base(setting.workdir, base, setting.tokenizer.digest)


def write_base(folder: str | os.PathLike, base: Base, tokenizer: str) -> None:
  """Writes <folder>/base; `tokenizer` is the digest of its tokenizer."""
  meta = {
    'config': dataclasses.asdict(base.model.config),
    'digest': base.digest,
    'tokenizer': tokenizer,
    'commit': provenance.commit(),
  }
  bases.save(os.path.join(folder, 'base'), base.params, meta)


def load_base(setting: Setting) -> Base:
  """The pretrain stage's result or the published checkpoint, sharded over the mesh.

  Quantized as it is read, where config.model.quantize says so, or as it was saved.

  Raises:
    MismatchError: it has another vocabulary or shape than the config asks for.
  """
  model = setting.model(setting.tokenizer.vocab_size)
  if setting.from_checkpoint('base'):
    return load_published(setting, model, setting.scheme)
  folder, scheme = os.path.join(setting.input('base'), 'base'), setting.scheme
  params, meta = bases.load(folder, lm.abstract(model), scheme=scheme, mesh=setting.mesh)
  checkpoint.check_meta({'tokenizer': setting.tokenizer.digest}, meta)
  digest = meta['digest'] if scheme is None or meta.get('quantized') else scheme.of(meta['digest'])
  return Base(model, params, digest)


def load_published(setting: Setting, model: Transformer, scheme: Scheme | None = None) -> Base:
  """config.model.checkpoint, as the model says that it is run; quantized by the scheme."""
  folder, c = setting.config.model.checkpoint, model.config
  model, params, _ = pretrained.load(
    folder, dtype=c.dtype, param_dtype=c.param_dtype, mesh=setting.mesh, remat=c.remat,
    scan_unroll=c.scan_unroll, quantize=scheme,
  )
  return Base(model, params, digest_of(folder, scheme))


def digest_of(folder: str, scheme: Scheme | None) -> str:
  """The digest of a checkpoint that is quantized by the scheme, or was when it was saved."""
  digest = pretrained.digest(folder)
  return digest if scheme is None or pretrained.scheme(folder) else scheme.of(digest)


def new_adapter(
  setting: Setting, base: Base, key: jax.Array, *, head: bool = False, reads: Sequence[str] = (),
  start: str = '',
) -> Tree:
  """An adapter over the base, on the mesh: fresh, of the config's method, or read from `start`.

  Args:
    setting, base: where and over what.
    key: of its initialisation.
    head: with a reward or value head; that of `start` where it has one.
    reads: what else a fresh head reads.
    start: a folder in PEFT's format, to go on from.
  """
  if start:
    adapter, width = _from_peft(start, base), base.model.config.width
    _check_method(adapter, setting.config.peft.name, start)
    own = adapter.pop('head', None)
    if head:
      adapter['head'] = own or adapters.init_head(jax.random.fold_in(key, 1), width, reads=reads)
  else:
    adapter = adapters.init(
      key, base.params, setting.config.peft.name, head=head, reads=reads,
      **setting.peft_options(),
    )
  return place_adapter(_over(base, adapter), base.params, setting)


def _check_method(adapter: Tree, method: str, folder: str) -> None:
  """What is trained further is saved, and read again, as an adapter of the config's method."""
  known = [Kind.of(made, {}).arrays for made in protocol.classes(protocol.find(method))]
  for node in adapters.nodes(adapter).values():
    if Kind.of(type(node), {}).arrays not in known:
      raise ValueError(
        f'expected an adapter of config.peft.name={method} in {folder}, found '
        f'{type(node).__name__}; set peft.name to its method')


def _over(base: Base, adapter: Tree) -> Tree:
  """The adapter over a copy of what lies frozen over the base: states are donated to their step."""
  if base.below and adapters.members(adapter):
    return adapters.stack([_over(base, one) for one in trees.unstack(adapter)])
  below = jax.tree.map(jnp.copy, base.below)
  return composition.over(base.params, below, adapter) if below else adapter


def reference(setting: Setting, base: Base, policy: Tree) -> Tree:
  """The explicit adapter that the policy's KL is taken to: a copy of the policy at its start.

  Methods that cannot begin as the base's function have the anchor's own in place of it.
  """
  config = setting.config
  started = config[setting.stage].get('adapter', config.rl.adapter)
  if started or getattr(adapters.find(config.peft.name), 'IDENTITY', True):
    return jax.tree.map(jnp.copy, policy)
  return place_adapter(_over(base, {}), base.params, setting)


def place_adapter(adapter: Tree, params: Tree, setting: Setting) -> Tree:
  """Low-rank adapters replicated, full copies sharded like their base."""
  return sharding.place(adapter, sharding.state_shardings(adapter, params, setting.mesh))


def first_state(
  setting: Setting, base: Tree, learning: Tree, tx: optax.GradientTransformation,
  running: Tree | None = None,
) -> tuple[steps.TrainState, Tree]:
  """(the state before the first step, on the mesh; its placements, which the step is to keep).

  `running` are the statistics that it begins with (perl/rl/statistics.py).

  Raises:
    ValueError: config.mesh.optimizer_memory is one that the platform has not.
  """
  state = steps.init_state(learning, tx, setting.key, adapters.split, running)
  places = sharding.state_shardings(state, base, setting.mesh)
  places = places.replace(opt_state=paging.page(
    state.opt_state, places.opt_state, setting.mesh, setting.config.mesh.optimizer_memory))
  return sharding.place(state, places), places


def adapter_meta(setting: Setting, base: Base, *, head: bool) -> dict:
  """What has to agree when an adapter is loaded again."""
  options = setting.peft_options() | {'targets': list(setting.config.peft.targets)}
  if start := setting.config[setting.stage].adapter:  # it has ranks and modules of its own
    options = {'started_from': os.path.abspath(start)}
  return {
    'method': setting.config.peft.name,
    **options,
    'head': head,
    'base_digest': base.digest,
    'tokenizer': setting.tokenizer.digest,
  }


def run_meta(setting: Setting, base: Base, *, head: bool) -> dict:
  """What has to agree when a stage is resumed: the adapter's meta, the section, the seed."""
  section = setting.config[setting.stage].to_dict()
  section.pop('log_every_steps', None), section.pop('keep_last', None)
  return {**adapter_meta(setting, base, head=head), 'seed': setting.config.seed, **section}


def save_adapter(setting: Setting, base: Base, adapter: Tree, *, head: bool = False) -> None:
  """Writes <workdir>/adapter: the adapter or the stack alone, with what it was trained on."""
  meta = adapter_meta(setting, base, head=head)
  meta |= {'commit': provenance.commit(), 'parameters': adapters.count(adapter)}
  if members := adapters.members(adapter):
    meta['members'] = members
  tree = flax.serialization.to_state_dict(composition.upper(adapter))
  checkpoint.save_tree(os.path.join(setting.workdir, 'adapter'), tree, meta)


def load_adapter(setting: Setting, folder: str, base: Base) -> tuple[Tree, dict]:
  """(adapter on the mesh, its meta) of a stage's folder; the method is the one it was saved with.

  The folder may also be one in PEFT's format, whose meta is empty.

  Raises:
    MismatchError: it was trained over another base or with another tokenizer.
    ValueError: one in PEFT's format is wanted over an anchor that is not the base.
  """
  if os.path.isfile(os.path.join(folder, peft_format.CONFIG)):
    return _load_published_adapter(setting, folder, base), {}
  path = os.path.join(folder, 'adapter')
  tree, meta = checkpoint.load_tree(path)
  expected = {'base_digest': base.digest, 'tokenizer': setting.tokenizer.digest}
  checkpoint.check_meta(expected, meta)
  adapter = adapters.rebuild(tree, meta['method'], meta)
  return place_adapter(_over(base, adapter), base.params, setting), meta


def _from_peft(folder: str, base: Base) -> Tree:
  return peft_format.load(
    folder, base.params, heads=base.model.config.heads, base_digest=base.digest)


def _load_published_adapter(setting: Setting, folder: str, base: Base) -> Tree:
  """PEFT's adapters are trained over the checkpoint, as the anchor's adapter is."""
  inputs = setting.config.inputs
  if folder != inputs.anchor and inputs.anchor != 'base':
    raise ValueError(
      f'expected inputs.anchor=base, for {folder} was trained over the checkpoint itself, found '
      f'{inputs.anchor or "the sft stage"!r}, which changes it; set inputs.anchor=base, or train a '
      'reward model over that anchor'
    )
  adapter = _from_peft(folder, base)
  if folder == inputs.reward and 'head' not in adapter:
    raise ValueError(
      f'expected a reward model with score.weight in {folder}, found an adapter without a head; '
      'save one that was trained for sequence classification'
    )
  return place_adapter(adapter, base.params, setting)


def load_anchor(setting: Setting) -> Base:
  """The anchor: the base with the SFT adapter merged in float32. The other roles lie over it.

  One that cannot be merged, or lies over a quantized base, stays a tree of its own, frozen below
  those of the roles. With inputs.anchor = 'base' it is the base itself.
  """
  return anchor_over(setting, load_base(setting))[0]


def anchor_over(setting: Setting, base: Base) -> tuple[Base, Tree]:
  """(the anchor, the SFT adapter that makes it of the base); (base, {}) where it is the base."""
  if setting.config.inputs.anchor == 'base':
    return base, {}
  adapter, _ = load_adapter(setting, setting.input('anchor'), base)
  if scheme_of(base.params) is not None or not adapters.mergeable(base.params, adapter):
    parts = [base.digest, trees.digest(flax.serialization.to_state_dict(adapter))]
    digest = hashlib.sha256(''.join(parts).encode()).hexdigest()
    return Base(base.model, base.params, digest, below=adapter), adapter
  params = adapters.merge(base.params, adapter)
  params = sharding.place(params, sharding.base_shardings(params, setting.mesh))
  return Base(base.model, params, trees.digest(params)), adapter
