"""What stages hand to one another on disk: the base, adapters over it, and the anchor."""

import dataclasses
import os
from collections.abc import Sequence

import flax.serialization
import jax
import optax

from perl import trees
from perl.jobs.setting import Setting
from perl.models import lm
from perl.models.transformer import Transformer
from perl.peft import adapters
from perl.train import checkpoint, provenance, sharding
from perl.train import step as steps
from perl.types import Tree


@dataclasses.dataclass(frozen=True)
class Base:
  """Frozen parameters on the mesh, their module, and the digest that ties adapters to them."""

  model: Transformer
  params: Tree
  digest: str


def save_base(setting: Setting, model: Transformer, params: Tree) -> None:
  """Writes <workdir>/base, once: no later stage writes it again."""
  meta = {
    'config': dataclasses.asdict(model.config),
    'digest': trees.digest(params),
    'tokenizer': setting.tokenizer.digest,
    'commit': provenance.commit(),
  }
  checkpoint.save_tree(os.path.join(setting.workdir, 'base'), params, meta)


def load_base(setting: Setting) -> Base:
  """The pretrain stage's result, sharded over the mesh.

  Raises:
    MismatchError: it has another vocabulary or shape than the config asks for.
  """
  folder = os.path.join(setting.input('base'), 'base')
  model = setting.model(setting.tokenizer.vocab_size)
  like = lm.abstract(model)
  params, meta = checkpoint.load_tree(
    folder, like=like, shardings=sharding.base_shardings(like, setting.mesh)
  )
  checkpoint.check_meta({'tokenizer': setting.tokenizer.digest}, meta)
  return Base(model, params, meta['digest'])


def peft_options(setting: Setting) -> dict:
  """The arguments of adapters.init that config.peft holds, but for the method's name."""
  options = setting.config.peft.to_dict()
  options.pop('name')
  return options


def new_adapter(
  setting: Setting, base: Base, key: jax.Array, *, head: bool = False, reads: Sequence[str] = ()
) -> Tree:
  """A fresh adapter of the config's method over the base, on the mesh."""
  adapter = adapters.init(
    key, base.params, setting.config.peft.name, head=head, reads=reads,
    **peft_options(setting),
  )
  return place_adapter(adapter, base.params, setting)


def place_adapter(adapter: Tree, params: Tree, setting: Setting) -> Tree:
  """Low-rank adapters replicated, full copies sharded like their base."""
  return sharding.place(adapter, sharding.state_shardings(adapter, params, setting.mesh))


def first_state(
  setting: Setting, base: Tree, learning: Tree, tx: optax.GradientTransformation
) -> tuple[steps.TrainState, Tree]:
  """(the state before the first step, on the mesh; its placements, which the step is to keep)."""
  state = steps.init_state(learning, tx, setting.key, adapters.split)
  places = sharding.state_shardings(state, base, setting.mesh)
  return sharding.place(state, places), places


def adapter_meta(setting: Setting, base: Base, *, head: bool) -> dict:
  """What has to agree when an adapter is loaded again."""
  return {
    'method': setting.config.peft.name,
    **peft_options(setting),
    'targets': list(setting.config.peft.targets),
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
  """Writes <workdir>/adapter: the adapter alone, with what it was trained on."""
  meta = adapter_meta(setting, base, head=head)
  meta |= {'commit': provenance.commit(), 'parameters': adapters.count(adapter)}
  tree = flax.serialization.to_state_dict(adapter)
  checkpoint.save_tree(os.path.join(setting.workdir, 'adapter'), tree, meta)


def load_adapter(setting: Setting, folder: str, base: Base) -> tuple[Tree, dict]:
  """(adapter on the mesh, its meta) of a stage's folder; the method is the one it was saved with.

  Raises:
    MismatchError: it was trained over another base or with another tokenizer.
  """
  path = os.path.join(folder, 'adapter')
  tree, meta = checkpoint.load_tree(path)
  expected = {'base_digest': base.digest, 'tokenizer': setting.tokenizer.digest}
  checkpoint.check_meta(expected, meta)
  options = {k: v for k, v in meta.items() if k in peft_options(setting)}
  reads = lm.head_reads(tree.get('head', {}))
  make = lambda: adapters.init(
    jax.random.key(0), base.params, meta['method'], head=meta['head'], reads=reads, **options,
  )
  adapter = flax.serialization.from_state_dict(jax.eval_shape(make), tree)
  return place_adapter(adapter, base.params, setting), meta


def load_anchor(setting: Setting) -> Base:
  """The anchor: the base with the SFT adapter merged in float32. The other roles lie over it."""
  base = load_base(setting)
  adapter, _ = load_adapter(setting, setting.input('anchor'), base)
  params = adapters.merge(base.params, adapter)
  params = sharding.place(params, sharding.base_shardings(params, setting.mesh))
  return Base(base.model, params, trees.digest(params))
