"""Cross-validation: what is shared, what is made anew, and what is said of it."""

import json

import pytest
import toyrun as run

from experiments import crossvalidate, formats


def rows():
  figures = [(.7, .68, .6), (.8, .75, .7)]
  return [
    {'fold': fold, 'peft': peft, 'reward': {'auc': auc, 'probe_auc': probe, 'baseline_auc': bag}}
    for peft in ('lora', 'full') for fold, (auc, probe, bag) in enumerate(figures)
  ]


def test_the_table_pairs_by_fold_and_shows_shared_rows_once():
  lines = [line for line in crossvalidate.render(rows()).splitlines() if line.startswith('| ')]
  shown = {line.split('|')[1].strip(): line for line in lines[1:]}
  assert list(shown) == ['reward model, lora', 'reward model, full',
                         'frozen model and a logistic regression', 'bag of words']
  assert '0.750' in shown['reward model, lora'] and '+0.100' in shown['reward model, lora']
  assert '0.650' in shown['bag of words']


@pytest.mark.parametrize('fmt', sorted(formats.FORMATS))
def test_every_format_renders(fmt):
  assert '0.750' in crossvalidate.render(rows(), fmt)


def test_results_carry_the_means():
  found = crossvalidate.results(rows(), 'runs/x')
  assert found['mean_over_folds']['lora']['auc'] == pytest.approx(.75)
  assert [row['fold'] for row in found['rows']] == [0, 1, 0, 1]
  json.dumps(found)


def test_named_inputs_are_shared_and_others_are_the_folds_own(tmp_path):
  spec = crossvalidate.Folds(
    'configs/coffee.py:size=tiny', ['--config.inputs.base=/b'], str(tmp_path), folds=3)
  row = spec.row('lora', 2)
  assert (row.data.folds, row.data.fold, row.inputs.base) == (3, 2, '/b')
  assert row.inputs.anchor == str(tmp_path / 'fold2' / 'sft')
  assert spec.row('full', 0).reward.optim.learning_rate != row.reward.optim.learning_rate


def test_it_runs_every_fold_and_skips_what_is_finished(toyrun, tmp_path, capsys):
  config = tmp_path / 'tiny.py'
  saved = run.config(
    inputs__tokenizer=str(toyrun / 'tokenizer'), inputs__base=str(toyrun / 'pretrain'),
    inputs__anchor=str(toyrun / 'sft'), reward__kind='pointwise', reward__steps=2,
  )
  (tmp_path / 'saved.json').write_text(saved.to_json())
  config.write_text(
    'from experiments import cli\n'
    'def get_config(text=""):\n'
    f'  made = cli.read({str(tmp_path / "saved.json")!r})\n'
    '  with made.unlocked():\n'
    '    made.peft.name = text.partition("=")[2]\n'
    '  return made\n')
  argv = [f'--config={config}', f'--workdir={tmp_path / "folds"}', '--peft=lora', '--folds=2',
          f'--json={tmp_path / "out.json"}']
  with run.small_world():
    assert crossvalidate.main(argv) == 0
    first = json.loads((tmp_path / 'out.json').read_text())
    assert crossvalidate.main(argv) == 0
  assert json.loads((tmp_path / 'out.json').read_text()) == first
  assert capsys.readouterr().out.count('skipped') == 2
  assert [row['fold'] for row in first['rows']] == [0, 1]
  assert all(0 <= row['reward']['baseline_auc'] <= 1 for row in first['rows'])
