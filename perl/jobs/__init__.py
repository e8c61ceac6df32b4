"""The stages of a pipeline, a file each: ``run(config, workdir) -> metrics``.

`STAGES` says what each stage is: config, programs, reports and summaries know them from here alone.
A new stage is a file of this folder and its row. Nothing here imports jax.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Training(NamedTuple):
  """The defaults of a stage that has steps and an optimizer (perl/config/schema.py explains them).

  `source` is where the learning rate is from. `adapter` says whose adapter is learnt; '' is full
  tuning of the base.
  """

  steps: int
  batch_size: int
  learning_rate: float
  source: str = 'ours'
  adapter: str = ''


class Stage(NamedTuple):
  """What a stage is.

  Attributes:
    key: what its PRNG key is folded with; its own for ever, so that old runs can be repeated.
    title: its name in reports.
    reads: its inputs (inputs.<name> of the config).
    sections: the sections of the config that it reads itself; another value there makes a finished
      stage stale (but of the fields in FREE).
    also: single fields of other sections that its result depends on.
    makes: the input of other stages that it makes, if it makes one.
    usual: whether it is one of the paper's pipeline, which is what a config has by default.
    ruled: whether it needs no reward model where rules alone reward (rl.reward_weight=0).
    training: for a stage that has steps and an optimizer.
    curves: metrics that a report shows at once, in this order; the others are folded away.
    over: what a line of its metrics is of, and its curves are drawn over.
    fields: its own fields of the config, each by the arguments of perl.config.fields.Field; a stage
      with many has a file perl/config/<stage>_fields.py in their place.
  """

  key: int
  title: str
  reads: tuple[str, ...] = ()
  sections: tuple[str, ...] = ()
  also: tuple[str, ...] = ()
  makes: str = ''
  usual: bool = True
  ruled: bool = False
  training: Training | None = None
  curves: tuple[str, ...] = ('loss',)
  over: str = 'step'
  fields: Mapping[str, Mapping[str, Any]] = {}


_PACKED = dict(
  default=False, meaning='Examples lie one after another in rows of the longest length, and none '
  'sees another: no padding. batch_size then counts such rows.')

STAGES = {
  'tokenizer': Stage(
    key=0, title='Tokenizer', makes='tokenizer', sections=('tokenizer', 'data'),
    fields={
      'path': dict(
        default='', unit='path', meaning='A tokenizer to use (tokenizer.json, *.model or folder); '
        '\'\' trains a byte-level BPE on the train split.'),
      'vocab_size': dict(
        default=1024, unit='tokens', low=260,
        meaning='Entries of the trained BPE, special tokens among them.'),
      'lowercase': dict(
        default=False, meaning='The trained BPE drops the case of all text: a small model then '
        'spends nothing on it.'),
      'foreign': dict(
        default=False, meaning='Beside model.checkpoint: take a tokenizer (tokenizer.path, '
        'inputs.tokenizer) whose ids mean other tokens than the checkpoint\'s; else it is '
        'refused.'),
      'split_digits': dict(
        default=False, source='Touvron et al. 2023', meaning='The trained BPE has a token for each '
        'digit and none for several: a small model then learns to calculate sooner.'),
    }),
  'pretrain': Stage(
    key=1, title='Pretraining', reads=('tokenizer',), makes='base',
    sections=('seed', 'model', 'data', 'pretrain'),
    training=Training(steps=1000, batch_size=32, learning_rate=1e-3),
    curves=('loss', 'grad_norm'), fields={'packed': _PACKED}),
  'sft': Stage(
    key=2, title='Supervised fine-tuning', reads=('tokenizer', 'base'), makes='anchor',
    sections=('seed', 'model', 'data', 'peft', 'sft'), also=('evaluate.max_examples',),
    training=Training(steps=1000, batch_size=128, learning_rate=1e-4, adapter='the adapter'),
    curves=('loss', 'gold_reward', 'exact_match', 'grad_norm'),
    fields={
      'packed': _PACKED,
      'test': dict(
        default=False, meaning='Measure the result on the test split too: the loss, and the '
        'likeliest responses against the agents\' own turns.'),
      'whole_chats': dict(
        default=False, meaning='Each chat is one example, in which all turns of the assistant are '
        'learnt (needs a chat template); else each turn is one, after what came before it.'),
      'patience': dict(
        default=0, unit='evaluations', low=0, meaning='Evaluations in a row without a lower loss '
        'on dev, after which the stage ends; 0 is never.'),
    }),
  'reward': Stage(
    key=3, title='Reward model', reads=('tokenizer', 'base', 'anchor'), makes='reward',
    sections=('seed', 'model', 'data', 'peft', 'reward'), also=('evaluate.max_examples',),
    training=Training(steps=5000, batch_size=128, learning_rate=1e-4, source='PERL A.3',
                      adapter='the reward model'),
    curves=('loss', 'auc', 'pair_accuracy', 'accuracy', 'balanced_accuracy')),
  'preference': Stage(
    key=7, title='Preference optimisation', reads=('tokenizer', 'base', 'anchor'), usual=False,
    sections=('seed', 'model', 'data', 'peft', 'preference'), also=('evaluate.max_examples',),
    training=Training(steps=1000, batch_size=64, learning_rate=5e-5, adapter='the policy'),
    curves=('loss', 'accuracy', 'margin', 'chosen_logprob', 'rejected_logprob',
            'chosen_log_ratio')),
  'rl': Stage(
    key=4, title='Reinforcement learning', reads=('tokenizer', 'base', 'anchor', 'reward'),
    makes='policy', ruled=True, sections=('seed', 'model', 'data', 'peft', 'rl'),
    also=('evaluate.max_examples',),
    training=Training(steps=1000, batch_size=128, learning_rate=1e-5, source='PERL A.3',
                      adapter='the policy'),
    curves=('reward', 'gold_reward', 'kl', 'response_tokens', 'entropy', 'repetition',
            'uncertainty')),
  'evaluate': Stage(
    key=5, title='Evaluation', reads=('tokenizer', 'base', 'anchor', 'reward', 'policy'),
    ruled=True, sections=('seed', 'model', 'data', 'peft', 'reward', 'rl', 'evaluate'),
    fields={
      'batch_size': dict(default=32, unit='examples', low=1, meaning='Examples a forward pass.'),
      'max_examples': dict(
        default=0, unit='examples', low=0,
        meaning='Examples used of a split, spread evenly over it; 0 is all.'),
      'samples': dict(default=16, unit='examples', low=0,
                      meaning='Sampled responses kept as text, before and after.'),
      'bootstrap': dict(default=1000, unit='replicates', low=1,
                        meaning='Group-bootstrap replicates of an interval.'),
    }),
  'best_of_n': Stage(
    key=6, title='Best of n', reads=('tokenizer', 'base', 'anchor', 'reward'), usual=False,
    sections=('seed', 'model', 'data', 'rl', 'evaluate', 'best_of_n'),
    curves=('reward', 'gold_reward', 'kl'), over='responses to a prompt',
    fields={
      'samples': dict(
        default=64, unit='responses', source='Gao et al. 2022', low=2,
        meaning='Responses to each dev prompt; best-of-n is measured for n up to as many.'),
      'sampled': dict(
        default='', unit='path', meaning='Folder of a finished best_of_n stage whose responses are '
        'judged, whatever model they are of; \'\' samples the anchor.'),
    }),
}
"""Name -> Stage: all there are, in the order in which each needs those before it."""

PERL = tuple(name for name, stage in STAGES.items() if stage.usual)
"""The paper's pipeline; preference optimisation does without reward model and RL."""

TRAINED = tuple(name for name, stage in STAGES.items() if stage.training)
"""The stages that have steps and an optimizer."""

ADAPTED = tuple(name for name in TRAINED if STAGES[name].training.adapter)
"""Those of them that learn an adapter."""

PRODUCER = {stage.makes: name for name, stage in STAGES.items() if stage.makes}
"""Input (inputs.<name>) -> the stage that makes it."""

ADAPTERS = tuple(STAGES[name].makes for name in ADAPTED if STAGES[name].makes)
"""Inputs that may also be a folder in PEFT's format."""

PUBLISHED = ('tokenizer', 'base')
"""Inputs that a published checkpoint brings, if no stage makes them."""

FREE = frozenset({
  'name', 'stages', 'model.remat', 'model.scan_unroll', 'data.mirror', 'data.date', 'data.data_dir',
  'data.overlap',
  'mesh.data', 'mesh.fsdp', 'mesh.tensor', 'mesh.optimizer_memory', 'evaluate.batch_size',
  *(f'{stage}.{name}' for stage in TRAINED for name in ('log_every_steps', 'keep_last'))})
"""Fields that change no result: with others a finished stage stays valid, and a killed one goes on.
Where data lie is no part of a run; what is read there is (_reading.py)."""
