"""What methods cost: counts by hand, what is ignored or refused, the program."""

import json

import pytest
import toyrun as run

from experiments import studies
from experiments.studies import __main__ as program
from experiments.studies import costs
from perl import choices
from perl.config.fields import ConfigError

CONFIG = ['--config=configs/demo.py', '--config.model.size=nano',
          '--config.tokenizer.vocab_size=300']
BASE = 300 * 64 + 2 * (4 * 64 * 64 + 3 * 64 * 192 + 2 * 64) + 64
"""Parameters of the toy's nano model: embedding, layers, last norm."""


def one(stage, method, targets=('q',), rank=2, **how):
  return costs.row(run.config(), stage, costs.Choice(method, targets, rank), **how)


def test_counts_and_bytes_by_hand():
  lora, full = one('sft', 'lora', forecast=False), one('sft', 'full', None, None, forecast=False)
  trained = 2 * 2 * (64 + 64)  # layers, r (I + O)
  assert lora['trainable'] == trained and lora['share'] == trained / BASE
  assert lora['adapter_bytes'] == 4 * (trained + 2)  # and a scale a layer
  assert lora['optimizer_bytes'] == pytest.approx(2 * 4 * trained, abs=64)  # moments, counts
  assert full['trainable'] == BASE and full['adapter_bytes'] == 4 * BASE
  assert 'peak_bytes' not in lora


def test_heads_and_roles_are_counted():
  sft, reward, rl = (one(stage, 'lora', forecast=False) for stage in ('sft', 'reward', 'rl'))
  assert reward['trainable'] == sft['trainable'] + 65 + 4  # the demo's head reads likelihoods
  assert rl['trainable'] == 2 * sft['trainable'] + 65


def test_the_forecast_is_of_the_compiled_step():
  with run.small_world():
    small, large = (one('sft', 'lora', ('q', 'v'), rank, forecast=True) for rank in (1, 8))
  held = 4 * BASE + small['adapter_bytes'] + small['optimizer_bytes']
  assert small['held_bytes'] == held < small['peak_bytes'] < large['peak_bytes']
  assert 0 < small['flops'] < large['flops']


def test_a_method_that_ignores_targets_and_rank_has_one_row():
  chosen = costs.candidates(run.config(), 'sft', ['full', 'lora'], [('q',), ('q', 'v')], [1, 2])
  assert chosen[0] == costs.Choice('full', None, None)
  assert [(c.targets, c.rank) for c in chosen[1:]] == [
    (('q',), 1), (('q',), 2), (('q', 'v'), 1), (('q', 'v'), 2)]


def test_a_method_shows_the_sizes_that_it_follows():
  names = ['lora', 'houlsby', 'prefix', 'mole']
  chosen = costs.candidates(run.config(), 'sft', names, [('q',)], [1])
  assert [[*c.sizes] for c in chosen] == [[], ['bottleneck'], ['virtual_tokens'], ['experts']]


def test_a_refusal_is_a_row_with_its_reason():
  rows = [one('sft', 'lora', rank=65, forecast=True), one('sft', 'lora', ('x',), forecast=False)]
  assert 'from 1 to 64' in rows[0]['refused'] and 'matches none' in rows[1]['refused']
  text = studies.render('costs', {'rows': rows, 'notes': []})
  assert '| lora | q | 65 | refused |' in text and '* lora is refused: expected a rank' in text


def test_every_method_is_found_by_file_and_ordered():
  assert sorted(costs.methods('all')) == sorted(choices.names('perl.peft.methods'))
  assert costs.methods('lora,full') == ['full', 'lora']
  with pytest.raises(ConfigError, match="did you mean 'lora'"):
    costs.methods('lor')


def test_sizes_read_well():
  assert [costs.size(x) for x in (0, 512, 1536, 3 * 2**20, 5 * 2**40)] == [
    '0 B', '512 B', '1.50 KiB', '3.00 MiB', '5.00 TiB']


def test_the_program_prints_a_table_and_writes_json(tmp_path, capsys):
  path = tmp_path / 'methods.json'
  assert program.main(['costs', *CONFIG, '--methods=full,lora', '--targets=q;q,v', '--ranks=2,99',
                       '--no-forecast', '--stage=reward', f'--json={path}']) == 0
  text = capsys.readouterr().out
  assert '| lora | q, v | 2' in text and 'peak memory' not in text and 'is refused' in text
  result = run.read(path)
  assert len(result['rows']) == 1 + 4 and result['hardware'] and result['commit']
  assert result['rows'] == json.loads(json.dumps(result['rows'])) and result['stage'] == 'reward'
  assert studies.render('costs', result) in text


@pytest.mark.parametrize('flags, message', [
  (['--methods=lorra'], "did you mean 'lora'"),
  (['--targets=q;;v'], 'leave no part empty'),
  (['--ranks=0,1'], 'give positive numbers'),
  (['--rank=1'], 'expected flags of this program'),
])
def test_a_wrong_flag_ends_in_a_message(flags, message, capsys):
  assert program.main(['costs', *CONFIG, '--no_forecast', *flags]) == 2
  assert message in capsys.readouterr().err
