"""The table of stages: complete, free of jax, and with the keys and fields that old runs had."""

import ast
import pathlib
import subprocess
import sys

import pytest

from configs import arithmetic, demo
from perl import choices, jobs
from perl.config import identity, schema
from perl.config.fields import flatten

KEYS = {'tokenizer': 0, 'pretrain': 1, 'sft': 2, 'reward': 3, 'rl': 4, 'evaluate': 5,
        'best_of_n': 6, 'preference': 7}
"""A stage's PRNG key is part of what a run can be repeated by."""

READ = {
  'tokenizer': ('data tokenizer', ''),
  'pretrain': ('data model pretrain seed tokenizer', 'tokenizer'),
  'sft': ('data model peft pretrain seed sft tokenizer', 'base tokenizer'),
  'reward': ('data model peft pretrain reward seed sft tokenizer', 'anchor base tokenizer'),
  'preference': ('data model peft preference pretrain seed sft tokenizer', 'anchor base tokenizer'),
  'rl': ('data model peft pretrain reward rl seed sft tokenizer', 'anchor base reward tokenizer'),
  'evaluate': ('data evaluate model peft pretrain reward rl seed sft tokenizer',
               'anchor base policy reward tokenizer'),
  'best_of_n': ('best_of_n data evaluate model peft pretrain reward rl seed sft tokenizer',
                'anchor base reward tokenizer'),
}
"""Stage -> (the sections, the inputs) that determine its result: its own and those behind it."""

FREE = {'name', 'stages', 'model.remat', 'model.scan_unroll', 'data.mirror', 'data.data_dir',
        'data.overlap', 'data.date', 'mesh.data', 'mesh.fsdp', 'mesh.tensor',
        'mesh.optimizer_memory', 'evaluate.batch_size',
        *(f'{stage}.{name}' for stage in jobs.TRAINED for name in ('log_every_steps', 'keep_last'))}
"""Fields that change no result."""

MEASURED = {'sft', 'reward', 'rl', 'preference', 'best_of_n'}
"""Stages that read, or build on one that reads, evaluate.max_examples."""


def test_every_job_has_a_row_and_every_row_a_job():
  assert tuple(sorted(jobs.STAGES)) == choices.names('perl.jobs')


def test_keys_are_those_of_old_runs():
  assert {name: stage.key for name, stage in jobs.STAGES.items()} == KEYS


def test_every_input_has_one_maker_that_comes_before_it():
  before = set()
  for name, stage in jobs.STAGES.items():
    assert set(stage.reads) <= before, name
    before |= {stage.makes} - {''}
  assert len(jobs.PRODUCER) == sum(bool(stage.makes) for stage in jobs.STAGES.values())
  assert jobs.PRODUCER == {'tokenizer': 'tokenizer', 'base': 'pretrain', 'anchor': 'sft',
                           'reward': 'reward', 'policy': 'rl'}
  assert jobs.ADAPTERS == ('anchor', 'reward', 'policy')


def test_sections_and_inputs_are_of_the_config():
  sections = {path.split('.')[0] for path in schema.FIELDS}
  for name, stage in jobs.STAGES.items():
    assert set(stage.sections) <= sections and name in stage.sections, name
    assert all(f'inputs.{input_}' in schema.FIELDS for input_ in (*stage.reads, stage.makes)
               if input_), name


@pytest.mark.parametrize('stage', jobs.STAGES)
def test_what_determines_a_stage_is_what_it_was(stage):
  sections, inputs = (set(text.split()) for text in READ[stage])
  config = demo.get_config()
  expected = {path for path in flatten(config) if path.split('.')[0] in sections} - FREE
  expected |= {f'inputs.{name}' for name in inputs}
  expected |= {'evaluate.max_examples'} if stage in MEASURED else set()
  assert set(identity.identity(config, stage)) == expected


def test_what_changes_no_result_is_declared_once():
  assert jobs.FREE == FREE and schema.FIELDS.keys() >= FREE


def test_rules_alone_stand_on_no_reward_model():
  config = arithmetic.get_config()
  assert not config.rl.reward_weight
  assert 'reward' not in (*identity.inputs(config, 'rl'), *identity.inputs(config, 'evaluate'))
  assert 'reward.steps' not in identity.identity(config, 'rl')
  assert 'reward' in identity.inputs(config, 'best_of_n')


def test_the_table_needs_neither_jax_nor_a_config():
  code = ('import sys, perl.jobs\n'
          "print([m for m in ('jax', 'numpy', 'ml_collections', 'absl') if m in sys.modules])")
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  assert done.stdout.strip() == '[]'


def test_a_row_gives_a_stage_its_fields(monkeypatch):
  """A job with steps and an option of its own: its file and its row, and no other file."""
  row = jobs.Stage(
    key=8, title='Distillation', reads=('base',), sections=('seed', 'distil'),
    training=jobs.Training(steps=7, batch_size=3, learning_rate=0.5, adapter='the student'),
    fields={'share': dict(default=0.25, meaning='Of the teacher.', low=0.0, high=1.0)})
  monkeypatch.setitem(jobs.STAGES, 'distil', row)
  fields = schema.of_stage('distil')
  assert fields['distil.share'].default == 0.25 and fields['distil.share'].high == 1.0
  assert fields['distil.steps'].default == 7 and 'the student' in fields['distil.adapter'].meaning
  assert fields['distil.optim.learning_rate'].default == 0.5
  assert {path.removeprefix('distil.') for path in fields} - {'share'} == {
    path.removeprefix('sft.') for path in schema.of_stage('sft')} - set(jobs.STAGES['sft'].fields)


def test_there_is_no_other_list_of_stages():
  """Whoever wants several derives them; four names or more in one literal are a second list."""
  root, wrong = pathlib.Path(jobs.__file__).parents[1], []
  for path in sorted({*root.rglob('*.py')} - {pathlib.Path(jobs.__file__)}):
    for node in ast.walk(ast.parse(path.read_text())):
      values = getattr(node, 'elts', None) or getattr(node, 'keys', None) or []
      names = {v.value for v in values if isinstance(v, ast.Constant)} & jobs.STAGES.keys()
      if len(names) > 3:
        wrong.append(f'{path.relative_to(root)}:{node.lineno} {sorted(names)}')
  assert not wrong, '\n'.join(wrong)
