"""Studies of methods, ranks and rates: their rows, their tables, and a small one run."""

import argparse
import json

import pytest
import toyrun

from experiments.studies import __main__ as program
from experiments.studies import _supervised, grid, methods, rates
from experiments.studies._jobs import Row, Spec
from perl import choices
from perl.config import validate
from perl.config.fields import ConfigError
from perl.config.rates import FACTORS

SMALL = [
  '--config.model.size=nano', '--config.model.scan_unroll=1', '--config.tokenizer.vocab_size=300',
  '--config.data.max_prompt_tokens=24', '--config.data.max_response_tokens=8',
  '--config.peft.rank=2', '--config.peft.targets=("attn/q",)', '--config.rl.max_new_tokens=8',
  '--config.evaluate.max_examples=8', '--config.evaluate.bootstrap=5',
  *(f'--config.{stage}.{name}={value}' for stage in ('pretrain', 'sft', 'reward')
    for name, value in (('steps', 2), ('batch_size', 8), ('evaluate_every_steps', 2),
                        ('checkpoint_every_steps', 2), ('optim.warmup_steps', 1))),
]


def test_all_methods_are_rows():
  known = choices.names('perl.peft.methods')
  assert [row.name for row in methods.rows('all')] == ['untouched', *known]
  options = argparse.Namespace(methods='all', factors='1,3')
  assert len(rates.rows(options)) == 2 * len(known)
  assert [row.name for row in methods.rows('lora,ia3')] == ['lora', 'ia3']
  with pytest.raises(ConfigError, match='expected --methods=all or some of .*found .lorra.'):
    methods.rows('lora,lorra')


def test_the_grid_is_hu_et_als_at_one_scale():
  rows = grid.rows()
  assert len(rows) == 15 and {row.peft for row in rows} == {'lora'}
  assert all(row.fields['peft.alpha'] == 2 * row.fields['peft.rank'] for row in rows)
  for figures in grid.PUBLISHED.values():
    assert set(figures) == set(grid.TARGETS)
    assert all(len(line) == len(grid.RANKS) for line in figures.values())


def test_a_row_has_its_fields_its_rate_and_the_common_base(tmp_path):
  spec = Spec('configs/demo.py', [], str(tmp_path))
  plain = _supervised.config(spec, Row('lora', 'lora'), 3, test=True)
  config = _supervised.config(spec, Row('lora_x3', 'lora', {'peft.rank': 4}, 3.0), 3)
  assert config.peft.rank == 4 and config.seed == 3
  assert config.sft.optim.learning_rate == pytest.approx(3 * plain.sft.optim.learning_rate)
  assert plain.sft.test and not config.sft.test
  assert config.inputs.base == str(tmp_path / 'base' / 'pretrain')


def test_reward_models_lie_over_the_anchor_of_their_seed(tmp_path):
  options = argparse.Namespace(methods='lora', seeds='0,1', factors='1')
  spec = Spec('configs/demo.py', [], str(tmp_path))
  base, anchors, rows = methods.phases(spec, options)
  place = lambda job: job.folder.relative_to(tmp_path).as_posix()
  assert [(place(job), *job.stages) for job in base] == [('base', 'tokenizer', 'pretrain')]
  assert [(place(job), *job.stages, job.config.peft.name) for job in anchors] == [
    ('seed0/anchor', 'sft', 'full'), ('seed1/anchor', 'sft', 'full')]
  assert [(place(job), *job.stages) for job in rows] == [
    ('seed0/lora', 'sft', 'reward'), ('seed1/lora', 'sft', 'reward')]
  assert rows[1].config.inputs.anchor == str(tmp_path / 'seed1' / 'anchor' / 'sft')
  for study in (grid, rates):
    _, anchors, rows = study.phases(spec, options)
    assert not anchors and {tuple(job.stages) for job in rows} == {('sft',)}
    assert {job.config.inputs.anchor for job in rows} == {''}


def finished(name, peft, seed, loss, **more):
  sft = {'test_loss': loss, 'loss': loss, 'test_perplexity': 2.0, 'test_exact_match': 1 - loss,
         'parameters_trainable': 1000, 'commit': 'abc', **more}
  return {'name': name, 'peft': peft, 'times': 1.0, 'learning_rate': 5e-4, 'seed': seed, 'sft': sft}


def test_methods_are_told_from_lora_by_differences_of_a_seed():
  records = [finished(name, name, seed, loss + 0.1 * seed + 0.001 * noise)
           for name, loss in (('lora', 0.5), ('ia3', 0.6), ('dora', 0.5))
           for seed, noise in enumerate((0, 1, -1))]
  head, body, notes = methods.table({'rows': records})
  assert head[0] == 'method' and [line[0] for line in body][-1] == 'ia3'
  assert any('SFT loss' in note and 'better none; worse ia3' in note for note in notes)
  assert any('exact match' in note and 'worse ia3' in note for note in notes)


@pytest.mark.parametrize('ordered', [True, False])
def test_the_grid_says_whether_it_agrees(ordered):
  better = {'q': 0.0, 'q,v': 0.1, 'q,k,v,o': 0.12} if ordered else dict.fromkeys(
    grid.TARGETS, 0.0)
  records = [finished(f'{t.replace(",", "")}_r{r}', 'lora', seed, 0.6 - better[t] - 0.001 * i)
           for t in grid.TARGETS for i, r in enumerate(grid.RANKS) for seed in (0, 1)]
  _, body, notes = grid.table({'rows': records})
  assert len(body) == 3 * 4
  assert ('at 5 of 5 ranks: agrees' in notes[0]) == ordered
  assert ('at 0 of 5 ranks: does not' in notes[0]) == (not ordered)
  assert grid.table({'rows': records[:-2]})[2][0].startswith('Not all of the grid is finished')


@pytest.mark.parametrize('seeds', [(0,), (0, 1, 2)])
def test_charts_are_drawn_of_one_seed_and_of_more(seeds, tmp_path):
  rows = [finished(name, name, seed, loss + 0.01 * seed) for seed in seeds
          for name, loss in (('lora', 0.5), ('ia3', 0.6))]
  rows[0]['reward'] = {'auc': 0.7}
  methods.plot({'rows': rows}, str(tmp_path / 'methods.svg'))
  drawn = (tmp_path / 'methods.svg').read_text()
  assert all(f'<!-- {title} -->' in drawn for title in ('SFT loss', 'exact match', 'RM AUC', 'ia3'))
  assert '<!-- RM pair accuracy -->' not in drawn
  rows = [finished(row.name, 'lora', seed, 0.5) for row in grid.rows()[:7] for seed in seeds]
  grid.plot({'rows': rows}, str(tmp_path / 'grid.svg'))
  assert '<!-- r = 64 -->' in (tmp_path / 'grid.svg').read_text()


def test_figures_that_no_row_has_are_no_columns():
  records = [finished('lora', 'lora', 0, 0.5), finished('ia3', 'ia3', 0, 0.4)]
  assert 'RM AUC' not in methods.table({'rows': records})[0]
  records[0]['reward'] = {'auc': 0.7}
  head, body, _ = methods.table({'rows': records})
  assert head[-1] == 'RM AUC' and [line[-1] for line in body] == ['–', '0.700']


def test_the_best_rate_is_bold():
  records = [finished(f'{name}_x{f:g}', name, 0, loss) | {'times': f, 'learning_rate': 0.01 * f}
           for name, losses in (('lora', (0.6, 0.5, 0.7)), ('ia3', (0.6, 0.5)))
           for f, loss in zip((0.3, 1.0, 3.0), losses)]
  _, body, notes = rates.table({'rows': records})
  assert body == [
    ['lora', '0.6000 at 0.003', '**0.5000** at 0.01', '0.7000 at 0.03'],
    ['ia3', '0.6000 at 0.003', '**0.5000** at 0.01', '–']]
  assert 'edge of what was tried: ia3.' in notes[1]


def test_a_small_comparison_is_run_once_and_written(tmp_path, capsys):
  command = ['methods', '--config=configs/demo.py', f'--workdir={tmp_path / "run"}',
             '--methods=lora,prompt', '--seeds=0', f'--json={tmp_path / "found.json"}', *SMALL]
  with toyrun.small_world():
    assert program.main(command) == 0
    first = capsys.readouterr().out
    assert program.main(command) == 0
    again = capsys.readouterr().out
  assert '| lora |' in first and '| prompt |' in first
  assert again.count('skipped: finished before') == 2 + 1 + 4
  results = json.loads((tmp_path / 'found.json').read_text())
  assert [row['name'] for row in results['rows']] == ['lora', 'prompt']
  for row in results['rows']:
    assert 0 < row['sft']['test_loss'] < 20 and 0 <= row['reward']['pair_accuracy'] <= 1
  assert results['versions'] and results['hardware']


def test_every_method_has_a_factor_of_a_rate():
  assert set(FACTORS) == set(choices.names('perl.peft.methods'))
  assert set(validate.COPIES) < set(FACTORS)
