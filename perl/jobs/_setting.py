"""What every job stands in: its config, folders, mesh, tokenizer, dataset; and how it ends."""

import dataclasses
import functools
import itertools
import json
import logging
import os
import time
from types import ModuleType
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from perl import choices
from perl.data.batches import encoding, pipeline
from perl.data.examples import Example
from perl.data.text import chat
from perl.data.text import tokenizer as tokenizers
from perl.hub import adapters as peft_format
from perl.hub import pretrained
from perl.jobs import _decisions as decisions
from perl.jobs import _folds as folds
from perl.models import config as model_config
from perl.models.transformer import Transformer
from perl.peft import adapters
from perl.quantized import Scheme
from perl.train import metrics, optim, population, provenance, sharding
from perl.types import Batch

_PRODUCER = {
  'tokenizer': 'tokenizer', 'base': 'pretrain', 'anchor': 'sft', 'reward': 'reward', 'policy': 'rl'
}

ADAPTERS = ('anchor', 'reward', 'policy')
"""Inputs that may also be a folder in PEFT's format."""


@dataclasses.dataclass(frozen=True)
class Setting:
  """One job's surroundings. Below it a ConfigDict is never seen, but for the sections it hands out.

  Attributes:
    config: the experiment; what its algorithm is to decide is decided (perl/rl/algorithms).
    workdir: the stage's own folder.
    stage: its name, which is also that of its section of the config.
  """

  config: ConfigDict
  workdir: str
  stage: str
  started: float = dataclasses.field(default_factory=time.perf_counter)

  def __post_init__(self):
    object.__setattr__(self, 'config', decisions.decided(self.config))

  @functools.cached_property
  def mesh(self) -> Mesh:
    """The mesh that config.mesh asks for."""
    return sharding.mesh(**{axis: self.config.mesh[axis] for axis in sharding.AXES})

  @property
  def scheme(self) -> Scheme | None:
    """How config.model quantizes the frozen base; None where it does not."""
    c = self.config.model
    return Scheme(c.quantize, c.quantize_block, c.double_quantize) if c.quantize else None

  @property
  def key(self) -> jax.Array:
    """The run's PRNG key, by stage; made anew each time, for a state that holds it is donated."""
    stages = ('tokenizer', 'pretrain', 'sft', 'reward', 'rl', 'evaluate', 'best_of_n', 'preference')
    return jax.random.fold_in(jax.random.key(self.config.seed), stages.index(self.stage))

  @property
  def tokenizer(self) -> tokenizers.Tokenizer:
    """The tokenizer stage's result, or the checkpoint's; it stops where its chat template does.

    Raises:
      FileNotFoundError: neither is there.
    """
    return self._chat[1]

  @property
  def template(self) -> chat.Template | None:
    """What writes dialogues: the tokenizer's chat template, or None for our markers."""
    return self._chat[0]

  @functools.cached_property
  def _chat(self) -> tuple[chat.Template | None, tokenizers.Tokenizer]:
    found = self._vocabulary()
    uses = self.config.data.chat_template and found.chat_template is not None
    return chat.of(found) if uses else (None, found)

  def _vocabulary(self) -> tokenizers.Tokenizer:
    """The tokenizer as it was read."""
    if not self.from_checkpoint('tokenizer'):
      return tokenizers.load(self.input('tokenizer'))
    if self.config.tokenizer.path:
      return tokenizers.load(self.config.tokenizer.path)
    found = pretrained.load_tokenizer(self.config.model.checkpoint)
    if found is None:
      raise FileNotFoundError(
        f'expected a tokenizer in {self.config.model.checkpoint}, found none; set '
        '--config.tokenizer.path=<tokenizer.json, *.model or folder>'
      )
    return found

  def from_checkpoint(self, name: str) -> bool:
    """Whether 'tokenizer' or 'base' is config.model.checkpoint's: no stage makes it."""
    made = self.config.inputs[name] or _PRODUCER[name] in self.config.stages
    return bool(self.config.model.checkpoint) and not made

  @functools.cached_property
  def dataset(self) -> ModuleType:
    """The dataset's module: perl/data/sets/<config.data.name>.py."""
    return choices.find('perl.data.sets', self.config.data.name)

  def input(self, name: str) -> str:
    """The folder of an upstream stage: as the config says, or the sibling of this one.

    Raises:
      FileNotFoundError: it is not there, or is not finished.
    """
    folder = self.config.inputs[name] or os.path.join(
      os.path.dirname(os.path.abspath(self.workdir)), _PRODUCER[name]
    )
    made = ('summary.json', *((peft_format.CONFIG,) if name in ADAPTERS else ()))
    if not any(os.path.exists(os.path.join(folder, file)) for file in made):
      raise FileNotFoundError(
        f'expected a finished {_PRODUCER[name]} stage in {folder}, found none; run '
        f'--job={_PRODUCER[name]} first, or set --config.inputs.{name}=<its folder>'
      )
    return folder

  def model(self, vocab_size: int) -> Transformer:
    """The transformer that config.model describes: its checkpoint's, or of its size."""
    c = self.config.model
    run = dict(dtype=c.dtype, param_dtype=c.param_dtype, remat=c.remat)
    if c.checkpoint:
      made = pretrained.read_config(c.checkpoint, **run)
    else:
      made = model_config.sized(c.size, vocab_size=vocab_size, **run)
    if vocab_size > made.vocab_size:
      raise ValueError(
        f'expected a tokenizer of at most {made.vocab_size} tokens for this model, found '
        f'{vocab_size}; use the one that was published with it'
      )
    return Transformer(model_config.replace(made, scan_unroll=c.scan_unroll))

  def examples(self, split: str, kind: str) -> list[Example]:
    """Those of the dataset, of the fixed split or of config.data.fold.

    Documents, which a base is pretrained on, come from the datasets of config.data.also too.
    """
    if self.config.data.folds:
      found = folds.examples(self._load, split, kind, self._assigned)
    else:
      found = self._load(split, kind)
    also = self.config.data.also if kind == 'document' else ()
    return [*found, *itertools.chain.from_iterable(self._load(split, kind, n) for n in also)]

  def _load(self, split: str, kind: str, name: str = '') -> list[Example]:
    c = self.config.data
    dataset = choices.find('perl.data.sets', name) if name else self.dataset
    parts = {'parts': tuple(c.parts)} if c.parts and not name else {}
    return dataset.load(split, kind, mirror=c.mirror, data_dir=c.data_dir, seed=c.seed, **parts)

  @functools.cached_property
  def _assigned(self) -> dict[str, str]:
    """{group: split} of the fold."""
    c = self.config.data
    return folds.splits(folds.everything(self._load, 'labelled'), c.folds, c.fold)

  def rows(self, examples: list[Example], kind: str) -> list[dict]:
    """The examples as token rows; what was cut or left out is counted in the log."""
    c = self.config.data
    if self.template is not None:
      examples = [chat.apply(self.template, example) for example in examples]
    rows, counts = pipeline.encode(
      examples, self.tokenizer, kind=kind, max_prompt_tokens=c.max_prompt_tokens,
      max_response_tokens=c.max_response_tokens, overlong=c.overlong,
      responses=self.config.reward.responses,
    )
    logging.info('%s: %s examples: %s', self.stage, kind, counts)
    return rows

  def demonstrations(self, split: str) -> list[dict]:
    """What sft learns of a split: a row a turn of the agent or, with sft.whole_chats, a chat."""
    if not self.config.sft.whole_chats:
      return self.rows(self.examples(split, 'demonstration'), 'demonstration')
    if self.template is None:
      raise ValueError(
        'expected a tokenizer with a chat template for sft.whole_chats, found none (or '
        'data.chat_template=false); set sft.whole_chats=false'
      )
    c = self.config.data
    rows, counts = encoding.encode_chats(
      self.examples(split, 'document'), self.tokenizer, self.template,
      max_tokens=c.max_prompt_tokens + c.max_response_tokens, overlong=c.overlong)
    logging.info('%s: whole chats: %s', self.stage, counts)
    return rows

  def stream(self, rows: list[dict], kind: str, batch_size: int = 0) -> pipeline.Batches:
    """The stage's endless training batches, of as many rows as an update reads or `batch_size`."""
    section = self.config[self.stage]
    return pipeline.batches(
      rows, kind=kind, batch_size=batch_size or section.batch_size,
      seed=self.config.seed, buckets=self.buckets(rows, kind), shard_index=jax.process_index(),
      shard_count=jax.process_count(), pad_id=self.tokenizer.pad_id,
      packed=section.get('packed', False), shared_prompt=section.get('share_prompt', False),
    )

  def evaluation_batches(self, rows: list[dict], kind: str, **layout: bool) -> list[Batch]:
    """All rows once, in batches of config.evaluate.batch_size; layout as pipeline's."""
    return pipeline.evaluation_batches(
      rows, kind=kind, batch_size=self.config.evaluate.batch_size,
      buckets=self.buckets(rows, kind), pad_id=self.tokenizer.pad_id, **layout,
    )

  def buckets(self, rows: list[dict], kind: str) -> tuple[int, ...]:
    """The config's lengths, with one that holds the longest row that there can be; or the rows'."""
    c = self.config.data
    longest = c.max_prompt_tokens + (0 if kind == 'prompt' else c.max_response_tokens)
    if c.auto_buckets:
      found = pipeline.auto_buckets(pipeline.lengths(rows, kind), count=c.auto_buckets)
      return tuple(sorted({min(edge, longest) for edge in found}))
    return tuple(b for b in c.buckets if b < longest) + (longest,)

  def place(self, batch: Batch) -> Batch:
    """The batch on the mesh."""
    return sharding.place_batch(batch, self.mesh)

  def optimizer(self, **overrides: Any) -> optax.GradientTransformation:
    """The stage's optax chain."""
    section = self.config[self.stage]
    given = {**section.optim.to_dict(), **overrides}
    given['schedule_name'] = given.pop('schedule')
    given['warmup_steps'] *= self.updates  # a schedule runs over batches, whatever is made of them
    tx = optim.make(steps=section.steps * self.updates, **given)
    if self.stage == 'pretrain':  # full tuning, whatever config.peft says
      return tx
    tx = adapters.optimizer(
      self.config.peft.name, tx, steps=section.steps * self.updates, **self.peft_options())
    members = section.get('members', 1)
    return population.optimizer(tx, members) if members > 1 else tx

  @property
  def updates(self) -> int:
    """Updates of the parameters that a step makes."""
    section = self.config[self.stage]
    return section.get('epochs', 1) * section.get('minibatches', 1)

  def peft_options(self) -> dict[str, Any]:
    """What config.peft holds beside the method's name: the arguments of adapters.init."""
    options = self.config.peft.to_dict()
    options.pop('name')
    return options

  def loop_options(self) -> dict:
    """The arguments of train.loop.fit that are the stage's own fields."""
    section = self.config[self.stage]
    rate = optim.schedule(
      section.optim.schedule, section.optim.learning_rate, steps=section.steps,
      warmup_steps=section.optim.warmup_steps,
    )
    # All of them before the first step: nothing may be compiled after it.
    rates = np.broadcast_to(rate(np.arange(section.steps)), section.steps).tolist()
    names = (
      'steps', 'evaluate_every_steps', 'checkpoint_every_steps', 'log_every_steps', 'keep_last'
    )
    return {name: section[name] for name in names} | {
      'workdir': self.workdir, 'name': self.stage, 'learning_rate': rates.__getitem__,
    }

  def finish(self, result: dict) -> dict:
    """Writes summary.json, last: its presence means that the stage is done. Returns it."""
    summary = {
      **result,
      'seed': self.config.seed,
      'peft': self.config.peft.name,
      'wall_seconds': time.perf_counter() - self.started,
      **provenance.record(),
    }
    summary.setdefault('peak_memory_bytes', provenance.peak_memory_bytes())
    metrics.summary(self.workdir, summary)
    return summary


def begin(config: ConfigDict, workdir: str, stage: str) -> Setting:
  """Makes the folder, leaves the config in it, and returns the setting."""
  os.makedirs(workdir, exist_ok=True)
  plain = json.loads(config.to_json_best_effort())
  metrics.write_json(os.path.join(workdir, 'config.json'), plain)
  return Setting(config, workdir, stage)
