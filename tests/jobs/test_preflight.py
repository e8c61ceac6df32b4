"""What is looked for before the first stage; each check by itself, each with its remedy."""

import json
import pathlib
import shutil
import sys
import types

import pytest
import tiny
import toyrun as run

from perl import paths, trees
from perl.data.text import tokenizer as tokenizers
from perl.jobs import PERL, _overlap, _preflight, _reading
from perl.peft import adapters
from perl.train import checkpoint

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / 'data'))
import checkpoints  # noqa: E402

ALL = ('tokenizer', 'pretrain', 'sft', 'reward', 'rl', 'evaluate')


def check(tmp_path, stages=ALL, devices=1, **overrides):
  """The problems of a config, '' of a good one."""
  with run.small_world(devices):
    try:
      _preflight.check(run.config(**overrides), stages, paths.of(tmp_path))
    except ValueError as error:
      return str(error)
  return ''


def test_a_good_pipeline_has_no_problems_and_nothing_is_written(tmp_path):
  assert check(tmp_path / 'new') == ''
  assert not (tmp_path / 'new').exists()


# --- Targets and other shapes


def test_a_target_that_matches_nothing_is_said_of_every_stage_that_learns(tmp_path):
  said = check(tmp_path, peft__targets=('attention/query',))
  assert 'stage sft: expected' in said and 'attn/q' in said and 'stage rl: expected' in said
  assert 'stage pretrain' not in said  # which tunes everything


def test_a_start_that_is_not_there_is_said(tmp_path):
  assert 'stage reward: expected' in check(tmp_path, reward__adapter=str(tmp_path / 'nothing'))


@pytest.mark.parametrize('family', ['llama', 'untied', 'neox', 'gpt2'])
def test_all_linear_is_every_projection_but_the_output(family):
  _, base = tiny.make(family)
  known = set(adapters.projections(base))
  nodes = adapters.nodes(tiny.lora(base, head=False, targets=('all-linear',)))
  assert {name.removesuffix('/kernel') for name in nodes} == known - {'embed/lm_head'}


# --- Rows


def files(folder, **rows):
  """A folder of three files, of two good rows each but for those named."""
  folder.mkdir()
  good = [{'prompt': 'p', 'chosen': 'a', 'rejected': 'b'}] * 2
  for split in ('train', 'dev', 'test'):
    lines = [json.dumps(row) for row in rows.get(split, good)]
    (folder / f'{split}.jsonl').write_text('\n'.join(lines))
  return dict(data__name='local', data__mirror=str(folder))


def test_a_split_that_only_a_later_stage_reads_is_looked_at_now(tmp_path):
  data = files(tmp_path / 'data', test=[{'prompt': 'p', 'response': 'a'}])
  said = check(tmp_path, ('tokenizer', 'pretrain', 'sft', 'reward'), **data)
  assert "stage reward, data: local: expected a row with {prompt, chosen, rejected}" in said
  assert 'test.jsonl, line 1' in said and 'stage sft' not in said


def test_a_kind_that_the_data_have_not_is_said(tmp_path):
  said = check(tmp_path, reward__kind='ranking', **files(tmp_path / 'data'))
  assert "expected a row with {prompt, responses} for kind 'ranked'" in said


def test_a_missing_split_is_said(tmp_path):
  data = files(tmp_path / 'data')
  (tmp_path / 'data' / 'dev.jsonl').unlink()
  assert 'expected dev.jsonl' in check(tmp_path, **data)


def test_a_broken_row_is_said_wherever_it_stands_and_large_files_are_not_read_for_it(
  tmp_path, monkeypatch
):
  data = files(tmp_path / 'data')
  with (tmp_path / 'data' / 'dev.jsonl').open('a') as file:
    file.write('\nthis is no JSON')
  assert 'dev.jsonl, line 3' in check(tmp_path, ('sft',), **data)
  assert check(tmp_path, ('tokenizer',), **data) == ''  # which does not read dev
  monkeypatch.setattr(_overlap, 'LOOKED_AT_BYTES', 10)
  assert check(tmp_path, ('sft',), **data) == ''


def test_every_job_says_what_it_reads(toyrun):
  """The pairs of `needs` are those that the stages of a pipeline have read."""
  for stage in PERL:
    own = _preflight.Data(_preflight.Run(run.config(), '', stage), None)
    said = {f'rows toy {kind} {split}' for kind, split in _preflight.needs(own)}
    kept = _reading.recorded(str(toyrun / stage))
    assert said == {what for what in kept if what.startswith('rows ')}, stage


# --- Rules


@pytest.fixture
def rule(monkeypatch):
  """Names a function as a user's rule."""
  def named(function):
    module = types.ModuleType('house')
    module.rule = function
    monkeypatch.setitem(sys.modules, 'house', module)
    return dict(rl__rules=('house:rule',))

  return named


def test_a_rule_that_cannot_be_imported_is_said(tmp_path):
  assert 'no_such_house' in check(tmp_path, rl__rules=('no_such_house:rule',))


def test_a_rule_of_other_arguments_is_said(tmp_path, rule):
  said = check(tmp_path, **rule(lambda prompt, answer: 0.0))
  assert 'expected a rule of (examples, responses, dataset)' in said and '(prompt, answer)' in said


@pytest.mark.parametrize('broken, said', [
  (lambda examples, responses, dataset: [1.0], 'expected 2 rewards'),
  (lambda examples, responses, dataset: [float('nan')] * 2, 'expected 2 rewards'),
  (lambda examples, responses, dataset: [1 / len(r) for r in responses], 'ZeroDivisionError'),
  (lambda tokens, mask: tokens.nothing, 'AttributeError'),
])
def test_a_rule_is_called_on_a_sample(tmp_path, rule, broken, said):
  text = check(tmp_path, **rule(broken))
  assert 'rl.rules: expected the rule house:rule' in text and said in text


def test_a_rule_that_wants_what_the_data_lack_is_said(tmp_path):
  said = check(tmp_path, rl__rules=('exact_match',))
  assert 'expected the rule exact_match to reward the responses' in said and 'toy' in said


def test_good_rules_pass(tmp_path, rule):
  assert check(tmp_path, **rule(lambda examples, responses, dataset: [0.0] * len(responses))) == ''
  assert check(tmp_path, rl__rules=('gold', 'length', 'repetition')) == ''


# --- Reward models


def reward_in(toyrun, folder, **meta):
  """A finished reward stage, with another meta."""
  shutil.copytree(toyrun / 'reward', folder, ignore=shutil.ignore_patterns('checkpoints'))
  tree, old = checkpoint.load_tree(folder / 'adapter')
  checkpoint.save_tree(folder / 'adapter', tree, old | meta)
  return dict(inputs__reward=str(folder))


@pytest.mark.parametrize('meta, options, said', [
  (dict(head=False), {}, 'found an adapter without a head'),
  ({}, dict(rl__ensemble='minimum', reward__members=2), 'expected an ensemble'),
  (dict(rank=5), dict(rl__critic_from='reward'), 'rank=5'),
  ({}, {}, ''),
])
def test_a_reward_model_is_looked_at_without_its_weights(
  toyrun, tmp_path, monkeypatch, meta, options, said
):
  inputs = reward_in(toyrun, tmp_path / 'reward', **meta)
  monkeypatch.setattr(checkpoint, 'load_tree', None)
  text = check(tmp_path, ('sft', 'rl'), **inputs | options)
  assert (said in text) if said else text == ''


def test_a_published_reward_model_needs_the_base_as_its_anchor(tmp_path):
  (tmp_path / 'adapter_config.json').write_text('{}')
  assert 'expected inputs.anchor=base' in check(tmp_path, inputs__reward=str(tmp_path))


# --- Disk


def test_checkpoints_that_do_not_fit_are_said_with_their_bytes(tmp_path, monkeypatch):
  monkeypatch.setattr(paths, 'free_bytes', lambda place: 1000)
  said = check(tmp_path)
  assert 'GiB free' in said and 'keep_last' in said
  monkeypatch.setattr(paths, 'free_bytes', lambda place: None)  # an object store
  assert check(tmp_path) == ''


def test_the_bytes_of_a_checkpoint_are_those_on_disk(toyrun, tmp_path):
  sizes = {}
  with run.small_world():
    list(_preflight.learners({'rl': _preflight.Plan(run.config(), 'rl')}, sizes))
  tree = checkpoint.Checkpoints(toyrun / 'rl' / 'checkpoints').restore().tree
  saved = trees.flat({part: tree[part] for part in ('adapters', 'opt_state')})
  assert sizes['rl'] == sum(x.nbytes for x in saved.values())


# --- Chat templates


def test_a_template_that_cannot_write_the_rows_is_said(tmp_path):
  refuses = "{% if messages[-1]['role'] == 'user' %}{{ raise_exception('no end') }}{% endif %}x"
  checkpoints.qwen2(tmp_path / 'hub', chat_template=refuses)
  rows = [{'messages': [{'role': 'user', 'content': 'hi'}, {'role': 'assistant', 'content': 'a'}]}]
  data = files(tmp_path / 'data', train=rows, dev=rows, test=rows)
  (tmp_path / 'tokenizer').mkdir()
  (tmp_path / 'tokenizer' / 'summary.json').write_text('{}')
  tokenizers.load(tmp_path / 'hub').save(tmp_path / 'tokenizer')
  said = check(tmp_path, ('pretrain', 'sft'), **data)
  assert 'tokenizer and chat template: ' in said and 'no end' in said


@pytest.mark.parametrize('whole', [False, True])
def test_a_later_row_whose_roles_a_template_refuses_is_said(tmp_path, whole):
  """Training does not end at a row that is read after minutes."""
  short = "{% if messages | length > 3 %}{{ raise_exception('too long') }}{% endif %}"
  checkpoints.qwen2(tmp_path / 'hub', chat_template=short + checkpoints.CHATML)
  chat = lambda *roles: {'messages': [{'role': role, 'content': role} for role in roles]}
  usual, long = chat('user', 'assistant'), chat(*['user', 'assistant'] * 2)
  data = files(tmp_path / 'data', train=[usual, long, usual, long], dev=[usual], test=[usual])
  (tmp_path / 'tokenizer').mkdir()
  (tmp_path / 'tokenizer' / 'summary.json').write_text('{}')
  tokenizers.load(tmp_path / 'hub').save(tmp_path / 'tokenizer')
  said = check(tmp_path, ('sft',), **data, sft__whole_chats=whole)
  assert 'train.jsonl, line 2: chat template: ' in said and 'too long' in said
  assert f'(train: 2 of {4 if whole else 6} rows have these roles)' in said.replace(
    'document, ', '').replace('demonstration, ', '')


@pytest.mark.parametrize('field', ['reward.batch_size', 'rl.batch_size', 'evaluate.batch_size'])
def test_a_batch_that_does_not_divide_over_the_devices_is_said(tmp_path, field):
  said = f'{field}: expected a batch that divides over the 8 devices of the mesh, found 12'
  assert said in check(tmp_path, devices=8, **{field: 12, 'rl.samples': 1})
