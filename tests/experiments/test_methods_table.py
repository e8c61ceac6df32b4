"""The table of methods: counts by hand, what is ignored or refused, JSON; published figures."""

import json
from fractions import Fraction

import pytest
import toyrun as run

from experiments.methods import __main__ as program
from experiments.methods import costs, publications, published, table
from perl import choices
from perl.config.fields import ConfigError

CONFIG = ['--config=configs/demo.py', '--config.model.size=nano',
          '--config.tokenizer.vocab_size=300']
BASE = 300 * 64 + 2 * (4 * 64 * 64 + 3 * 64 * 192 + 2 * 64) + 64
"""Parameters of the toy's nano model: embedding, layers, last norm."""


def one(stage, method, targets=('q',), rank=2, **how):
  return costs.row(run.config(), stage, costs.Choice(method, targets, rank), **how)


# --- Costs


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
  text = table.markdown(rows)
  assert '| lora | q | 65 | refused |' in text and '* lora is refused: expected a rank' in text


def test_every_method_is_found_by_file_and_ordered():
  assert sorted(costs.methods('all')) == choices.names('perl.peft.methods')
  assert costs.methods('lora,full') == ['full', 'lora']
  with pytest.raises(ConfigError, match="did you mean 'lora'"):
    costs.methods('lor')


def test_sizes_read_well():
  assert [table.size(x) for x in (0, 512, 1536, 3 * 2**20, 5 * 2**40)] == [
    '0 B', '512 B', '1.50 KiB', '3.00 MiB', '5.00 TiB']


# --- Published figures


@pytest.fixture(scope='module')
def found():
  return published.figures()


def ours(found, publication, model, method, rank):
  return next(f['ours'] for f in found if (publication in f['publication'], f['model'], f['method'],
                                           f['rank']) == (True, model, method, rank))


@pytest.mark.parametrize('key, count', [
  (('Table 1', 'RoBERTa base', 'vera', 1), 18_456),
  (('Table 1', 'RoBERTa large', 'vera', 16), 49_920),
  (('Table 1', 'GPT-3', 'lora', 256), 1_207_959_552),
  (('MT-Bench', 'LLaMA 7B', 'lora', 64), 159_907_840),
  (('MT-Bench', 'LLaMA 13B', 'lora', 64), 250_347_520),
  (('MT-Bench', 'LLaMA 7B', 'vera', 1024), 1_589_248),
  (('MT-Bench', 'LLaMA 13B', 'vera', 1024), 2_416_640),
  (('Table 2', 'RoBERTa base', 'lora', 8), 294_912),
  (('Table 2', 'RoBERTa large', 'lora', 8), 786_432),
  (('Table 2', 'DeBERTa XXL', 'lora', 16), 4_718_592),
  (('Table 3', 'GPT-2 M', 'lora', 4), 393_216),
  (('Table 3', 'GPT-2 L', 'lora', 4), 737_280),
  (('Table 5', 'GPT-3', 'lora', 4), 18_874_368),
  (('Table 4', 'GPT-3', 'houlsby', 0), 7_078_080),
  (('Sun', 'LLaMA 7B', 'lora', 8), 16_781_313),
], ids=str)
def test_published_counts_to_the_digit(found, key, count):
  assert ours(found, *key) == count


def test_what_slips_is_known_and_says_why(found):
  slips = {(f['publication'], f['model'], f['printed']) for f in found if f['verdict'] == 'slips'}
  assert {('VeRA, Table 1', 'RoBERTa large', '49.5 K'), ('VeRA, Table 1', 'GPT-3', '8.7 M'),
          ('LoRA, Table 3', 'GPT-2 M', '0.35 M'), ('LoRA, 4.2', 'GPT-3', '35 MB')} <= slips
  assert all(f['why'].endswith('.') for f in found if f['verdict'] == 'slips')


def test_the_frozen_matrices_of_vera_explain_its_row_of_gpt_3(found):
  for figure in found:
    if (figure['model'], figure['method']) == ('GPT-3', 'vera'):
      shared = 2 * publications.MODELS['GPT-3'].width * figure['rank']
      assert published.verdict(figure['ours'] + shared, figure['printed']) == published.ROUNDED


@pytest.mark.parametrize('value, printed, verdict', [
  (16_781_313, '16781313', 'equal'), (49_200, '49.2 K', 'equal'), (589_824, '589.8 K', 'rounded'),
  (36_864, '36.8 K', 'cut'), (49_920, '49.5 K', 'slips'), (783_427, '780 K', 'rounded'),
  (783_427, '781 K', 'slips'), (Fraction(1, 400), '0.25 %', 'equal'), (0, '0 bits', 'equal'),
])
def test_verdicts(value, printed, verdict):
  assert published.verdict(value, printed) == verdict


def test_a_form_that_counts_otherwise_is_an_error():
  figure = publications.LORA[0]._replace(by=lambda config, rank: 1)
  with pytest.raises(RuntimeError, match='counted 294912'):
    published.evaluate(figure)


# --- The program


def test_the_program_prints_a_table_and_writes_json(tmp_path, capsys):
  path = tmp_path / 'methods.json'
  assert program.main([*CONFIG, '--methods=full,lora', '--targets=q;q,v', '--ranks=2,99',
                       '--no-forecast', '--stage=reward', f'--json={path}']) == 0
  text = capsys.readouterr().out
  assert '| lora | q, v | 2' in text and 'peak memory' not in text and 'is refused' in text
  result = run.read(path)
  assert len(result['rows']) == 1 + 4 and result['hardware'] and result['commit']
  assert result['rows'] == json.loads(json.dumps(result['rows'])) and result['stage'] == 'reward'
  assert table.markdown(result['rows'], result['notes'], forecast=False) in text


def test_the_program_prints_and_writes_what_is_published(tmp_path, capsys):
  path = tmp_path / 'published.json'
  assert program.main(['--published', f'--json={path}']) == 0
  result = run.read(path)
  assert published.markdown(result['figures']) in capsys.readouterr().out
  assert len(result['figures']) == len(publications.FIGURES) and result['versions']


@pytest.mark.parametrize('flags, message', [
  (['--methods=lorra'], "did you mean 'lora'"),
  (['--targets=q;;v'], 'leave no part empty'),
  (['--ranks=0,1'], 'give positive numbers'),
  (['--rank=1'], 'expected flags of this program'),
])
def test_a_wrong_flag_ends_in_a_message(flags, message, capsys):
  assert program.main([*CONFIG, '--no_forecast', *flags]) == 2
  assert message in capsys.readouterr().err
