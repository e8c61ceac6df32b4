"""The studies made for published models: their folders and inputs, and their tables by hand."""

import json
import os
import pathlib
import sys
import types

import pytest

from experiments.studies import __main__ as program
from experiments.studies import _judged as judged
from experiments.studies import methods, preferences, qlora, settings
from experiments.studies._jobs import Spec
from perl.config.fields import flatten
from perl.jobs import _preflight


@pytest.fixture
def ran(monkeypatch, tmp_path):
  """{folder: its config} of the stages, none of which runs: each leaves a summary."""
  configs = {}

  def job(stage):
    def run(config, workdir):
      configs[os.path.relpath(workdir, tmp_path)] = config
      pathlib.Path(workdir, 'summary.json').write_text(
        '{"pair_accuracy": 0.6, "seed": 0, "parameters_trainable": 9}')
    return types.SimpleNamespace(run=run)

  for stage in ('tokenizer', 'pretrain', 'sft', 'reward', 'preference', 'rl', 'evaluate'):
    monkeypatch.setitem(sys.modules, f'perl.jobs.{stage}', job(stage))
  monkeypatch.setattr(_preflight, 'check', lambda *_: None)
  monkeypatch.setattr(preferences, 'longer', lambda spec: {'pair_accuracy': 0.5})
  monkeypatch.setattr(judged, 'win_rates', lambda places, reward, ask: {'evaluate': {}})
  return configs


def test_the_judge_learns_from_the_other_half(ran, tmp_path, capsys):
  assert program.main(['preferences', '--config=demo', f'--workdir={tmp_path}', '--seeds=1']) == 0
  made = [f'base/{stage}' for stage in ('tokenizer', 'pretrain', 'sft')]
  assert list(ran) == [
    *made, 'seed1/reward', 'seed1/preference', 'probe/reward', 'seed1/half/reward',
    'seed1/judge/reward', 'seed1/half/rl', 'seed1/half/evaluate', 'seed1/dpo/evaluate']
  half, judge = (ran[f'seed1/{name}/reward'].reward for name in ('half', 'judge'))
  assert half.max_examples == judge.max_examples == judge.skip_examples > half.skip_examples == 0
  inputs = ran['seed1/dpo/evaluate'].inputs
  assert inputs.policy == str(tmp_path / 'seed1/preference')
  assert inputs.reward == str(tmp_path / 'seed1/half/reward')
  assert ran['seed1/half/rl'].inputs.anchor == str(tmp_path / 'base/sft')
  assert ran['seed1/half/rl'].inputs.reward == inputs.reward
  assert ran['seed1/half/rl'].evaluate.max_examples > 0 == ran['seed1/reward'].evaluate.max_examples
  assert ran['probe/reward'].reward.probe and not ran['seed1/reward'].reward.probe
  assert '| pair accuracy: reward model | 0.600 |' in capsys.readouterr().out


def test_policies_are_judged_once(tmp_path, monkeypatch):
  asked = []
  monkeypatch.setattr(judged.judge, 'run', lambda options: asked.append(options) or {'win': 0.5})
  for name in ('rl', 'judge'):
    (tmp_path / name).mkdir()
    (tmp_path / name / 'summary.json').write_text('{}' if name == 'never' else '{"seed": 0}')
  places = {'RL': tmp_path / 'rl', 'DPO': tmp_path / 'none'}
  assert judged.win_rates(places, tmp_path / 'judge', ask=False) == {}
  for _ in range(2):
    assert judged.win_rates(places, tmp_path / 'judge', ask=True) == {'RL': {'win': 0.5}}
  assert len(asked) == 1 and asked[0].theirs.endswith('rl:before')


def test_the_table_of_preferences():
  rows = [{'seed': seed, 'reward': {'pair_accuracy': 0.6 + 0.1 * seed, 'pair_accuracy_low': 0.5,
                                    'pair_accuracy_high': 0.7},
           'evaluate': {'reward_before': 0.0, 'reward': 1.0, 'length_gain': 1.0,
                        'length_share_by_bins': 0.8}, 'wins': {'evaluate': {'win_rate': 0.75}}}
          for seed in (0, 1)]
  _, body, notes = preferences.table(
    {'rows': rows, 'longer': {'pair_accuracy': 0.46}, 'probe': {}})
  lines = dict(body)
  assert lines['pair accuracy: the longer one'] == '0.460'
  assert lines['pair accuracy: reward model'] == '0.650 ± 0.635 [0.500, 0.700]'
  assert lines['RL: share that is length, by bins'] == '0.800 ± 0.000'
  assert lines["RL: win rate against the anchor, by the other half's"] == '0.750 ± 0.000'
  assert not any('DPO' in name for name in lines) and 'seeds 0, 1' in notes[-1]


def test_rows_of_precisions_stand_on_their_own_anchors(ran, tmp_path, capsys):
  command = ['qlora', '--config=demo', f'--workdir={tmp_path}', '--seeds=0',
             '--only=float32,nf4_double']
  assert program.main([*command, f'--json={tmp_path / "found.json"}']) == 0
  assert list(ran)[2:] == [f'seed0/{name}/{stage}' for name in ('float32', 'nf4_double')
                           for stage in ('sft', 'reward')]
  assert (ran['seed0/nf4_double/sft'].model.quantize, ran['seed0/float32/sft'].model.quantize) == (
    'nf4', '')
  assert ran['seed0/nf4_double/reward'].inputs.base == str(tmp_path / 'base/pretrain')
  found = json.loads((tmp_path / 'found.json').read_text())
  assert [row['name'] for row in found['rows']] == ['float32', 'nf4_double']
  assert found['sizes']['float32']['bits'] == 32


def test_sizes_of_precisions_are_those_of_their_layout():
  spec = Spec('demo', ['--config.model.size=tiny'], 'runs/none')
  sizes = {name: qlora.sizes(spec, row) for name, row in qlora.ROWS.items()}
  assert [sizes[name]['bits'] for name in ('int8', 'nf4', 'fp4')] == [8.5, 4.5, 4.5]
  assert 4.1 < sizes['nf4_double']['bits'] < 4.2
  assert sizes['nf4']['bytes'] < sizes['int8']['bytes'] < sizes['float32']['bytes']


def test_the_table_of_precisions():
  row = lambda name, seed, accuracy: {'name': name, 'seed': seed, 'peft': name, 'reward': {
    'pair_accuracy': accuracy, 'auc': 0.7, 'auc_low': 0.6, 'auc_high': 0.8,
    'peak_memory_bytes': 2**20, 'step_seconds': 1.0}}
  rows = [row('float32', 0, 0.6), row('float32', 1, 0.7), row('nf4', 0, 0.5), row('nf4', 1, 0.65)]
  sizes = {name: {'bits': 4.5, 'bytes': 2**20} for name in qlora.ROWS}
  head, body, notes = qlora.table({'rows': rows, 'sizes': sizes})
  assert [line[:4] for line in body] == [['float32', '4.5', '1', '1'], ['nf4', '4.5', '1', '1']]
  assert any(note.startswith('RM pair accuracy, less that over float32') and 'nf4 -0.075' in note
             for note in notes)
  assert '[0.600, 0.800]' in notes[-2] and head[-1] == 'Super-NI'


def test_the_published_table_stands_beside_descriptions():
  row = {'name': 'lora', 'peft': 'lora', 'seed': 0, 'learning_rate': 1e-3,
         'sft': {'test_loss': 1.0, 'test_bleu': 55.25, 'test_rouge_l': 0.6,
                 'parameters_trainable': 9}}
  head, body, _ = methods.table({'rows': [row, row | {'name': 'vera', 'peft': 'vera'}]})
  assert head[-1].startswith('Hu et al.') and body[0][-1] == '70.4, 0.718' and body[1][-1] == '–'
  assert body[0][head.index('BLEU')] == '55.2'


def test_settings_vary_one_thing_at_a_time(ran, tmp_path):
  assert program.main(['settings', '--config=published', f'--workdir={tmp_path}', '--seeds=0',
                       '--config.stages=("tokenizer", "pretrain", "sft")', '--ranks=4']) == 0
  own = ran['seed0/lora/sft']
  changed = {folder.split('/')[1]: {
    path for path, value in flatten(config).items() if flatten(own)[path] != value}
    for folder, config in ran.items() if folder.startswith('seed0')}
  rate = {f'{stage}.optim.learning_rate' for stage in ('sft', 'reward', 'preference', 'rl')}
  assert changed == {
    'lora': set(), 'lora_x0.3': rate, 'lora_x3': rate, 'lora_r4': {'peft.rank', 'peft.alpha'},
    'lora_attention': {'peft.rank', 'peft.alpha', 'peft.targets'},
    **{name: changed[name] for name in ('full', 'full_x0.3', 'full_x3')}}
  assert 'peft.name' in changed['full']
  # tiny: 4 x 256 numbers a rank and layer in attention, 3 x 512 more in the MLP
  assert ran['seed0/lora_attention/sft'].peft.rank == 16 * (1024 + 1536) // 1024


def test_the_best_rates_stand_beside_the_rules():
  row = lambda name, peft, rate, loss: {
    'name': name, 'peft': peft, 'seed': 0, 'learning_rate': rate,
    'sft': {'loss': loss, 'parameters_trainable': 1000}}
  rows = [row('lora', 'lora', 1e-3, 0.5), row('lora_x3', 'lora', 3e-3, 0.6),
          row('lora_r4', 'lora', 5e-3, 0.1), row('full', 'full', 1e-4, 0.5),
          row('full_x0.3', 'full', 3e-5, 0.6)]
  _, body, notes = settings.table({'rows': rows})
  assert body[0] == ['lora', '1,000', '0.001', '0.5000']
  assert 'LoRA at 0.001, of full tuning at 0.0001, 10 times' in notes[0]
