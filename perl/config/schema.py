"""Every field of an experiment, once: default, meaning, unit, source and bounds.

`perl-rlhf launch --config=base --help_fields` prints them. The defaults are the
paper's (PERL, arXiv 2403.10704 v2) where it gives one; an experiment file changes what it needs.
Another source is named in short: Lee = arXiv 2309.00267, Dettmers = arXiv 2305.14314 (QLoRA). The
fields of a stage are in its row of perl/jobs/__init__.py; those of one that has many are in
<stage>_fields.py.
"""

from ml_collections import ConfigDict

from perl import choices
from perl.config import peft_fields
from perl.config.fields import ConfigError, Field, default, nest
from perl.jobs import ADAPTED, PERL, PRODUCER, STAGES, Training


def _optimizer(prefix: str, learning_rate: float, source: str) -> dict[str, Field]:
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
    f'{prefix}.eps': Field(1e-8, 'Added to the root of the mean square.', source='AdamW', low=0.0),
    f'{prefix}.clip_norm': Field(1.0, 'Largest global norm of the gradient; 0 clips nothing.',
                                 low=0.0),
  }


def _training(stage: str, training: Training) -> dict[str, Field]:
  """The fields that every trained stage has."""
  fields = {
    'steps': Field(training.steps, 'Updates of the parameters.', 'steps', training.source, low=1),
    'batch_size': Field(training.batch_size, 'Examples an update, over all devices (pairs or '
                        'rankings for what learns from them, episodes for rl).', 'examples',
                        training.source, low=1),
    'microbatches': Field(1, 'Parts in which a batch passes through memory, at least: large models '
                          'on CPU take more. Divides batch_size, changes no result.', low=1),
    'evaluate_every_steps': Field(100, 'Evaluation on the dev split; 0 only at the end.', 'steps',
                                  low=0),
    'checkpoint_every_steps': Field(100, 'Saving of what a resumed run needs; 0 only at the end.',
                                    'steps', low=0),
    'log_every_steps': Field(10, 'A line of metrics.jsonl and TensorBoard.', 'steps', low=1),
    'keep_last': Field(2, 'Checkpoints kept, beside the best one.', 'checkpoints', low=1),
    **_optimizer('optim', training.learning_rate, training.source),
  }
  if training.adapter:
    fields['adapter'] = Field(
      '', f'LoRA in PEFT\'s format that {training.adapter} starts from, in place of a fresh one: '
      'its ranks and modules count, not those of `peft`.', 'path')
  return {f'{stage}.{name}': field for name, field in fields.items()}


def of_stage(name: str) -> dict[str, Field]:
  """All fields of a stage: those of its row in perl/jobs, and of a file of its own."""
  row = STAGES[name]
  fields = _training(name, row.training) if row.training else {}
  fields |= {f'{name}.{field}': Field(**options) for field, options in row.fields.items()}
  file = f'{name}_fields'
  return fields | (
    choices.find('perl.config', file).FIELDS if file in choices.names('perl.config') else {})


FIELDS: dict[str, Field] = {
  'seed': Field(0, 'Seed of every initialisation, shuffle, dropout and sample.', low=0),
  'name': Field('base', 'Name of the experiment in reports and tables.'),
  'stages': Field(PERL, 'Stages of the pipeline, in order.'),

  'model.size': Field('tiny', 'Shape of the transformer: a name of perl/models/config.py; without '
                      'effect where model.checkpoint is set.'),
  'model.checkpoint': Field('', 'Checkpoint that base and tokenizer come from: a Hugging Face '
                            'folder (config.json, safetensors), a GGUF file, an imported one, or '
                            'Gemma\'s Orbax tree. The stages tokenizer and pretrain then fall '
                            'away; a flag that names pretrain (--config.stages, --job) goes on '
                            'from it.', 'path'),
  'model.dtype': Field('float32', 'Precision of the computation (softmax, norms and log-probs are '
                       'float32 always).', choices=('float32', 'bfloat16', 'float16')),
  'model.param_dtype': Field('float32', 'Precision of the stored base (adapters are float32).',
                             choices=('float32', 'bfloat16', 'float16')),
  'model.quantize': Field('', 'Precision of the frozen layers\' matrices, quantized as they are '
                          'read; \'\' keeps param_dtype, full tuning needs it; native takes the '
                          'blocks of a GGUF file as they lie. Adapters over them fit no other '
                          'precision.', source='Dettmers',
                          choices=('', 'nf4', 'fp4', 'int8', 'int4', 'native')),
  'model.quantize_block': Field(64, 'Inputs of a column that share a scale (or the largest divisor '
                                'of the width below it).', 'weights', 'Dettmers', low=2),
  'model.double_quantize': Field(False, 'Quantize the scales too, to 8 bits in blocks of 256: 4.13 '
                                 'in place of 4.5 bits a weight.', source='Dettmers'),
  'model.remat': Field('none', 'What the backward pass of a layer finds: all of it (none), or '
                       'less, for the rest is computed again: its matrix products and attention '
                       '(products: little time, about half the memory), these without the MLP\'s '
                       '(attention), its input alone (layer).',
                       choices=('none', 'products', 'attention', 'layer')),
  'model.scan_unroll': Field(0, 'Layers unrolled in an iteration of the scan over layers; 0 is the '
                             'platform\'s default.', 'layers', low=0),

  'data.name': Field('toy', 'Dataset: a file of perl/data.', package='perl.data.sets'),
  'data.also': Field((), 'Other datasets whose documents the tokenizer and pretraining read too: '
                     'files of perl/data.', package='perl.data.sets'),
  'data.parts': Field((), 'Parts of the dataset that are read (hh_rlhf: its subsets; shp: its '
                      'subreddits; arithmetic: digits of its numbers); () is all.'),
  'data.mirror': Field('', 'Folder laid out as the dataset\'s public home; \'\' downloads.',
                       'path'),
  'data.data_dir': Field('', 'Folder in which prepared data are kept; \'\' is the loader\'s '
                         'default ($TFDS_DATA_DIR).', 'path'),
  'data.seed': Field(0, 'Seed of generated data (toy, arithmetic), apart from `seed` so that runs '
                     'over seeds share their data.', low=0),
  'data.folds': Field(0, 'Folds of a grouped cross-validation over labelled examples, in place of '
                      'the fixed split; 0 keeps that.', 'folds', low=0),
  'data.fold': Field(0, 'The fold that is the test split, from 0, where data.folds is set.', low=0),
  'data.max_prompt_tokens': Field(256, 'Longest prompt, its BOS included.', 'tokens', low=2),
  'data.max_response_tokens': Field(128, 'Longest response, its EOS included.', 'tokens', low=1),
  'data.chat_template': Field(True, 'Dialogues are written with the tokenizer\'s chat template, '
                              'where it has one; else with our markers.'),
  'data.special_text': Field('keep', 'Special tokens of the vocabulary in the words of rows '
                             '(<|im_end|> in what a user says): they are these tokens, as in '
                             'transformers, and are counted in the log; or a space breaks them.',
                             choices=('keep', 'escape')),
  'data.date': Field('', 'The day that a chat template which reads the clock is told (2026-03-31); '
                     '\'\' is the one on which the run in --workdir began, which its config.json '
                     'keeps.'),
  'data.overlong': Field('truncate', 'Longer examples: dropped and counted, or cut (a prompt keeps '
                         'its end).', choices=('filter', 'truncate')),
  'data.overlap': Field('say', 'Rows of your own files that stand in two splits: counted in the '
                        'log, or refused before anything runs (of any dataset then).',
                        choices=('say', 'refuse')),
  'data.buckets': Field((), 'Padded lengths, rising; a batch is of one bucket. () is one length.',
                        'tokens', kind=int),
  'data.auto_buckets': Field(0, 'At most so many padded lengths, chosen so that a stage\'s rows '
                             'have the least padding, in place of data.buckets; 0 keeps these.',
                             'buckets', low=0),

  **peft_fields.FIELDS,

  'mesh.data': Field(-1, 'Devices over which the batch is split; -1 is all that are left.',
                     'devices', low=-1),
  'mesh.fsdp': Field(1, 'Devices over which the base and the batch are split.', 'devices', low=-1),
  'mesh.tensor': Field(1, 'Devices over which each matrix of the base is split.', 'devices',
                       low=-1),

  'mesh.optimizer_memory': Field('device', 'Where the optimizer\'s state lies between updates: '
                                 'pinned_host pages it to the host\'s memory.', source='Dettmers',
                                 choices=('device', 'pinned_host')),

  **{f'inputs.{name}': Field('', f'Folder of a finished {stage} stage; \'\' is the sibling folder.',
                             'path') for name, stage in PRODUCER.items()},
  'inputs.anchor': Field('', 'Folder of a finished sft stage, or of a LoRA in PEFT\'s format, '
                         'whose merged result is the anchor; \'\' is the sibling, \'base\' the '
                         'base itself (an instruct model).', 'path'),
  'inputs.reward': Field('', 'Folder of a finished reward stage, or of a reward model in PEFT\'s '
                         'format where the anchor is the base; \'\' is the sibling.', 'path'),
  'inputs.policy': Field('', 'Folder of a finished rl or preference stage, or of a LoRA in PEFT\'s '
                         'format where the anchor is the base; \'\' is the sibling of rl.', 'path'),

  **{path: field for name in STAGES for path, field in of_stage(name).items()},
}
"""Path -> Field; the only list of fields there is."""


def get_config() -> ConfigDict:
  """Every field at its default, locked: a name that is not in FIELDS cannot be set."""
  return ConfigDict(nest({path: default(field) for path, field in FIELDS.items()})).lock()


def use_method(config: ConfigDict, peft: str, *, rl: float, value: float, **rates: float) -> None:
  """Sets the PEFT method with its learning rates, which differ by method (PERL A.3: x10 to x20).

  Args:
    config: changed in place.
    peft: peft.name; 'full' trains every projection.
    rl: peak learning rate of RL, and of any stage that learns an adapter and is not in rates.
    value: that of the critic.
    **rates: that of other stages.

  Raises:
    ConfigError: a learning rate is not positive, or of no stage that learns an adapter.
  """
  if unknown := rates.keys() - set(ADAPTED):
    raise ConfigError(f'expected learning rates of {", ".join(ADAPTED)} or value, found '
                      f'{", ".join(sorted(unknown))}; name stages that learn an adapter')
  rates = dict.fromkeys(ADAPTED, rl) | rates
  for stage, rate in {**rates, 'value': value}.items():
    if rate <= 0:
      raise ConfigError(f'expected a positive learning rate for {stage}, found {rate}; raise it')
  config.peft.name = peft
  for stage, rate in rates.items():
    config[stage].optim.learning_rate = rate
  config.rl.value_learning_rate = value
