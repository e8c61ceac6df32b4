"""Jobs on a Hugging Face folder: what they train, transformers and peft compute alike."""

import argparse
import json
import pathlib
import shutil
import sys

import jax
import numpy as np
import pytest
import releases
import toyrun

from experiments.studies import crossvalidate, sweep
from experiments.studies._jobs import Spec
from perl import paths
from perl.cli import convert, launch
from perl.config import command_line
from perl.config.fields import ConfigError, flatten
from perl.config.validate import validate
from perl.data.examples import Demonstration
from perl.data.sets import arithmetic
from perl.data.text import chat
from perl.data.text import tokenizer as tokenizers
from perl.evaluate import merging
from perl.hub import adapters as peft_format
from perl.hub import pretrained
from perl.jobs import _reading, rl
from perl.jobs._artefacts import Artefacts
from perl.jobs._run import Run
from perl.models import lm
from perl.train import checkpoint, storage

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / 'data'))
import checkpoints  # noqa: E402

transformers = releases.transformers
peft = pytest.importorskip('peft')
STAGES = ('sft', 'reward', 'rl', 'evaluate')


def published(folder: pathlib.Path, family: str = 'qwen2', **options) -> pathlib.Path:
  """A small random model with a tokenizer and a chat template, as the hub has them."""
  checkpoints.qwen2(folder, chat_template=checkpoints.CHATML, eos_token='<|endoftext|>')
  rows = transformers.AutoTokenizer.from_pretrained(folder)
  config = dict(
    vocab_size=len(rows) + 3, hidden_size=32, intermediate_size=48, head_dim=8,
    max_position_embeddings=256, tie_word_embeddings=True)
  releases.make(family, noise=0.05, **{**config, **options}).save_pretrained(folder)
  return folder


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """(the checkpoint's folder, the workdir of a finished pipeline over it)."""
  tmp = tmp_path_factory.mktemp('published')
  folder = published(tmp / 'hub')
  made = config(folder)
  with toyrun.small_world():
    launch.run_stages(made, made.stages, tmp / 'run')
  return folder, tmp / 'run'


def config(folder, **overrides):
  """toyrun's, over a checkpoint."""
  made = toyrun.config(
    model__checkpoint=str(folder), stages=STAGES, data__max_prompt_tokens=160,
    data__max_response_tokens=80, reward__reads=(), reward__probe=False, **overrides)
  for stage in STAGES[:3]:
    made[stage].steps, made[stage].optim.learning_rate = 3, 1e-2
  validate(made)
  return made


def setting(run, stage) -> Run:
  return Run(command_line.saved(run[1] / stage / 'config.json'), str(run[1] / stage), stage)


def test_the_base_is_never_written_and_never_changed(run):
  folder, workdir = run
  assert {p.name for p in workdir.iterdir() if p.is_dir()} == set(STAGES)
  base = Artefacts(setting(run, 'sft')).base()
  assert base.digest == pretrained.digest(folder)
  theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
  tokens, mask = releases.rows()
  expected = releases.logits(theirs, tokens, mask)
  ours = releases.ours(base.model, base.params, {}, tokens, mask)
  assert releases.distance(ours, expected, mask) < 1e-4


def test_prompts_are_the_chat_template_and_responses_end_with_its_turn(run):
  folder, _ = run
  where = setting(run, 'rl')
  with toyrun.small_world():
    data = Artefacts(where).data
    example = data.examples('dev', 'demonstration')[0]
    row = data.rows([example], 'demonstration')[0]
  theirs = transformers.AutoTokenizer.from_pretrained(folder)
  text = theirs.decode(row['tokens'])
  assert text.startswith('<|im_start|>') and text.endswith('<|im_end|>')
  assert '<|user|>' not in text and '<|agent|>' not in text
  assert data.tokenizer.eos_id == theirs.convert_tokens_to_ids('<|im_end|>')
  said = theirs.decode(row['tokens'][row['loss_mask']])
  assert said == example.response + '<|im_end|>'


def stops_as_trained(where: Run, folder: pathlib.Path) -> None:
  """A folder's files say of generation what sampling did: <|im_end|> first, then the base's own."""
  trained = Artefacts(where).tokenizer
  stops = [trained.encode('<|im_end|>')[0], releases.IDS['eos_token_id']]
  stops.insert(1, trained.encode('<|endoftext|>')[0])
  assert list(trained.stop_ids) == stops
  assert transformers.GenerationConfig.from_pretrained(folder).eos_token_id == stops
  assert transformers.AutoTokenizer.from_pretrained(folder).eos_token_id == stops[0]
  if (folder / 'config.json').exists():
    assert transformers.AutoConfig.from_pretrained(folder).eos_token_id == stops


def test_an_adapter_of_other_texts_is_refused(run, tmp_path):
  """The same weights and vocabulary behind another template are not what it was trained on."""
  folder, workdir = run
  shutil.copytree(folder, tmp_path / 'hub')
  made = command_line.saved(workdir / 'reward' / 'config.json')
  with made.unlocked():
    made.model.checkpoint = str(tmp_path / 'hub')
  where = Run(made, '', 'reward')
  base = Artefacts(where).base()
  Artefacts(where).adapter(str(workdir / 'sft'), base)
  file = tmp_path / 'hub' / 'tokenizer_config.json'
  about = json.loads(file.read_text())
  about['chat_template'] = '{# new #}' + about['chat_template']
  file.write_text(json.dumps(about))
  with pytest.raises(checkpoint.MismatchError, match="text: expected {.*'template'"):
    Artefacts(where).adapter(str(workdir / 'sft'), base)


def test_a_stage_that_reads_other_texts_behind_one_path_has_read_something_else(tmp_path):
  """Another template, stop or, where the template asks for it, day."""
  def read(date='2025-12-24', stops=None, **config):
    folder = tmp_path / str(len(list(tmp_path.iterdir())))
    checkpoints.qwen2(folder, **{'chat_template': checkpoints.CHATML, **config})
    if stops:
      (folder / 'generation_config.json').write_text(json.dumps({'eos_token_id': stops}))
    made = toyrun.config(model__checkpoint=str(folder), data__date=date)
    return _reading.of_inputs(flatten(made), 'tokenizer', str)['tokenizer.path']

  clock = "{{ strftime_now('%d') }}" + checkpoints.CHATML
  assert read() == read(date='2025-12-25')
  digests = {read(), read(chat_template=checkpoints.QWEN2), read(stops=[1, 2]),
             read(chat_template=clock), read(chat_template=clock, date='2025-12-25')}
  assert len(digests) == 5


@pytest.mark.parametrize('stage', ['sft', 'rl'])
def test_what_was_trained_has_the_same_logits_in_peft(run, stage, tmp_path):
  """The README's promise: point a job at a folder, train, and load the result with PEFT."""
  folder, workdir = run
  assert convert.main(
    ['export', f'--stage={workdir / stage}', f'--out={tmp_path / "out"}']) == 0
  about = json.loads((tmp_path / 'out' / 'adapter_config.json').read_text())
  assert about['base_model_name_or_path'] == str(folder)
  plain = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation='eager')
  theirs = peft.PeftModel.from_pretrained(plain, tmp_path / 'out').eval()
  where = setting(run, stage)
  base = Artefacts(where).base() if stage == 'sft' else Artefacts(where).anchor()
  adapter, _ = Artefacts(where).adapter(str(workdir / stage), base)
  tokens, mask = releases.rows()
  expected = releases.ours(base.model, base.params, adapter, tokens, mask)
  assert releases.distance(releases.logits(theirs, tokens, mask), expected, mask) < 1e-4
  stops_as_trained(where, tmp_path / 'out')
  untrained = releases.ours(base.model, Artefacts(where).base().params, {}, tokens, mask)
  assert releases.distance(untrained, expected, mask) > 1e-3


def test_a_reward_model_has_the_same_scores_in_peft(run, tmp_path):
  folder, workdir = run
  assert convert.main(
    ['export', f'--stage={workdir / "reward"}', f'--out={tmp_path / "out"}']) == 0
  plain = transformers.AutoModelForSequenceClassification.from_pretrained(
    folder, num_labels=1, pad_token_id=releases.PAD, attn_implementation='eager')
  theirs = peft.PeftModel.from_pretrained(plain, tmp_path / 'out').eval()
  where = setting(run, 'reward')
  anchor = Artefacts(where).anchor()
  adapter, _ = Artefacts(where).adapter(str(workdir / 'reward'), anchor)
  tokens, mask = releases.rows(padding='left')
  expected = np.asarray(lm.score(anchor.model, anchor.params, adapter, tokens, mask))
  assert releases.distance(releases.logits(theirs, tokens, mask)[:, 0], expected) < 1e-4


@pytest.mark.parametrize('stage', ['rl', 'reward'])
def test_a_whole_model_goes_out(run, stage, tmp_path):
  folder, workdir = run
  out = tmp_path / 'out'
  assert convert.main(
    ['export', f'--stage={workdir / stage}', '--form=merged', f'--out={out}']) == 0
  kind = transformers.AutoModelForCausalLM
  if stage == 'reward':
    kind = transformers.AutoModelForSequenceClassification
  theirs = kind.from_pretrained(out, attn_implementation='eager', pad_token_id=releases.PAD)
  where = setting(run, stage)
  anchor = Artefacts(where).anchor()
  adapter, _ = Artefacts(where).adapter(str(workdir / stage), anchor)
  tokens, mask = releases.rows(padding='left')
  found = releases.logits(theirs, tokens, mask)
  if stage == 'rl':
    expected = releases.ours(anchor.model, anchor.params, adapter, tokens, mask)
    assert releases.distance(found, expected, mask) < 1e-4
  else:
    expected = lm.score(anchor.model, anchor.params, adapter, tokens, mask)
    assert releases.distance(found[:, 0], expected) < 1e-4
  one, other = (transformers.AutoTokenizer.from_pretrained(f) for f in (folder, out))
  stops_as_trained(where, out)
  chat = [{'role': 'user', 'content': 'a latte'}]
  assert one.apply_chat_template(chat)['input_ids'] == other.apply_chat_template(chat)['input_ids']


def test_an_adapter_alone_lies_over_the_anchor(run, tmp_path):
  _, workdir = run
  for stage, form in (('sft', 'merged'), ('rl', 'alone')):
    assert convert.main(['export', f'--stage={workdir / stage}', f'--form={form}',
                         f'--out={tmp_path / stage}']) == 0
  model, anchor, _ = pretrained.load(tmp_path / 'sft')
  adapter = peft_format.load(tmp_path / 'rl', anchor)
  where = setting(run, 'rl')
  own = Artefacts(where).anchor()
  learnt, _ = Artefacts(where).adapter(str(workdir / 'rl'), own)
  tokens, mask = releases.rows()
  assert releases.distance(releases.ours(model, anchor, adapter, tokens, mask),
                      releases.ours(own.model, own.params, learnt, tokens, mask), mask) < 1e-5


def test_a_job_goes_on_from_an_adapter_of_peft(run, tmp_path):
  """The policy starts as the exported one, over the checkpoint itself."""
  folder, workdir = run
  assert convert.main(['export', f'--stage={workdir / "sft"}', f'--out={tmp_path / "sft"}']) == 0
  made = config(
    folder, rl__adapter=str(tmp_path / 'sft'), inputs__anchor='base',
    inputs__reward=str(workdir / 'reward'))
  where = Run(made, str(tmp_path / 'rl'), 'rl')
  base = Artefacts(where).anchor()
  assert base.digest == pretrained.digest(folder)
  start = rl.fresh(Artefacts(where), base, 'policy')
  learnt, _ = Artefacts(setting(run, 'sft')).adapter(str(workdir / 'sft'), base)
  jax.tree.map(np.testing.assert_array_equal, start, learnt)
  made = config(folder, sft__adapter=str(tmp_path / 'sft'))
  with toyrun.small_world():
    launch.run_stages(made, ('sft',), tmp_path / 'more')
  where = Run(made, str(tmp_path / 'more' / 'sft'), 'sft')
  further, meta = Artefacts(where).adapter(where.workdir, base)
  assert meta['started_from'] == str(tmp_path / 'sft') and 'rank' not in meta
  moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), further, learnt)
  assert max(jax.tree.leaves(moved)) > 1e-4


def test_an_instruct_model_is_its_own_anchor(run, tmp_path):
  folder, _ = run
  made = config(folder, inputs__anchor='base')
  with toyrun.small_world():
    launch.run_stages(made, ('reward',), tmp_path / 'run')
  assert (tmp_path / 'run' / 'reward' / 'summary.json').exists()
  assert convert.main(
    ['export', f'--stage={tmp_path / "run/reward"}', f'--out={tmp_path / "out"}']) == 0
  base = Artefacts(Run(made, str(tmp_path / 'run' / 'reward'), 'reward')).base()
  again = peft_format.load(tmp_path / 'out', base.params, base_digest=base.digest)
  own, _ = Artefacts(Run(made, '', 'reward')).adapter(str(tmp_path / 'run' / 'reward'), base)
  jax.tree.map(np.testing.assert_allclose, again, own)


def test_an_import_serves_as_base_and_as_checkpoint(run, tmp_path):
  folder, workdir = run
  out = tmp_path / 'imported'
  assert convert.main(['import', f'--folder={folder}', f'--out={out}']) == 0
  assert pretrained.digest(out) == pretrained.digest(folder)
  for made in (config(out), config('', inputs__base=str(out), inputs__tokenizer=str(out))):
    made.model.checkpoint = made.model.checkpoint or str(folder)
    base = Artefacts(Run(made, str(tmp_path / 'sft'), 'sft')).base()
    finished = Artefacts(Run(made, str(workdir / 'sft'), 'sft'))
    adapter, _ = finished.adapter(str(workdir / 'sft'), base)
    assert merging.logit_difference(
      base.model, base.params, adapter, *releases.rows()) < 1e-4
  assert convert.main(['import', f'--folder={folder}', f'--out={out}']) == 2  # not empty


def test_pretraining_goes_on_from_a_checkpoint(run, tmp_path):
  folder, _ = run
  made = config(folder, pretrain__steps=2)
  made.stages = ('pretrain', 'sft')
  with toyrun.small_world():
    launch.run_stages(made, made.stages, tmp_path / 'run')
  where = Run(made, str(tmp_path / 'run' / 'sft'), 'sft')
  base = Artefacts(where).base()
  before = pretrained.load(folder)[1]
  after, before = (np.asarray(x['final_norm']['scale']) for x in (base.params, before))
  assert 0 < np.abs(after - before).max() < 0.1
  assert convert.main(['export', f'--stage={tmp_path / "run/pretrain"}',
                       f'--out={tmp_path / "out"}']) == 0
  theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'out')
  tokens, mask = releases.rows()
  expected = releases.ours(base.model, base.params, {}, tokens, mask)
  assert releases.distance(releases.logits(theirs, tokens, mask), expected, mask) < 1e-4


def test_a_checkpoint_and_an_adapter_become_one(run, tmp_path, capsys):
  folder, workdir = run
  assert convert.main(['export', f'--stage={workdir / "rl"}', f'--out={tmp_path / "ad"}']) == 0
  capsys.readouterr()
  assert convert.main(['merge', f'--folder={folder}', f'--adapter={tmp_path / "ad"}',
                       f'--out={tmp_path / "out"}']) == 0
  stops_as_trained(setting(run, 'rl'), tmp_path / 'out')
  said = capsys.readouterr().out
  assert float(said.split('merge_logit_difference ')[1].split()[0]) < 1e-3
  theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation='eager')
  with_adapter = peft.PeftModel.from_pretrained(theirs, tmp_path / 'ad').eval()
  merged = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path / 'out', attn_implementation='eager')
  tokens, mask = releases.rows()
  expected = releases.logits(with_adapter, tokens, mask)
  assert releases.distance(releases.logits(merged, tokens, mask), expected, mask) < 1e-4


def test_what_is_in_a_checkpoint_is_told(run, capsys):
  folder, workdir = run
  assert convert.main(['inspect', f'--folder={folder}', '--json']) == 0
  found = json.loads(capsys.readouterr().out)
  theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
  assert found['parameters'] == theirs.num_parameters()
  assert found['digest'] == pretrained.digest(folder)
  assert found['tokenizer']['chat_template'] is True and found['tokenizer']['adds_bos'] is False
  assert convert.main(['inspect', f'--folder={folder}']) == 0
  assert 'layers/block/attn/q/kernel' in capsys.readouterr().out


@pytest.mark.parametrize('arguments, words', [
  (['inspect', '--folder=/nowhere'], ['config.json', '/nowhere']),
  (['export', '--stage=/nowhere', '--out=x'], ['finished stage', '/nowhere']),
  (['merge', '--folder=/nowhere', '--adapter=/nowhere', '--out=x'], ['/nowhere']),
])
def test_what_cannot_be_converted_ends_in_words(arguments, words, capsys):
  assert convert.main(arguments) == 2
  said = capsys.readouterr().err
  assert all(word in said for word in ['expected', 'found', *words]), said


def test_a_wrong_checkpoint_is_refused_before_anything_runs(run, tmp_path):
  folder, _ = run
  with pytest.raises(ConfigError, match='model.checkpoint: expected a checkpoint'):
    config(tmp_path)
  with pytest.raises(ConfigError, match='peft.name=lora to start rl'):
    config(folder, rl__adapter='somewhere', peft__name='full')


def test_a_pad_without_a_row_of_the_embedding_is_no_obstacle(tmp_path):
  folder = checkpoints.byte_level(tmp_path / 'hub', ('</s>', '<pad>'), {
    'bos_token': None, 'eos_token': '</s>', 'pad_token': '<pad>'})
  rows = len(transformers.AutoTokenizer.from_pretrained(folder)) - 1
  releases.make('llama', vocab_size=rows, pad_token_id=None).save_pretrained(folder)
  artefacts = Artefacts(Run(config(folder), '', 'sft'))
  assert artefacts.model().config.vocab_size == rows
  assert artefacts.tokenizer.pad_id == artefacts.tokenizer.eos_id < rows
  example = Demonstration('a', 'b<pad>', meta={'source': 'a.jsonl, line 2'})
  with pytest.raises(ValueError, match="a.jsonl, line 2: .*'<pad>', which has no row"):
    artefacts.data.rows([example], 'demonstration')


def test_a_run_over_another_checkpoint_is_refused(run, tmp_path):
  folder, workdir = run
  other = published(tmp_path / 'hub')
  with pytest.raises(ConfigError, match='model.checkpoint: expected'):
    launch.run_stages(config(other), ('sft',), workdir)


def test_stages_that_a_checkpoint_replaces_fall_away(run):
  folder, _ = run
  spec, flag = 'configs/coffee.py', f'--config.model.checkpoint={folder}'
  assert command_line.read(spec, [flag]).stages == STAGES
  named = "--config.stages=('pretrain','sft')"
  assert command_line.read(spec, [flag, named]).stages == ('pretrain', 'sft')
  assert 'pretrain' in command_line.read(spec).stages
  over = command_line.read(f'{spec}:checkpoint={folder}')
  assert over.stages == STAGES and over.reward.reads == () and not over.reward.probe


def test_arithmetic_over_a_checkpoint_reads_its_ids_whatever_lies_in_the_workdir(
    run, tmp_path, monkeypatch):
  """By the launcher, in a folder with a small tokenizer of its own that an earlier run made."""
  folder, _ = run
  monkeypatch.setattr(arithmetic, 'SIZES', {
    kind: dict.fromkeys(splits, 16) for kind, splits in arithmetic.SIZES.items()})
  flags = [f'--workdir={tmp_path}', '--config.stages=("tokenizer","rl")', *(
    f'--config.{field}' for field in (
      'inputs.anchor=base', 'rl.steps=2', 'rl.batch_size=8', 'rl.samples=4', 'rl.max_new_tokens=4',
      'rl.evaluate_every_steps=2', 'evaluate.max_examples=8', 'evaluate.batch_size=8',
      'data.max_prompt_tokens=96', 'data.max_response_tokens=16', 'model.scan_unroll=1',
      'rl.optim.warmup_steps=1'))]
  small = ['--config=arithmetic', f'--workdir={tmp_path}', '--job=tokenizer']
  assert launch.main(small) == 0
  assert tokenizers.load(tmp_path / 'tokenizer').vocab_size <= 400
  with toyrun.small_world():
    assert launch.main([f'--config=arithmetic:checkpoint={folder}', *flags]) == 0
  made = command_line.saved(tmp_path / 'rl' / 'config.json')
  own = Artefacts(Run(made, str(tmp_path / 'rl'), 'rl'))
  assert own.tokenizer.digest == chat.of(tokenizers.load(folder))[1].digest
  meta = storage.read_about(paths.absolute(tmp_path / 'rl' / 'adapter'))['meta']
  assert meta['tokenizer'] == own.tokenizer.digest
  named = [f'--config.inputs.tokenizer={tmp_path / "tokenizer"}', '--config.seed=1']
  assert launch.main([f'--config=arithmetic:checkpoint={folder}', *flags, *named]) == 2


@pytest.mark.parametrize('field', ['tokenizer__path', 'inputs__tokenizer'])
def test_a_tokenizer_whose_ids_mean_others_than_the_checkpoints_is_refused(
    run, field, tmp_path):
  folder, _ = run
  ours = small_tokenizer(tmp_path / 'ours', 270)
  read = lambda **more: Artefacts(Run(config(folder, **more), str(tmp_path), 'sft')).tokenizer
  with pytest.raises(ValueError, match='expected the tokenizer of .* id 0 is .*foreign=true'):
    read(**{field: str(ours)})
  assert read(**{field: str(ours)}, tokenizer__foreign=True).vocab_size <= 270
  alike = tokenizers.load(folder)
  alike.save(tmp_path / 'alike')
  (tmp_path / 'alike' / 'summary.json').write_text('{}')
  assert read(**{field: str(tmp_path / 'alike')}).digest == read().digest
  bare = tmp_path / 'bare'
  shutil.copytree(folder, bare, ignore=shutil.ignore_patterns('tokenizer*', 'chat*', 'special*'))
  read = lambda **more: Artefacts(Run(config(bare, **more), str(tmp_path), 'sft')).tokenizer
  small = small_tokenizer(tmp_path / 'small', 265)
  with pytest.raises(ValueError, match='about the 306 ids that .* found 26. in .*foreign'):
    read(**{field: str(small)})
  assert read(**{field: str(tmp_path / 'alike')}).digest == chat.of(alike)[1].digest


def small_tokenizer(place, size):
  """One of ours, as a finished stage leaves it."""
  tokenizers.train_bpe(['an oat latte please'] * 9, size).save(place)
  (place / 'summary.json').write_text('{}')
  return place


def test_sweeps_and_folds_over_a_checkpoint_make_no_base(run, tmp_path):
  folder, _ = run
  spec = Spec(f'configs/coffee.py:checkpoint={folder}', (), str(tmp_path))
  options = argparse.Namespace(bases='shared', reward_from='lora')
  row = sweep.row(spec, options, 'lora', 1)
  assert row.inputs.base == row.inputs.tokenizer == '' and row.model.checkpoint == str(folder)
  fold = crossvalidate.row(spec, 'lora', 3, 2)
  assert fold.inputs.base == fold.inputs.tokenizer == ''
  assert fold.inputs.anchor == str(tmp_path / 'fold2' / 'sft')


@pytest.mark.parametrize('stage', ['rl', 'reward'])
def test_the_check_compares_with_transformers_and_peft(run, stage, tmp_path, capsys):
  folder, workdir = run
  out = tmp_path / 'out'
  assert convert.main(['export', f'--stage={workdir / stage}', f'--out={out}']) == 0
  result = tmp_path / 'result.json'
  assert convert.main(
    ['check', f'--folder={folder}', f'--adapter={out}', f'--json={result}']) == 0
  found = json.loads(result.read_text())
  assert found['compared'] == {'rl': 'logits', 'reward': 'scores'}[stage]
  assert found['relative'] < 1e-4 and 'versions' in found
  capsys.readouterr()
  assert convert.main(['check', f'--folder={folder}']) == 0
  assert float(capsys.readouterr().out.split('relative ')[1]) < 1e-4


def test_the_check_sees_a_difference(run, tmp_path):
  folder, workdir = run
  out = tmp_path / 'out'
  assert convert.main(['export', f'--stage={workdir / "rl"}', f'--out={out}']) == 0
  about = json.loads((out / 'adapter_config.json').read_text())
  from perl.hub import peer
  from perl.hub.adapters import _config as config_file
  tokens, mask = releases.rows()
  before = peer.outputs(str(folder), str(out), tokens, mask, scored=False)
  file = out / 'adapter_config.json'
  file.write_text(json.dumps(about | {'lora_alpha': 64}))
  assert config_file.lora(config_file.parse(file), file).default_alpha == 64
  after = peer.outputs(str(folder), str(out), tokens, mask, scored=False)
  assert np.abs(after - before).max() > 1e-3


def test_sft_on_whole_chats(run, tmp_path):
  folder, _ = run
  made = config(folder, sft__whole_chats=True)
  with toyrun.small_world():
    launch.run_stages(made, ('sft',), tmp_path / 'run')
    rows = Artefacts(Run(made, str(tmp_path / 'run/sft'), 'sft')).data.demonstrations('dev')
  assert np.isfinite(toyrun.read(tmp_path / 'run/sft/summary.json')['loss'])
  edges = [np.diff(row['loss_mask'].astype(int)) for row in rows]
  assert max((e == 1).sum() for e in edges) > 1  # several turns in one row
  without = config(folder, sft__whole_chats=True, data__chat_template=False)
  with toyrun.small_world(), pytest.raises(ValueError, match='chat template'):
    Artefacts(Run(without, str(tmp_path), 'sft')).data.demonstrations('dev')


def test_an_anchor_and_a_reward_model_may_be_those_of_peft(run, tmp_path):
  """SFT's is merged into the anchor; RL has a reward model over the base itself."""
  folder, workdir = run
  for stage in ('sft', 'reward'):
    assert convert.main(
      ['export', f'--stage={workdir / stage}', f'--out={tmp_path / stage}']) == 0
  made = config(folder, inputs__anchor=str(tmp_path / 'sft'))
  anchor = Artefacts(Run(made, str(tmp_path / 'x'), 'reward')).anchor()
  own = Artefacts(setting(run, 'reward')).anchor()
  jax.tree.map(np.testing.assert_array_equal, anchor.params, own.params)
  made.inputs.reward = str(tmp_path / 'reward')
  with pytest.raises(ValueError, match='expected inputs.anchor=base'):
    Artefacts(Run(made, '', 'rl')).adapter(made.inputs.reward, anchor)
  made.inputs.anchor = 'base'
  made.inputs.reward = str(tmp_path / 'sft')
  with pytest.raises(ValueError, match='without a head'):
    base = Artefacts(Run(made, '', 'rl')).base()
    Artefacts(Run(made, '', 'rl')).adapter(made.inputs.reward, base)
  made.inputs.reward = str(tmp_path / 'reward')
  with toyrun.small_world():
    summary = launch.run_stages(made, ('rl',), tmp_path / 'run')
  assert np.isfinite(summary['rl']['reward'])


def test_greedy_answers_of_peft_are_those_of_the_evaluation(run, tmp_path):
  """The whole way by transformers and PEFT: chat template, tokenizer, adapter, decoding."""
  folder, workdir = run
  out = tmp_path / 'out'
  assert convert.main(['export', f'--stage={workdir / "rl"}', f'--out={out}']) == 0
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  plain = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation='eager')
  theirs = peft.PeftModel.from_pretrained(plain, out).eval()
  samples = toyrun.read(workdir / 'evaluate' / 'samples.json')
  stop = tokenizer.convert_tokens_to_ids('<|im_end|>')
  for sample in samples:
    ids = tokenizer.apply_chat_template(
      chat.as_messages(sample['prompt']), add_generation_prompt=True, return_tensors='pt')
    ids = ids['input_ids'][:, -160:]
    said = theirs.generate(input_ids=ids, do_sample=False, max_new_tokens=8, eos_token_id=stop)
    text = tokenizer.decode(said[0, ids.shape[1]:]).removesuffix('<|im_end|>').strip()
    assert text == sample['after']
  assert len(samples) == 3
