"""The engine of studies: what processes share, the program, estimates, what is published."""

import contextlib
import json
import math
import pathlib

import documents
import pytest

from experiments import charts, studies
from experiments.studies import __main__ as program
from experiments.studies import _engine, _estimates, _finished, _jobs
from experiments.studies._jobs import Job, Row, Spec
from perl import choices
from perl.config.fields import ConfigError
from perl.report.style import STYLE

RESULTS = documents.ROOT / 'experiments/results'
T_2 = 4.302652729749464  # 97.5 % of Student's t with 2 degrees of freedom (any table)
DEMO = 'configs/demo.py'


def result(name):
  return json.loads((RESULTS / f'{name}.json').read_text())


# --- What is published


PUBLISHED = [('sweep', 'coffee'), ('methods', 'coffee_methods'), ('grid', 'coffee_grid'),
             ('overoptimisation', 'overoptimisation'),
             *((study, file.stem) for study in ('algorithms', 'regularizers')
               for file in sorted(RESULTS.glob(f'*_{study}.json')))]


@pytest.mark.parametrize('study, name', PUBLISHED)
def test_a_published_table_is_that_of_its_file(study, name):
  """Every line, the sentences below it included, is what the program says of the file."""
  assert studies.render(study, result(name)) in documents.published()


@pytest.mark.parametrize('study, name, line', [
  ('rates', 'coffee_rates', '| lora |'), ('costs', 'methods_1b', 'sft of llama-3.2-1b, '),
  ('costs', 'methods_tiny', 'sft of tiny, '), ('verifier', 'gsm8k_verifier', '| rewritten | all |'),
  ('crossvalidate', 'coffee_folds', '| reward model, lora | 0.'),
  ('crossvalidate', 'ticketing_folds', '| reward model, lora | 0.')])
def test_other_committed_files_render(study, name, line):
  text = studies.render(study, result(name))
  assert line in text and text.count('\n* ') >= 1


# --- The program


@pytest.mark.parametrize('study', choices.names(studies.__name__))
def test_every_study_has_one_interface(study, capsys):
  module = choices.find(studies.__name__, study)
  needs = getattr(module, 'NEEDS', tuple(_engine.NEEDED))
  assert hasattr(module, 'phases') == ('workdir' in needs)
  assert callable(module.table) and callable(module.collect)
  assert program.main([study, '--help']) == 0
  assert f'experiments.studies {study}' in capsys.readouterr().out


def test_a_result_file_is_printed_and_drawn(tmp_path, capsys):
  file = RESULTS / 'coffee_grid.json'
  assert program.main(['grid', f'--results={file}', f'--plot={tmp_path / "x.svg"}']) == 0
  assert capsys.readouterr().out.strip() == studies.render('grid', result('coffee_grid'))
  assert '<svg' in (tmp_path / 'x.svg').read_text()
  assert program.main(['grid', f'--results={file}', '--format=latex']) == 0
  assert r'\begin{tabular}' in capsys.readouterr().out


@pytest.mark.parametrize('flags, error', [
  (['grod'], "did you mean 'grid'"),
  (['grid', f'--config={DEMO}'], '--workdir'),
  (['grid', '--workdir=x'], '--config'),
  (['verifier'], '--mirror'),
  (['grid', f'--config={DEMO}', '--workdir=x', '--seeds=a'], '--seeds=0,1,2'),
  (['grid', f'--config={DEMO}', '--workdir=x', '--seds=1'], 'did you mean'),
  (['rates', f'--config={DEMO}', '--workdir=x', '--plot=x.png'], 'a study that draws'),
  (['grid', f'--config={DEMO}', '--workdir=/nowhere', '--table'], 'leave out --table'),
  (['grid', '--results=nothing.json'], 'write one with --json'),
])
def test_a_wrong_command_is_explained(flags, error, capsys):
  assert program.main(flags) == 2
  message = capsys.readouterr().err
  assert message.startswith('error: expected') and error in message


def test_fields_are_listed_without_a_workdir(capsys):
  assert program.main(['rates', f'--config={DEMO}:seed=5', '--help_fields']) == 0
  assert capsys.readouterr().out.startswith('seed = 5\n')


def test_a_command_is_recorded_as_a_shell_takes_it():
  argv = ['--config=a.py', '--table', "--config.stages=('sft',)"]
  assert _engine.command('grid', argv) == (
    'python -m experiments.studies grid --config=a.py \'--config.stages=(\'"\'"\'sft\'"\'"\',)\'')


def test_lists_of_flags():
  assert _jobs.words(' lora, full', '--peft=lora,full') == ('lora', 'full')
  assert _jobs.numbers('0,12', '--seeds=0,1,2') == (0, 12)
  assert _jobs.chosen('all', ('a', 'b'), '--only') == ['a', 'b']
  for text in ('', 'a,a'):
    with pytest.raises(ConfigError, match='each once, found .*write for example --peft=lora,full'):
      _jobs.words(text, '--peft=lora,full')


# --- Rows and jobs


def test_a_row_is_the_config_with_its_method_fields_and_rates(tmp_path):
  spec = Spec(DEMO, ['--config.sft.steps=7'], str(tmp_path))
  plain, full = spec.row(Row('lora', 'lora'), 0), spec.row(Row('full', 'full'), 0)
  row = spec.row(Row('x', 'lora', {'rl.beta': 0.5}, 3.0), 2)
  assert (row.seed, row.rl.beta, row.sft.steps) == (2, 0.5, 7)
  assert row.rl.optim.learning_rate == 3 * plain.rl.optim.learning_rate
  assert row.pretrain.optim.learning_rate == plain.pretrain.optim.learning_rate
  assert full.rl.optim.learning_rate != plain.rl.optim.learning_rate
  assert Row('reinforce/batch_mean').folder == 'reinforce-batch_mean'


def test_inputs_that_are_named_or_not_made_stay(tmp_path):
  config = Spec(DEMO, ['--config.inputs.base=/b'], str(tmp_path)).config()
  config.stages = ('pretrain', 'sft')
  Spec(DEMO, [], str(tmp_path)).reads(
    config, tokenizer='base/tokenizer', base='base/pretrain', anchor='seed0/sft')
  assert config.inputs.tokenizer == ''  # no stage of the config makes it
  assert config.inputs.base == '/b' and config.inputs.anchor == str(tmp_path / 'seed0/sft')


def test_a_folder_is_held_by_one_process_until_it_ends(tmp_path):
  row = tmp_path / 'row'
  with _jobs.hold(row, wait=False) as first, _jobs.hold(row, wait=False) as second:
    assert first and not second
  with _jobs.hold(row, wait=True) as again:
    assert again


def test_what_is_free_comes_before_what_another_process_holds(tmp_path, monkeypatch):
  jobs = [Job(name, ('sft',), tmp_path / name) for name in ('a', 'b', 'c')]
  other, ran = contextlib.ExitStack(), []
  other.enter_context(_jobs.hold(tmp_path / 'a', wait=False))

  def run_stages(config, stages, folder):
    ran.append(config)
    if config == 'c':
      other.close()  # the other process ends; else the second pass would wait for ever

  monkeypatch.setattr(_jobs.launch, 'run_stages', run_stages)
  _jobs.share(jobs)
  assert ran == ['b', 'c', 'a']


def test_all_configs_are_checked_before_anything_runs(tmp_path, monkeypatch):
  events = []
  monkeypatch.setattr(_jobs.launch, 'check', lambda config: events.append(f'check {config}'))
  monkeypatch.setattr(_jobs.launch, 'run_stages',
                      lambda config, stages, folder: events.append(f'run {config} {stages}'))
  shared, own = 'shared', 'own'
  _jobs.run([[Job(shared, ['sft'], tmp_path / 'a')], [Job(own, [], tmp_path / 'b')],
             [Job(shared, ['rl'], tmp_path / 'a')]])
  assert events == ['check shared', 'check own', "run shared ['sft']", "run shared ['rl']"]


# --- What is finished


def save(path: pathlib.Path, value: dict) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(value))


def test_folders_are_read_in_the_order_of_their_seeds(tmp_path):
  for name in ('seed10/a', 'seed2/a', 'seed2/b', 'seeds/a'):
    save(tmp_path / name / 'rl' / 'summary.json', {'kl': 1})
  (tmp_path / 'seed2' / _jobs.LOCK).touch()
  assert [(k, f.name) for k, f in _finished.folders(tmp_path, 'a')] == [(2, 'a'), (10, 'a')]
  summaries = {(k, f.name): _finished.summaries(f, ('sft', 'rl'))
           for k, f in _finished.folders(tmp_path)}
  assert summaries[2, 'b'] == {'rl': {'kl': 1}} and summaries[2, _jobs.LOCK] == {}


def test_facts_that_differ_stay_in_their_summaries():
  about = {'versions': {'jax': '1'}, 'hardware': None}
  rows = [{'seed': k, 'rl': {'kl': 1, 'commit': c, **about}} for k, c in enumerate('aba')]
  shared = _finished.facts(rows)
  assert shared == {'commit': ['a', 'b'], 'versions': {'jax': '1'}, 'hardware': []}
  assert _finished.slim(rows[0], shared) == {
    'seed': 0, 'rl': {'kl': 1, 'commit': 'a', 'hardware': None}}


# --- Estimates


def test_t_interval_by_hand():
  interval = _estimates.estimate([0.70, 0.72, 0.74])
  half = T_2 * 0.02 / math.sqrt(3)
  assert (interval.mean, interval.n) == (pytest.approx(0.72), 3)
  assert interval.low == pytest.approx(0.72 - half) and interval.high == pytest.approx(0.72 + half)
  assert _estimates.show(interval, 2) == f'0.72 ± {half:.2f}'


def test_one_seed_has_no_interval_and_none_no_estimate():
  single = _estimates.estimate([0.5])
  assert single.mean == 0.5 and math.isnan(single.low)
  assert _estimates.within(0.5, single) == 'unknown' and _estimates.sign(single) == 'unclear'
  assert _estimates.estimate([math.nan]) is None and _estimates.estimate([]) is None
  assert _estimates.show(single, 1, '+') == '+0.5' and _estimates.show(None, 1) == '–'


def test_within_and_sign():
  interval = _estimates.Estimate(1.0, 0.5, 1.5, 3)
  assert [_estimates.within(v, interval) for v in (0.4, 0.5, 1.5, 1.6)] == [
    'no, below it', 'yes', 'yes', 'no, above it']
  assert _estimates.sign(interval) == 'rises'
  assert _estimates.sign(_estimates.Estimate(-1., -2., -.1, 3)) == 'falls'
  assert _estimates.sign(_estimates.Estimate(0., -2., 2., 3)) == 'unclear'


def test_differences_are_of_the_same_seed():
  rows = [{'seed': seed, 'name': name, 'rl': {'kl': value}} for name, seed, value in (
    ('a', 0, 1.0), ('a', 1, 2.0), ('b', 1, 1.5), ('b', 2, 9.0))]
  a, b = (_estimates.by_seed([*rows, {'seed': 5, 'name': 'a'}], 'rl', 'kl', name=n) for n in 'ab')
  assert a == {0: 1.0, 1: 2.0} and _estimates.difference(a, b).mean == 0.5
  assert _estimates.difference(a, {}) is None
  up, down = (_estimates.Estimate(x, x - 1, x + 1, 3) for x in (2.0, -2.0))
  assert _estimates.surely({'up': up, 'down': down, 'none': None, 'one': up.__class__(
    2.0, math.nan, math.nan, 1)}) == {'rises': ['up'], 'falls': ['down'], 'unclear': []}


@pytest.mark.parametrize('colour', range(len(charts.SERIES)))
def test_charts_have_the_colours_of_the_report(colour):
  light = STYLE.split('@media')[0]
  assert f'--c{colour}: {charts.SERIES[colour]};' in light
  assert f'--ink: {charts.INK};' in light and f'--soft: {charts.SOFT};' in light
