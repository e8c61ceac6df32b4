"""The config: every field documented, the experiment files valid, wrong values refused."""

import ast
import dataclasses
import json
import pathlib

import pytest
from etils import epath

from perl import choices
from perl.config import (
  arguments,
  brought,
  command_line,
  experiments,
  fields,
  identity,
  preference_fields,
  runs,
  schema,
  validate,
)
from perl.config.fields import ConfigError
from perl.jobs import _scoring as scoring
from perl.jobs import reward as reward_job
from perl.objectives import regularizers
from perl.preference import methods, reward_losses, reward_model

EXPERIMENTS = {name: experiments.load(name) for name in experiments.names() if name != 'base'}
arithmetic, coffee, demo, ticketing = (
  EXPERIMENTS[name] for name in ('arithmetic', 'coffee', 'demo', 'ticketing'))


def test_every_field_has_a_meaning_and_a_source():
  assert set(fields.flatten(schema.get_config())) == set(schema.FIELDS)
  for path, field in schema.FIELDS.items():
    assert len(field.meaning) > 10 and field.source, path
    assert field.meaning.rstrip().endswith('.'), path


def test_names_that_mean_a_quantity_have_a_unit():
  for path, field in schema.FIELDS.items():
    if path.endswith(('_steps', '_tokens', 'learning_rate', 'batch_size', '.steps')):
      assert field.unit, path


def test_regularizers_are_those_of_the_objectives():
  assert schema.FIELDS['rl.regularizer'].choices == (
    *regularizers.SAMPLED, *regularizers.EXACT)


def test_kinds_of_reward_and_of_ensemble_are_those_of_the_jobs():
  kinds = schema.FIELDS['reward.kind'].choices
  assert kinds == reward_losses.KINDS
  assert set(kinds) == set(scoring.EXAMPLES) == set(reward_job.VALIDATION)
  assert schema.FIELDS['rl.ensemble'].choices == reward_model.ENSEMBLES


def test_options_of_preference_methods_are_their_fields():
  names = choices.names('perl.preference.methods')
  options = {f'preference.{name}.{option.name}' for name in names
             for option in dataclasses.fields(methods.find(name))}
  assert options == {path for path in preference_fields.FIELDS if path.count('.') == 2}


def test_every_default_obeys_its_own_bounds():
  for path, field in schema.FIELDS.items():
    if field.default is None:  # somebody else's value, of that type
      assert field.kind is not None, path
      continue
    values = field.default if isinstance(field.default, tuple) else (field.default,)
    assert not field.choices or set(values) <= set(field.choices), path
    assert field.low is None or field.default >= field.low, path
    assert field.high is None or field.default <= field.high, path


def test_the_config_is_locked_and_typed():
  config = schema.get_config()
  with pytest.raises((AttributeError, KeyError)):
    config.peft.rnak = 3
  with pytest.raises(TypeError):
    config.peft.rank = 'eight'


def test_flatten_and_nest_are_inverse():
  tree = {'a': {'b': 1, 'c': {'d': (2, 3)}}, 'e': 'x'}
  assert fields.flatten(tree) == {'a.b': 1, 'a.c.d': (2, 3), 'e': 'x'}
  assert fields.nest(fields.flatten(tree)) == tree


@pytest.mark.parametrize('name', EXPERIMENTS)
@pytest.mark.parametrize('peft', ['lora', 'full'])
def test_experiments_are_valid_and_need_no_warning(name, peft):
  config = EXPERIMENTS[name].get_config(f'peft={peft},seed=3')
  assert validate.validate(config) == []
  assert (config.peft.name, config.seed) == (peft, 3)


# --- A published checkpoint


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A checkpoint's config.json, which is all that is read of it here."""
  place = tmp_path_factory.mktemp('hub')
  (place / 'config.json').write_text(json.dumps({
    'architectures': ['LlamaForCausalLM'], 'model_type': 'llama', 'vocab_size': 300,
    'hidden_size': 32, 'intermediate_size': 48, 'num_hidden_layers': 2, 'num_attention_heads': 4,
    'num_key_value_heads': 2, 'rms_norm_eps': 1e-5, 'max_position_embeddings': 256}))
  return place


@pytest.mark.parametrize('name', [*EXPERIMENTS, 'base'])
def test_every_experiment_leaves_to_a_checkpoint_what_it_brings(name, folder, capsys):
  brought._say.cache_clear()
  plain = command_line.read(name)
  config = command_line.read(name, [f'--config.model.checkpoint={folder}'])
  assert validate.validate(config) == validate.validate(plain)
  assert config.stages == tuple(s for s in plain.stages if s not in ('tokenizer', 'pretrain'))
  assert f'tokenizer and pretrain left out: {folder} brings what they make' in (
    capsys.readouterr().err)
  for stage in config.stages:
    assert not {'tokenizer', 'pretrain'} & {*identity.upstream(config, [stage])}
  declared = getattr(EXPERIMENTS.get(name), 'ARGUMENTS', {})
  if 'checkpoint' in declared:
    over = command_line.read(f'{name}:checkpoint={folder}')
    assert validate.validate(over) == [] and over.model.checkpoint == str(folder)
    assert over.stages and not {'tokenizer', 'pretrain'} & {*over.stages}
  if {'checkpoint', 'size'} <= {*declared}:
    with pytest.raises(ConfigError, match='expected no argument size beside checkpoint=.*leave it'):
      command_line.read(f'{name}:checkpoint={folder},size=tiny')


@pytest.mark.parametrize('flags, stages, found', [
  (['tokenizer.vocab_size=500'], ('sft',), 'tokenizer.vocab_size'),
  (['model.size=nano', 'tokenizer.lowercase=true'], ('rl',), 'model.size, tokenizer.lowercase'),
  (['pretrain.steps=3'], ('sft',), 'pretrain.steps'),
  (['pretrain.steps=3', 'tokenizer.path=x', 'tokenizer.foreign=true'], ('pretrain', 'sft'), '')])
def test_a_flag_that_a_checkpoint_leaves_without_effect_is_refused(folder, flags, stages, found):
  flags = [f'--config.{flag}' for flag in (*flags, f'model.checkpoint={folder}')]
  config, paths = command_line.read('demo', flags), [*map(command_line.overridden, flags)]
  if found:
    with pytest.raises(ConfigError, match=f'expected no {found} beside model.checkpoint'):
      brought.check_idle(config, paths, stages)
  else:
    brought.check_idle(config, paths, stages)
  brought.check_idle(command_line.read('demo', flags[:-1]), paths, stages)  # nothing of ours is


def test_what_a_user_names_is_left_but_for_the_tokenizer(folder):
  config = command_line.read('demo', [f'--config.model.checkpoint={folder}'])
  assert brought.left(config, ('tokenizer', 'pretrain', 'sft'), asked=True) == ('pretrain', 'sft')
  assert brought.left(demo.get_config(), ('tokenizer',), asked=True) == ('tokenizer',)
  with pytest.raises(ConfigError, match='expected a stage to run beside .*found tokenizer alone'):
    brought.left(config, ('tokenizer',), asked=True)


@pytest.mark.parametrize('name', EXPERIMENTS)
def test_headers_show_the_command_the_result_and_every_argument(name):
  header = EXPERIMENTS[name].__doc__
  assert f'python -m experiments.launch --config=configs/{name}.py' in header
  assert f'experiments/results/{name}.json' in header
  assert all(f'{argument}=' in header for argument in EXPERIMENTS[name].ARGUMENTS)


def test_the_experiments_are_the_files_of_configs():
  folder = pathlib.Path(__file__).parents[2] / 'configs'
  assert folder == experiments.FOLDER and 'demo' in experiments.names()
  assert {f'{name}.py' for name in experiments.names()} == {p.name for p in folder.glob('*.py')}


def test_experiments_import_perl_alone():
  """They are no package: another experiment is had by its name."""
  for name in experiments.names():
    tree = ast.parse(experiments.find(name).read_text())
    modules = {node.module.split('.')[0] for node in ast.walk(tree)
               if isinstance(node, ast.ImportFrom)}
    modules |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import)
                for alias in node.names}
    assert modules <= {'perl', 'ml_collections', 'types'}, name


@pytest.mark.parametrize('name', [*EXPERIMENTS, 'base'])
def test_the_printed_differences_repeat_the_config(name):
  config = command_line.read(name, ['--config.peft.rslora', '--config.rl.optim.eps=1e-4'])
  lines = command_line.differences(config).splitlines()
  flags = [f'--config.{path}={value}' for path, value in (l.split(' = ', 1) for l in lines)]
  assert fields.flatten(command_line.read('base', flags)) == fields.flatten(config)
  defaults = fields.flatten(schema.get_config())
  assert len(lines) == sum(v != defaults[p] for p, v in fields.flatten(config).items())
  assert command_line.differences(schema.get_config()) == ''


def test_an_experiment_is_found_by_name_from_anywhere(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'mine.py').write_text('''
from perl.config import experiments

def get_config():
  config = experiments.load('demo').get_config('seed=7')
  config.peft.rank = 3
  return config
''')
  assert command_line.read('demo:seed=1,peft=full') == demo.get_config('seed=1,peft=full')
  mine = command_line.read('mine.py')
  assert (mine.name, mine.seed, mine.peft.rank) == ('demo', 7, 3)
  (tmp_path / 'demo.py').write_text('')  # a file goes by its path, never by a name of ours
  assert command_line.read('demo') == demo.get_config()
  with pytest.raises(ConfigError, match=r'define get_config\(\)'):
    command_line.read('demo.py')


@pytest.mark.parametrize('name, said', [
  ('dmeo', "an experiment among arithmetic, base, .*, found 'dmeo'; did you mean 'demo'"),
  ('nowhere/demo.py', "did you mean 'demo'"),
  ('zzz', 'found .zzz.; choose one'),
  ('runs/x/config.json', "found 'runs/x/config.json'"),
  ('.', 'expected a config file'),
])
def test_an_unknown_experiment_is_refused_with_the_nearest(name, said):
  with pytest.raises(ConfigError, match=said):
    command_line.read(name)


def test_learning_rates_follow_the_method():
  lora, full = (coffee.get_config(f'peft={name}') for name in ('lora', 'full'))
  for stage in ('sft', 'reward', 'rl'):
    assert lora[stage].optim.learning_rate > full[stage].optim.learning_rate
  assert lora.pretrain.optim.learning_rate == full.pretrain.optim.learning_rate


def test_arithmetic_is_rewarded_by_its_rule_alone():
  config = arithmetic.get_config('digits=three_digits')
  assert (config.rl.rules, config.rl.reward_weight) == (('gsm8k',), 0) and config.rl.samples > 1
  assert 'reward' not in config.stages and config.data.parts == ('three_digits',)
  assert config.rl.algorithm == 'grpo'
  with pytest.raises(ConfigError, match="algorithm to be one of .*; did you mean 'reinforce'"):
    arithmetic.get_config('algorithm=reinfor')


def test_ticketing_ends_at_the_reward_model():
  config = ticketing.get_config('mirror=/data=1/x')
  assert config.stages[-1] == 'reward' and config.data.mirror == '/data=1/x'


# --- Argument strings


DECLARED = {
  'size': arguments.Argument('tiny', '', ('tiny', 'mini')),
  'seed': arguments.Argument(0, ''),
  'rate': arguments.Argument(0.5, ''),
  'deep': arguments.Argument(False, ''),
}


def test_arguments_are_typed_by_their_defaults():
  given = arguments.parse('seed=3,rate=1e-3,deep=true', DECLARED)
  assert (given.size, given.seed, given.rate, given.deep) == ('tiny', 3, 1e-3, True)
  assert vars(arguments.parse('', DECLARED))['seed'] == 0


@pytest.mark.parametrize('text, said', [
  ('sise=tiny', "did you mean 'size'"),
  ('size=tny', "did you mean 'tiny'"),
  ('seed=one', 'type int'),
  ('rate=fast', 'type float'),
  ('deep=perhaps', 'type bool'),
  ('tiny', 'name=value'),
  ('seed=1,seed=2', 'twice'),
])
def test_wrong_arguments_are_explained(text, said):
  with pytest.raises(ConfigError, match=said):
    arguments.parse(text, DECLARED)


def test_merge_replaces_and_adds():
  assert arguments.merge('size=tiny,seed=0', seed=2, peft='full') == 'size=tiny,seed=2,peft=full'
  assert arguments.merge('') == ''


# --- Values


def changed(**values):
  config = demo.get_config()
  for path, value in values.items():
    config.update_from_flattened_dict({path.replace('__', '.'): value})
  return config


@pytest.mark.parametrize('values, said', [
  ({'peft__rank': 0}, 'peft.rank to be at least 1'),
  ({'peft__dropout': 1.0}, 'peft.dropout to be at most'),
  ({'peft__dropout': float('nan')}, 'peft.dropout'),
  ({'reward__steps': -5}, 'reward.steps to be at least 1'),
  ({'reward__kind': 'pairwse'}, "did you mean 'pairwise'"),
  ({'reward__optim__schedule': 'cosin'}, "did you mean 'cosine'"),
  ({'reward__kind': 'pointwise', 'reward__share_prompt': True}, 'pairwise for reward.share_prompt'),
  ({'reward__kind': 'ranking', 'reward__probe': True}, 'pairwise or pointwise for reward.probe'),
  ({'reward__kind': 'ranking', 'reward__margin': True}, 'reward.kind=pairwise for reward.margin'),
  ({'reward__kind': 'regression', 'reward__centre': 0.1}, 'pairwise or ranking for reward.centre'),
  ({'reward__responses': 1}, 'reward.responses to be at least 2'),
  ({'reward__members': 0}, 'reward.members to be at least 1'),
  ({'reward__members': 2, 'reward__probe': True}, 'reward.members=1 for reward.probe, found 2'),
  ({'rl__ensemble': 'minimum'}, 'reward.members of at least 2 for rl.ensemble=minimum'),
  ({'rl__ensemble_penalty': 0.1}, 'rl.ensemble=uncertainty for rl.ensemble_penalty'),
  ({'rl__ensemble': 'uncertainty', 'reward__members': 2}, 'rl.ensemble_penalty above 0'),
  ({'sft__optim__name': 'sgd', 'sft__optim__b1': 0.5}, 'sft.optim.b1=0.9 for sft.optim.name=sgd'),
  ({'rl__clip': 0.1}, 'rl.clip=0.2 for rl.algorithm=reinforce, found 0.1'),
  ({'reward__microbatches': 3}, 'reward.microbatches to divide'),
  ({'reward__microbatches': 0}, 'reward.microbatches to be at least 1'),
  ({'reward__optim__learning_rate': 0.0}, 'positive'),
  ({'rl__top_k': 5}, 'rl.top_k=0'),
  ({'rl__regularizer': 'bregmann'}, "did you mean 'bregman'"),
  ({'rl__rules': ('lenght',)}, "did you mean 'length'"),
  ({'rl__rules': ('length',), 'rl__rule_weights': (1.0, 2.0)}, 'found 2 for 1'),
  ({'rl__reward_weight': 0.0}, 'nothing would be rewarded'),
  ({'rl__algorithm': 'experience'}, 'rl.algorithm to name a file of perl/rl'),
  ({'rl__baseline': 'leave_one_out'}, 'rl.samples of at least 2'),
  ({'rl__top_p': 0.9}, 'rl.top_p=1'),
  ({'rl__temperature': 0.0}, 'rl.temperature'),
  ({'stages': ('sft', 'rewrd')}, "did you mean 'reward'"),
  ({'stages': ('reward', 'sft')}, 'in order'),
  ({'stages': ()}, 'at least one stage'),
  ({'peft__targets': ('attn/(q',)}, 'regular expression'),
  ({'peft__targets': ()}, 'peft.targets'),
  ({'peft__targets': ('(?=attn)q',)}, 'no look-around'),
  ({'peft__targets': (1,)}, 'peft.targets to be a list, each text'),
  ({'rl__rules': (1, 2)}, 'rl.rules to be a list, each text'),
  ({'rl__rule_weights': ('a',)}, 'rl.rule_weights to be a list, each a number'),
  ({'data__buckets': (64.5,)}, 'data.buckets to be a list, each a whole number'),
  ({'data__also': (None,)}, 'data.also to be a list, each text'),
  ({'stages': (('sft',),)}, 'stages to be a list, each text'),
  ({'mesh__data': 0}, 'mesh'),
  ({'mesh__fsdp': -1}, 'at most one of them -1'),
  ({'data__also': ('toy', 'cofee')}, "data.also to name a file of perl/data/sets, found 'cofee'"),
  ({'data__name': 'hh_rlhf', 'data__parts': ('harmless-bse',)}, "did you mean 'harmless-base'"),
  ({'data__parts': ('some',)}, "expected data.parts among none for data.name=toy, found 'some'"),
  ({'data__folds': 1}, 'data.folds'),
  ({'data__folds': 5, 'data__fold': 5}, 'below data.folds'),
  ({'data__buckets': (128, 64)}, 'that rise'),
  ({'model__size': 'tinny'}, "did you mean 'tiny'"),
  ({'peft__name': 'lorra'}, "did you mean 'lora'"),
  ({'data__name': 'toyy'}, "did you mean 'toy'"),
])
def test_wrong_values_are_explained(values, said):
  with pytest.raises(ConfigError, match=said):
    validate.validate(changed(**values))


def test_parts_of_a_dataset_are_chosen_by_name():
  validate.validate(changed(data__name='shp', data__parts=('askvet', 'askdocs')))


def test_all_problems_are_told_at_once():
  with pytest.raises(ConfigError) as caught:
    validate.validate(changed(peft__rank=0, rl__top_k=5))
  assert 'peft.rank' in str(caught.value) and 'rl.top_k' in str(caught.value)


def test_lora_at_a_full_tuning_rate_warns():
  warnings = validate.validate(changed(reward__optim__learning_rate=1e-5))
  assert len(warnings) == 1 and 'reward.optim.learning_rate is 1e-05' in warnings[0]
  slow = changed(reward__optim__learning_rate=1e-5)
  slow.peft.name = 'full'
  assert validate.validate(slow) == []


@pytest.mark.parametrize('fields, said', [
  ({'model__dtype': 'bfloat16', 'rl__behaviour': 'sampler'}, 'rl.behaviour is sampler with model'),
  ({'rl__cache': 'int8', 'rl__behaviour': 'sampler'}, 'rl.behaviour is sampler with rl.cache')])
def test_what_is_seldom_meant_warns(fields, said):
  assert any(warning.startswith(said) for warning in validate.validate(changed(**fields)))


def test_a_warm_up_longer_than_the_run_warns():
  warning, = validate.validate(changed(reward__steps=5))
  assert 'reward.optim.warmup_steps is 10, of 5 steps' in warning


# --- Choices


CHOSEN = {'data.name': 'perl.data', 'data.also': 'perl.data', 'peft.name': 'perl.peft',
          'rl.algorithm': 'perl.rl', 'rl.rules': 'perl.rl', 'preference.method': 'perl.preference'}
"""Field -> the room in whose folder of choices its values are."""


def modules(room):
  """Every name of a module or package in a room, at any depth."""
  files = (pathlib.Path(choices.__file__).parent / room.removeprefix('perl.')).rglob('*.py')
  return {name for file in files for name in (file.stem, file.parent.name)}


@pytest.mark.parametrize('path', CHOSEN)
def test_no_other_file_of_a_room_is_a_choice(path):
  package = schema.FIELDS[path].package or 'perl.rl.rules'
  others = sorted(modules(CHOSEN[path]) - {*choices.names(package)})
  assert len(others) > 3
  wanted = f'{path} to name (a file|files) of {choices.folder(package)}'
  for name in others:
    value = (name,) if path in ('data.also', 'rl.rules') else name
    with pytest.raises(ConfigError, match=f'{wanted}.* found {name!r}'):
      validate.validate(changed(**{path.replace('.', '__'): value}))


@pytest.mark.parametrize('path', [p for p, field in schema.FIELDS.items() if field.package])
def test_every_file_of_a_folder_of_choices_may_be_chosen(path):
  field = schema.FIELDS[path]
  for name in choices.names(field.package):
    value = (name,) if field.default == () else name
    validate.validate(changed(**{path.replace('.', '__'): value}))


# --- Saved configs


def recorded(folder, **values):
  """The config.json of a run with these values."""
  folder.mkdir(exist_ok=True)
  file = folder / 'config.json'
  file.write_text(json.dumps(fields.plain(changed(**values))))
  return file


def test_code_that_a_saved_config_names_is_asked_for(tmp_path):
  file = recorded(tmp_path, rl__rules=('length', 'os:getcwd'))
  with pytest.raises(ConfigError, match="perl/rl/rules, found 'os:getcwd'.*ask for it: --"):
    command_line.read(str(file))
  asked = command_line.read(str(file), ["--config.rl.rules=('length', 'os:getcwd')"])
  assert asked.rl.rules == ('length', 'os:getcwd')
  assert command_line.read(str(file), ['--config.rl.rules=()']).rl.rules == ()
  assert command_line.read(str(recorded(tmp_path, rl__rules=('length',)))).rl.rules == ('length',)


@pytest.mark.parametrize('text', [
  '', '[]', 'null', '{"peft": 5}', '{"peft": {"rank": "a"}}', '{"peft": {"rank": [4]}}',
  '{"rl": {"rules": [1, 2]}}', '{"stages": 3}', '{"seed": null}', '{"data": []}', '[' * 10**5,
  '{"inputs": {"base": 1}}', '{"rl": {"samples": "many"}}', '{"peft": {"rank": 1e400}}',
])
def test_a_saved_config_of_other_types_is_named(text, tmp_path):
  (tmp_path / 'sft').mkdir()
  for folder in (tmp_path, tmp_path / 'sft'):
    (folder / 'config.json').write_text(text)
  (tmp_path / 'sft' / 'summary.json').write_text('{}')
  for read in (lambda: command_line.read(str(tmp_path / 'config.json')),
               lambda: identity.check_same(demo.get_config(), 'sft', epath.Path(tmp_path / 'sft'))):
    with pytest.raises(ConfigError, match='(?s)expected .*config.json, found'):
      read()
  assert runs.config(epath.Path(tmp_path)) == {}  # where it is only shown


@pytest.mark.parametrize(
  'text', ['', 'null', '[1]', '{"wall_seconds": "a"}', '{"gold_optimum": []}'])
def test_a_summary_of_another_kind_is_named(text, tmp_path):
  (tmp_path / 'sft').mkdir()
  (tmp_path / 'sft' / 'summary.json').write_text(text)
  with pytest.raises(ValueError, match='(?s)expected JSON .*summary.json, found'):
    runs.summary(epath.Path(tmp_path / 'sft'))
  assert runs.summaries(epath.Path(tmp_path)) == {}


@pytest.mark.parametrize('name', ['README.md', 'docs', '/dev/null', '', 'demo:\nx', 'x' * 5000])
def test_what_is_no_config_is_refused(name):
  with pytest.raises(ConfigError, match='(?s)expected .*found'):
    command_line.read(name)
