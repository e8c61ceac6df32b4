"""Every field of an experiment, once: default, meaning, unit, source and bounds.

`perl-rlhf launch --config=base --help_fields` prints them. The defaults are the
paper's (PERL, arXiv 2403.10704 v2) where it gives one; an experiment file changes what it needs.
Another source is named in short: Lee = arXiv 2309.00267, Dettmers = arXiv 2305.14314 (QLoRA), those
of methods, algorithms, preferences and reward models in the files of that name, which hold their
fields.
"""

from typing import Any

from ml_collections import ConfigDict

from perl.config import peft_fields, rl_fields
from perl.config import preference_fields as preferences
from perl.config import reward_fields as rewards
from perl.config.fields import ConfigError, Field, default, nest

STAGES = ('tokenizer', 'pretrain', 'sft', 'reward', 'preference', 'rl', 'evaluate')
"""Every stage that a pipeline may have, in the order in which each needs those before it."""

PERL = tuple(stage for stage in STAGES if stage != 'preference')
"""The paper's pipeline; preference optimisation does without reward model and RL."""

TRAINED = ('pretrain', 'sft', 'reward', 'preference', 'rl')
"""The stages that have steps and an optimizer."""


def _optimizer(stage: str, learning_rate: float, source: str) -> dict[str, Field]:
  prefix = f'{stage}.optim'
  return {
    f'{prefix}.name': Field('adamw', 'Optimizer; the paper names none, Lee uses Adafactor.',
                            source='ours', choices=('adamw', 'adafactor', 'sgd')),
    f'{prefix}.learning_rate': Field(learning_rate, 'Peak learning rate.', 'per step', source,
                                     low=0.0),
    f'{prefix}.schedule': Field('constant', 'Learning rate after the warm-up: as it is, or down to '
                                '0 at the last step.', choices=('constant', 'cosine', 'linear')),
    f'{prefix}.warmup_steps': Field(0, 'Steps of linear rise of the learning rate from 0.', 'steps',
                                    low=0),
    f'{prefix}.weight_decay': Field(0.0, 'Decoupled weight decay.', 'per step', low=0.0),
    f'{prefix}.b1': Field(0.9, 'Decay of the mean of gradients.', source='AdamW', low=0.0,
                          high=1.0),
    f'{prefix}.b2': Field(0.999, 'Decay of the mean of squared gradients.', source='AdamW', low=0.0,
                          high=1.0),
    f'{prefix}.eps': Field(None if stage == 'rl' else 1e-8, 'Added to the root of the mean square; '
                           'None is the algorithm\'s own.', source='AdamW', low=0.0,
                           kind=float if stage == 'rl' else None),
    f'{prefix}.clip_norm': Field(1.0, 'Largest global norm of the gradient; 0 clips nothing.',
                                 low=0.0),
  }


def _training(
  stage: str, *, steps: int, batch_size: int, learning_rate: float, source: str
) -> dict[str, Field]:
  """The fields that every trained stage has."""
  return {
    f'{stage}.steps': Field(steps, 'Updates of the parameters.', 'steps', source, low=1),
    f'{stage}.batch_size': Field(batch_size, 'Examples an update, over all devices (pairs or '
                                 'rankings for what learns from them, episodes for rl).',
                                 'examples', source, low=1),
    f'{stage}.microbatches': Field(1, 'Parts in which a batch passes through memory; divides '
                                   'batch_size and changes no result.', low=1),
    f'{stage}.evaluate_every_steps': Field(100, 'Evaluation on the dev split; 0 only at the end.',
                                           'steps', low=0),
    f'{stage}.checkpoint_every_steps': Field(100, 'Saving of what a resumed run needs; 0 only at '
                                             'the end.', 'steps', low=0),
    f'{stage}.log_every_steps': Field(10, 'A line of metrics.jsonl and TensorBoard.', 'steps',
                                      low=1, identity=False),
    f'{stage}.keep_last': Field(2, 'Checkpoints kept, beside the best one.', 'checkpoints', low=1,
                                identity=False),
    **_optimizer(stage, learning_rate, source),
  }


def _adapting(stage: str, whose: str, **training: Any) -> dict[str, Field]:
  """The fields of a trained stage whose result is an adapter."""
  return {
    **_training(stage, **training),
    f'{stage}.adapter': Field('', f'LoRA in PEFT\'s format that {whose} starts from, in place of a '
                              'fresh one: its ranks and modules count, not those of `peft`.',
                              'path'),
  }


_PACKED = Field(False, 'Examples lie one after another in rows of the longest length, and none '
                'sees another: no padding. batch_size then counts such rows.')

FIELDS: dict[str, Field] = {
  'seed': Field(0, 'Seed of every initialisation, shuffle, dropout and sample.', low=0),
  'name': Field('base', 'Name of the experiment in reports and tables.', identity=False),
  'stages': Field(PERL, 'Stages of the pipeline, in order.', identity=False),

  'model.size': Field('tiny', 'Shape of the transformer: a name of perl/models/config.py; without '
                      'effect where model.checkpoint is set.'),
  'model.checkpoint': Field('', 'Checkpoint that base and tokenizer come from: a Hugging Face '
                            'folder (config.json, safetensors), an imported one, or Gemma\'s Orbax '
                            'tree. The stages tokenizer and pretrain then fall away, unless '
                            '`stages` names them: pretrain goes on from it.', 'path'),
  'model.dtype': Field('float32', 'Precision of the computation (softmax, norms and log-probs are '
                       'float32 always).', choices=('float32', 'bfloat16', 'float16')),
  'model.param_dtype': Field('float32', 'Precision of the stored base (adapters are float32).',
                             choices=('float32', 'bfloat16', 'float16')),
  'model.quantize': Field('', 'Precision of the frozen layers\' matrices, quantized as they are '
                          'read; \'\' keeps param_dtype, full tuning needs it. Adapters over them '
                          'fit no other precision.', source='Dettmers',
                          choices=('', 'nf4', 'fp4', 'int8', 'int4')),
  'model.quantize_block': Field(64, 'Inputs of a column that share a scale (or the largest divisor '
                                'of the width below it).', 'weights', 'Dettmers', low=2),
  'model.double_quantize': Field(False, 'Quantize the scales too, to 8 bits in blocks of 256: 4.13 '
                                 'in place of 4.5 bits a weight.', source='Dettmers'),
  'model.remat': Field('none', 'What the backward pass of a layer finds: all of it (none), or '
                       'less, for the rest is computed again: its matrix products and attention '
                       '(products: little time, about half the memory), these without the MLP\'s '
                       '(attention), its input alone (layer).',
                       choices=('none', 'products', 'attention', 'layer'), identity=False),
  'model.scan_unroll': Field(0, 'Layers unrolled in an iteration of the scan over layers; 0 is the '
                             'platform\'s default.', 'layers', low=0, identity=False),

  'tokenizer.path': Field('', 'A tokenizer to use (tokenizer.json, *.model or folder); \'\' trains '
                          'a byte-level BPE on the train split.', 'path'),
  'tokenizer.vocab_size': Field(1024, 'Entries of the trained BPE, special tokens among them.',
                                'tokens', low=260),
  'tokenizer.lowercase': Field(False, 'The trained BPE drops the case of all text: a small model '
                               'then spends nothing on it.'),
  'tokenizer.split_digits': Field(False, 'The trained BPE has a token for each digit and none for '
                                  'several: a small model then learns to calculate sooner.',
                                  source='Touvron et al. 2023'),

  'data.name': Field('toy', 'Dataset: a file of perl/data.', package='perl.data.sets'),
  'data.also': Field((), 'Other datasets whose documents the tokenizer and pretraining read too: '
                     'files of perl/data.', package='perl.data.sets'),
  'data.parts': Field((), 'Parts of the dataset that are read (hh_rlhf: its subsets; shp: its '
                      'subreddits; arithmetic: digits of its numbers); () is all.'),
  'data.mirror': Field('', 'Folder laid out as the dataset\'s public home; \'\' downloads.', 'path',
                       identity=False),
  'data.data_dir': Field('', 'Folder of local files (local) or of prepared data; \'\' is the '
                         'loader\'s default.', 'path'),
  'data.seed': Field(0, 'Seed of generated data (toy, arithmetic), apart from `seed` so that runs '
                     'over seeds share their data.', low=0),
  'data.folds': Field(0, 'Folds of a grouped cross-validation over labelled examples, in place of '
                      'the fixed split; 0 keeps that.', 'folds', low=0),
  'data.fold': Field(0, 'The fold that is the test split, from 0, where data.folds is set.', low=0),
  'data.max_prompt_tokens': Field(256, 'Longest prompt, its BOS included.', 'tokens', low=2),
  'data.max_response_tokens': Field(128, 'Longest response, its EOS included.', 'tokens', low=1),
  'data.chat_template': Field(True, 'Dialogues are written with the tokenizer\'s chat template, '
                              'where it has one; else with our markers.'),
  'data.overlong': Field('truncate', 'Longer examples: dropped and counted, or cut (a prompt keeps '
                         'its end).', choices=('filter', 'truncate')),
  'data.buckets': Field((), 'Padded lengths, rising; a batch is of one bucket. () is one length.',
                        'tokens'),
  'data.auto_buckets': Field(0, 'At most so many padded lengths, chosen so that a stage\'s rows '
                             'have the least padding, in place of data.buckets; 0 keeps these.',
                             'buckets', low=0),

  **peft_fields.FIELDS,

  'mesh.data': Field(-1, 'Devices over which the batch is split; -1 is all that are left.',
                     'devices', low=-1, identity=False),
  'mesh.fsdp': Field(1, 'Devices over which the base and the batch are split.', 'devices', low=-1,
                     identity=False),
  'mesh.tensor': Field(1, 'Devices over which each matrix of the base is split.', 'devices', low=-1,
                       identity=False),

  'mesh.optimizer_memory': Field('device', 'Where the optimizer\'s state lies between updates: '
                                 'pinned_host pages it to the host\'s memory.', source='Dettmers',
                                 choices=('device', 'pinned_host'), identity=False),

  'inputs.tokenizer': Field('', 'Folder of a finished tokenizer stage; \'\' is the sibling folder.',
                            'path'),
  'inputs.base': Field('', 'Folder of a finished pretrain stage; \'\' is the sibling.', 'path'),
  'inputs.anchor': Field('', 'Folder of a finished sft stage, or of a LoRA in PEFT\'s format, '
                         'whose merged result is the anchor; \'\' is the sibling, \'base\' the '
                         'base itself (an instruct model).', 'path'),
  'inputs.reward': Field('', 'Folder of a finished reward stage, or of a reward model in PEFT\'s '
                         'format where the anchor is the base; \'\' is the sibling.', 'path'),
  'inputs.policy': Field('', 'Folder of a finished rl or preference stage, or of a LoRA in PEFT\'s '
                         'format where the anchor is the base; \'\' is the sibling of rl.', 'path'),

  **_training('pretrain', steps=1000, batch_size=32, learning_rate=1e-3, source='ours'),
  'pretrain.packed': _PACKED,
  **_adapting('sft', 'the adapter', steps=1000, batch_size=128, learning_rate=1e-4, source='ours'),
  'sft.packed': _PACKED,
  'sft.test': Field(False, 'Measure the result on the test split too: the loss, and the likeliest '
                    'responses against the agents\' own turns.'),
  'sft.whole_chats': Field(False, 'Each chat is one example, in which all turns of the assistant '
                           'are learnt (needs a chat template); else each turn is one, after what '
                           'came before it.'),

  **_adapting('reward', 'the reward model', steps=5000, batch_size=128, learning_rate=1e-4,
              source='PERL A.3'),
  **rewards.FIELDS,

  **_adapting('preference', 'the policy', steps=1000, batch_size=64, learning_rate=5e-5,
              source='ours'),
  **preferences.FIELDS,

  **_adapting('rl', 'the policy', steps=1000, batch_size=128, learning_rate=1e-5,
              source='PERL A.3'),
  **rl_fields.FIELDS,
  'rl.reward_weight': Field(1.0, 'Weight of the reward model\'s score in the reward; 0 needs no '
                            'reward model.', low=0.0),
  'rl.ensemble': Field('mean', 'How the scores of an ensemble (reward.members) make one: their '
                       'mean, the least of them, or the mean less rl.ensemble_penalty times their '
                       'variance.', source='Coste et al. 2023',
                       choices=('mean', 'minimum', 'uncertainty')),
  'rl.ensemble_penalty': Field(0.0, 'lambda, weight of the variance over members in '
                               'rl.ensemble=uncertainty.', source='Coste et al. 2023', low=0.0),
  'rl.rules': Field((), 'Rules that score responses too: files of perl/rl/rules, or '
                    '\'module:function\' of your own.'),
  'rl.rule_weights': Field((), 'Weight of each rule in the reward; () is 1 each.'),
  'rl.layout': Field('shared', 'One base for all roles, or a copy of it for each, as is the '
                     'custom: the baseline of tables of memory.', choices=('shared', 'separate')),
  'rl.forwards': Field('auto', 'Reference and reward model read the responses in a pass each, or '
                       'in one as stacked adapters; auto is the faster where that was measured.',
                       choices=('auto', 'separate', 'stacked')),
  'rl.decode': Field('auto', 'Sampling reads base and adapter, or a copy of the base with the '
                     'adapter merged in, made anew for each rollout and never trained on; auto '
                     'merges where weights are copied anyway (small ones, on CPU, in float32).',
                     choices=('auto', 'adapter', 'merged')),
  'rl.cache': Field('model', 'How sampling stores keys and values: as the model computes, or '
                    'narrower.', choices=('model', 'float32', 'bfloat16', 'int8')),
  'rl.rollout': Field('auto', 'A batch of prompts decodes together until its last response ends, '
                      'or in slots: one that ends makes room for the next prompt. auto takes slots '
                      'where prompts outnumber them and lengths of responses vary.',
                      choices=('auto', 'batch', 'slots')),
  'rl.slots': Field(0, 'Rows that decode at a time in an update; 0 is the whole batch.',
                    'responses', low=0),
  'rl.temperature': Field(0.7, 'Temperature of sampling and of every log-prob.', source='PERL A.3',
                          low=1e-3),
  'rl.top_k': Field(0, 'Sample from the k likeliest; 0 is off, and training demands it.', 'tokens',
                    low=0),
  'rl.top_p': Field(1.0, 'Sample from the likeliest of this mass; 1 is off, and training demands '
                    'it.', 'probability', low=0.0, high=1.0),
  'rl.max_new_tokens': Field(64, 'Longest sampled response, its EOS included.', 'tokens', low=1),
  'rl.value_learning_rate': Field(1e-4, 'Peak learning rate of the value model.', 'per step',
                                  low=0.0),
  'rl.missing_eos_penalty': Field(0.0, 'Taken from the reward of a response that does not end.',
                                  'reward', low=0.0),

  'best_of_n.samples': Field(64, 'Responses to each dev prompt; best-of-n is measured for n up to '
                             'as many.', 'responses', 'Gao et al. 2022', low=2),
  'best_of_n.sampled': Field('', 'Folder of a finished best_of_n stage whose responses are judged, '
                             'whatever model they are of; \'\' samples the anchor.', 'path'),

  'evaluate.batch_size': Field(32, 'Examples a forward pass.', 'examples', low=1, identity=False),
  'evaluate.max_examples': Field(0, 'Examples used of a split, spread evenly over it; 0 is all.',
                                 'examples', low=0),
  'evaluate.samples': Field(16, 'Sampled responses kept as text, before and after.', 'examples',
                            low=0),
  'evaluate.bootstrap': Field(1000, 'Group-bootstrap replicates of an interval.', 'replicates',
                              low=1),
}
"""Path -> Field; the only list of fields there is."""


def get_config() -> ConfigDict:
  """Every field at its default, locked: a name that is not in FIELDS cannot be set."""
  return ConfigDict(nest({path: default(field) for path, field in FIELDS.items()})).lock()


def use_method(
  config: ConfigDict, peft: str, *, sft: float, reward: float, rl: float, value: float,
  preference: float | None = None,
) -> None:
  """Sets the PEFT method with its learning rates, which differ by method (PERL A.3: x10 to x20).

  Args:
    config: changed in place.
    peft: peft.name; 'full' trains every projection.
    sft, reward, rl, value: peak learning rate of that stage; value is the critic's.
    preference: that of the stage preference; None takes rl's.

  Raises:
    ConfigError: a learning rate is not positive.
  """
  preference = rl if preference is None else preference
  rates = {'sft': sft, 'reward': reward, 'preference': preference, 'rl': rl}
  for stage, rate in {**rates, 'value': value}.items():
    if rate <= 0:
      raise ConfigError(f'expected a positive learning rate for {stage}, found {rate}; raise it')
  config.peft.name = peft
  for stage, rate in rates.items():
    config[stage].optim.learning_rate = rate
  config.rl.value_learning_rate = value
