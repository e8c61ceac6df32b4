"""What is behind a path counts, and every field: in a finished stage, and in one that goes on."""

import json
import shutil

import pytest
import tiny
import toyrun as run

from perl.cli import launch
from perl.config import schema
from perl.config.fields import flatten
from perl.data import examples
from perl.jobs import FREE, STAGES, TRAINED, _identity, _reading
from perl.jobs import _run as runs
from perl.jobs._artefacts import Artefacts
from perl.jobs._data import Data
from perl.train import checkpoint

# --- Fields: those that determine a result stop a stage that would go on with another, no others do


def others(path):
  """Values of a field that may differ from the config's."""
  field = schema.FIELDS[path]
  if field.choices:
    several = isinstance(field.default, tuple)
    return [(choice,) for choice in field.choices] if several else list(field.choices)
  if field.package:
    return {'peft.name': ['dora'], 'rl.algorithm': ['grpo'], 'data.name': ['shp'],
            'preference.method': ['ipo'], 'data.also': [('shp',)]}[path]
  several = isinstance(field.default, tuple)
  kind = field.kind or (str if several else type(field.default))
  values = {bool: [True, False], int: [3, 7], float: [0.25, 0.75], str: ['other']}[kind]
  return [(value,) for value in values] if several else values


def resumed(stage, **changed):
  """The arguments by which a stage knows its checkpoints, without any artefact."""

  class Bare(Artefacts):
    tokenizer = tiny  # whose digest is looked at, as of every artefact
    text = {'digest': 'one'}

  tiny.digest = 'one'
  return Bare(runs.Run(run.config(**changed), '', stage)).resumed()


@pytest.mark.parametrize('stage', TRAINED)
def test_a_field_stops_a_resumed_stage_if_and_only_if_it_determines_the_result(stage):
  before = resumed(stage)['meta']
  values = _identity.flatten(runs.Run(run.config(), '', stage).config)
  known = set(_identity.of(values, stage))
  blocking = set()
  for path in schema.FIELDS:
    value = next(v for v in others(path) if v != values[path])
    now = resumed(stage, **{path.replace('.', '__'): value})
    try:
      checkpoint.check_meta(now['meta'], now['renamed'](before))
    except checkpoint.MismatchError as error:
      assert f'  {path}: expected' in str(error)
      blocking.add(path)
  own = {path for path in schema.FIELDS if path.split('.')[0] in STAGES[stage].sections}
  assert not blocking & FREE
  assert own - FREE <= blocking <= known | {f'inputs.{name}' for name in STAGES[stage].reads}


def test_a_checkpoint_that_lacks_a_younger_field_goes_on():
  now = resumed('sft')
  older = {name: value for name, value in now['meta'].items() if name != 'sft.packed'}
  checkpoint.check_meta(now['meta'], now['renamed'](older))


# --- Rows


def local(folder, response='yes', **overrides):
  """A config over a folder of three files, whose responses are that text, and the folder."""
  folder.mkdir(exist_ok=True)
  for split in ('train', 'dev', 'test'):
    rows = [{'prompt': f'{split} {i}', 'response': response} for i in range(3)]
    (folder / f'{split}.jsonl').write_text('\n'.join(map(json.dumps, rows)))
  return run.config(data__name='local', data__mirror=str(folder), **overrides)


def read(config, workdir, *, finished):
  """A tokenizer stage that has read the train split."""
  stage = runs.begin(config, str(workdir / 'tokenizer'), 'tokenizer')
  Data(stage, None).examples('train', 'demonstration')
  if finished:
    stage.finish({})
  else:
    (workdir / 'tokenizer' / 'checkpoints' / '1').mkdir(parents=True)


@pytest.mark.parametrize('finished', [True, False], ids=['finished', 'killed'])
def test_other_rows_at_the_same_path_are_refused_and_the_same_elsewhere_are_not(
  tmp_path, finished
):
  config = local(tmp_path / 'data')
  read(config, tmp_path, finished=finished)
  launch.check_unchanged(config, ['tokenizer'], tmp_path)
  elsewhere = local(tmp_path / 'moved')
  launch.check_unchanged(elsewhere, ['tokenizer'], tmp_path)
  config = local(tmp_path / 'data', response='no!')  # of as many tokens, perhaps
  with pytest.raises(checkpoint.MismatchError, match=r'rows local demonstration train: expected'):
    launch.check_unchanged(config, ['tokenizer'], tmp_path)


def test_a_job_that_goes_on_over_other_rows_says_so_itself(tmp_path):
  read(local(tmp_path / 'data'), tmp_path, finished=False)
  config = local(tmp_path / 'data', response='no!')
  stage = runs.begin(config, str(tmp_path / 'tokenizer'), 'tokenizer')
  with pytest.raises(checkpoint.MismatchError, match='delete'):
    Data(stage, None).examples('train', 'demonstration')
  shutil.rmtree(tmp_path / 'tokenizer' / 'checkpoints')  # it begins afresh
  stage = runs.begin(config, str(tmp_path / 'tokenizer'), 'tokenizer')
  Data(stage, None).examples('train', 'demonstration')
  launch.check_unchanged(config, ['tokenizer'], tmp_path)


@pytest.mark.parametrize('change', [
  dict(prompt='q'), dict(response='b'), dict(group='h'), dict(meta={'answer': 2}),
  dict(messages=({'role': 'user', 'content': 'q'},))])
def test_the_digest_of_rows_is_of_all_that_they_hold_but_their_place(change):
  fields = dict(prompt='p', response='a', group='g', meta={'answer': 1})
  row = lambda **more: examples.Demonstration(**fields | more)
  assert examples.digest([row()]) != examples.digest([row(**change)])
  moved = row(meta={'answer': 1, 'source': 'elsewhere, line 7'})
  assert examples.digest([row()]) == examples.digest([moved])
  assert examples.digest([row(), row(**change)]) != examples.digest([row(**change), row()])


# --- Results of other stages, and published files


@pytest.mark.parametrize('name', ['tokenizer', 'base', 'anchor', 'reward'])
def test_another_result_of_a_stage_behind_the_same_path_is_refused(toyrun, tmp_path, name):
  producer = {'tokenizer': 'tokenizer', 'base': 'pretrain', 'anchor': 'sft', 'reward': 'reward'}
  inputs = {f'inputs__{n}': str(toyrun / s) for n, s in producer.items()}
  place = tmp_path / producer[name]
  shutil.copytree(toyrun / producer[name], place, ignore=shutil.ignore_patterns('checkpoints'))
  config = run.config(**inputs | {f'inputs__{name}': str(place)})
  runs.begin(config, str(tmp_path / 'rl'), 'rl')
  (tmp_path / 'rl' / 'checkpoints' / '1').mkdir(parents=True)
  runs.begin(config, str(tmp_path / 'rl'), 'rl')  # the same goes on
  if name == 'tokenizer':
    saved = json.loads((place / 'tokenizer.json').read_text())
    saved['model']['merges'].pop()
    (place / 'tokenizer.json').write_text(json.dumps(saved))
  else:
    tree = place / ('base' if name == 'base' else 'adapter')
    values, meta = checkpoint.load_tree(tree)
    checkpoint.save_tree(tree, tiny.noisy(values, 0.1), meta | {'digest': 'another'})
  with pytest.raises(checkpoint.MismatchError, match=f'  {name}: expected'):
    launch.check_unchanged(config, ['rl'], tmp_path)
  with pytest.raises(checkpoint.MismatchError, match=f'  {name}: expected'):
    runs.begin(config, str(tmp_path / 'rl'), 'rl')


def test_every_path_of_a_stage_is_looked_behind(toyrun):
  """A field of the unit 'path' that a stage reads has its content among what the stage keeps."""
  paths = {path for path, field in schema.FIELDS.items() if field.unit == 'path'}
  inputs = {path for path in paths if path.startswith('inputs.')}
  starts = {f'{stage}.adapter' for stage in TRAINED} & paths
  rows = {'data.mirror', 'data.data_dir'}
  others = {'model.checkpoint', 'tokenizer.path', 'best_of_n.sampled'}
  assert paths == inputs | starts | rows | others
  kept = runs.Run(run.config(), str(toyrun / 'rl'), 'rl').inputs()
  assert kept.keys() == {'tokenizer', 'base', 'anchor', 'reward'}
  recorded = _reading.recorded(str(toyrun / 'rl'))
  assert recorded.items() >= kept.items()
  assert {f'rows toy prompt {split}' for split in ('train', 'dev', 'test')} <= recorded.keys()


def test_flat_configs_are_the_same_in_jobs_and_in_the_config():
  assert _identity.flatten is flatten
