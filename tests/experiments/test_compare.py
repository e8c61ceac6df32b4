"""Comparisons of methods, ranks and rates: their rows, their tables, and a small one run."""

import contextlib
import json
import pathlib

import pytest
import toyrun

from experiments import charts, paper, sweep
from experiments.compare import __main__ as compare
from experiments.compare import plot, report, rows, shared
from perl import choices
from perl.config import validate
from perl.config.fields import ConfigError
from perl.config.rates import FACTORS
from perl.report import formats
from perl.report.style import STYLE

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
  assert [row.name for row in rows.methods('all')] == ['untouched', *known]
  assert len(rows.rates('all', [1.0])) == len(known)
  assert [row.name for row in rows.methods('lora,ia3')] == ['lora', 'ia3']
  with pytest.raises(ConfigError, match='expected methods among .*found .lorra.'):
    rows.methods('lora,lorra')


def test_the_grid_is_hu_et_als_at_one_scale():
  grid = rows.grid()
  assert len(grid) == 15 and {row.peft for row in grid} == {'lora'}
  assert all(row.fields['peft.alpha'] == 2 * row.fields['peft.rank'] for row in grid)
  for figures in paper.RANK_GRID.values():
    assert set(figures) == set(rows.GRID_TARGETS)
    assert all(len(line) == len(rows.GRID_RANKS) for line in figures.values())


def test_a_row_has_its_fields_its_rate_and_the_common_base(tmp_path):
  made = sweep.Sweep('configs/demo.py', [], str(tmp_path), reward_from='')
  plain = rows.config(made, rows.Row('lora', 'lora'), 3, test=True)
  row = rows.Row('lora_x3', 'lora', {'peft.rank': 4}, 3.0)
  found = rows.config(made, row, 3, test=False)
  assert found.peft.rank == 4 and found.seed == 3
  assert found.sft.optim.learning_rate == pytest.approx(3 * plain.sft.optim.learning_rate)
  assert plain.sft.test and not found.sft.test
  assert found.inputs.base == str(tmp_path / 'base' / 'pretrain')


def finished(name, peft, seed, loss, **more):
  sft = {'test_loss': loss, 'loss': loss, 'test_perplexity': 2.0, 'test_exact_match': 1 - loss,
         'parameters_trainable': 1000, 'commit': 'abc', **more}
  return {'name': name, 'peft': peft, 'times': 1.0, 'learning_rate': 5e-4, 'seed': seed, 'sft': sft}


def test_methods_are_told_from_lora_by_differences_of_a_seed():
  found = [finished(name, name, seed, loss + 0.1 * seed + 0.001 * noise)
           for name, loss in (('lora', 0.5), ('ia3', 0.6), ('dora', 0.5))
           for seed, noise in enumerate((0, 1, -1))]
  head, body, notes = report.methods(found)
  assert head[0] == 'method' and [line[0] for line in body][-1] == 'ia3'
  assert any('SFT loss' in note and 'better none; worse ia3' in note for note in notes)
  assert any('exact match' in note and 'worse ia3' in note for note in notes)


@pytest.mark.parametrize('ordered', [True, False])
def test_the_grid_says_whether_it_agrees(ordered):
  better = {'q': 0.0, 'q,v': 0.1, 'q,k,v,o': 0.12} if ordered else dict.fromkeys(
    rows.GRID_TARGETS, 0.0)
  found = [finished(f'{t.replace(",", "")}_r{r}', 'lora', seed, 0.6 - better[t] - 0.001 * i)
           for t in rows.GRID_TARGETS for i, r in enumerate(rows.GRID_RANKS) for seed in (0, 1)]
  _, body, notes = report.grid(found)
  assert len(body) == 3 * 4
  assert ('at 5 of 5 ranks: agrees' in notes[0]) == ordered
  assert ('at 0 of 5 ranks: does not' in notes[0]) == (not ordered)
  assert report.grid(found[:-2])[2][0].startswith('Not all of the grid is finished')


@pytest.mark.parametrize('seeds', [(0,), (0, 1, 2)])
def test_charts_are_drawn_of_one_seed_and_of_more(seeds, tmp_path):
  methods = [finished(name, name, seed, loss + 0.01 * seed) for seed in seeds
             for name, loss in (('lora', 0.5), ('ia3', 0.6))]
  methods[0]['reward'] = {'auc': 0.7}
  plot.methods(methods, str(tmp_path / 'methods.svg'))
  drawn = (tmp_path / 'methods.svg').read_text()
  assert all(f'<!-- {title} -->' in drawn for title in ('SFT loss', 'exact match', 'RM AUC', 'ia3'))
  assert '<!-- RM pair accuracy -->' not in drawn
  grid = [finished(row.name, 'lora', seed, 0.5) for row in rows.grid()[:7] for seed in seeds]
  plot.grid(grid, str(tmp_path / 'grid.svg'))
  assert '<!-- r = 64 -->' in (tmp_path / 'grid.svg').read_text()


def test_figures_that_no_row_has_are_no_columns():
  found = [finished('lora', 'lora', 0, 0.5), finished('ia3', 'ia3', 0, 0.4)]
  assert 'RM AUC' not in report.methods(found)[0]
  found[0]['reward'] = {'auc': 0.7}
  head, body, _ = report.methods(found)
  assert head[-1] == 'RM AUC' and [line[-1] for line in body] == [report.NONE, '0.700']


def test_the_best_rate_is_bold():
  found = [finished(f'{name}_x{f:g}', name, 0, loss) | {'times': f, 'learning_rate': 0.01 * f}
           for name, losses in (('lora', (0.6, 0.5, 0.7)), ('ia3', (0.6, 0.5)))
           for f, loss in zip((0.3, 1.0, 3.0), losses)]
  _, body, notes = report.rates(found)
  assert body == [
    ['lora', '0.6000 at 0.003', '**0.5000** at 0.01', '0.7000 at 0.03'],
    ['ia3', '0.6000 at 0.003', '**0.5000** at 0.01', report.NONE]]
  assert 'edge of what was tried: ia3.' in notes[1]


def test_a_small_comparison_is_run_once_and_written(tmp_path, capsys):
  command = ['methods', '--config=configs/demo.py', f'--workdir={tmp_path / "run"}',
             '--methods=lora,prompt', '--seeds=0', f'--json={tmp_path / "found.json"}', *SMALL]
  with toyrun.small_world():
    assert compare.main(command) == 0
    first = capsys.readouterr().out
    assert compare.main(command) == 0
    again = capsys.readouterr().out
  assert '| lora |' in first and '| prompt |' in first
  assert again.count('skipped: finished before') == 2 + 1 + 4
  found = json.loads((tmp_path / 'found.json').read_text())
  assert [row['name'] for row in found['rows']] == ['lora', 'prompt']
  for row in found['rows']:
    assert 0 < row['sft']['test_loss'] < 20 and 0 <= row['reward']['pair_accuracy'] <= 1
  assert found['versions'] and found['hardware']


def test_every_method_has_a_factor_of_a_rate():
  assert set(FACTORS) == set(choices.names('perl.peft.methods'))
  assert set(validate.COPIES) < set(FACTORS)


def test_a_folder_is_held_by_one_process_until_it_ends(tmp_path):
  row = tmp_path / 'row'
  with shared.hold(row, wait=False) as first, shared.hold(row, wait=False) as second:
    assert first and not second
  with shared.hold(row, wait=True) as again:
    assert again


def test_what_is_free_comes_before_what_another_process_holds(tmp_path, monkeypatch):
  jobs = [shared.Job(name, ('sft',), tmp_path / name) for name in ('a', 'b', 'c')]
  other, ran = contextlib.ExitStack(), []
  other.enter_context(shared.hold(tmp_path / 'a', wait=False))

  def run_stages(config, stages, folder):
    ran.append(config)
    if config == 'c':
      other.close()  # the other process ends; else the second pass would wait for ever

  monkeypatch.setattr(shared.launch, 'run_stages', run_stages)
  shared.run(jobs)
  assert ran == ['b', 'c', 'a']


@pytest.mark.parametrize('colour', range(len(charts.SERIES)))
def test_charts_have_the_colours_of_the_report(colour):
  light = STYLE.split('@media')[0]
  assert f'--c{colour}: {charts.SERIES[colour]};' in light
  assert f'--ink: {charts.INK};' in light and f'--soft: {charts.SOFT};' in light


@pytest.mark.parametrize('name, table', [
  ('coffee_methods', report.methods), ('coffee_grid', report.grid)])
def test_the_docs_have_the_tables_of_the_committed_results(name, table):
  """Every line, the sentences below it included, is what the program says of the file."""
  root = pathlib.Path(__file__).parents[2]
  rows = json.loads((root / 'experiments/results' / f'{name}.json').read_text())['rows']
  assert formats.markdown(*table(rows)) in (root / 'docs/results/methods.md').read_text()
