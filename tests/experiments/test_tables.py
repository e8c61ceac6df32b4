"""The table of made-up runs, against means and intervals computed by hand."""

import csv
import io
import json
import math
import pathlib

import pytest

from experiments import statistics, tables

AUC = {'lora': (0.70, 0.72, 0.74), 'full': (0.71, 0.73, 0.75)}
T_2 = 4.302652729749464  # 97.5 % of Student's t with 2 degrees of freedom (any table)


def save(path: pathlib.Path, value: dict) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(value))


def sweep(workdir: pathlib.Path, seeds=(0, 1, 2), methods=('lora', 'full')) -> pathlib.Path:
  """Finished runs, laid out as by experiments/sweep.py."""
  about = {'commit': 'abc', 'versions': {'jax': '0.10.2'}, 'hardware': {'cores': 2}}
  save(workdir / 'base' / 'pretrain' / 'summary.json', {'loss': 2.0, **about})
  for k in seeds:
    save(workdir / f'seed{k}' / 'sft' / 'summary.json', {'loss': 1.0, **about})
    for peft in methods:
      full = peft == 'full'
      row = workdir / f'seed{k}' / peft
      cost = {'parameters_trainable': 1_000_000 if full else 20_000, 'parameters_total': 1_000_000,
              'peak_memory_bytes': (200 if full else 100) * 2**20,
              'step_seconds': .6 if full else .4}
      save(row / 'reward' / 'summary.json', {
        'auc': AUC[peft][k], 'baseline_auc': .65, 'accuracy': .8, 'balanced_accuracy': .6,
        'probe_auc': .66, **cost, **about})
      save(row / 'rl' / 'summary.json', {'reward_start': 0., 'reward': 1. + k, 'kl': 2., **cost,
                                         **about})
      save(row / 'evaluate' / 'summary.json', {
        'exact_match_before': .3, 'exact_match': .2 - .01 * k, 'valid_api_call_before': .9,
        'valid_api_call': .9 + .01 * (k - 1), 'reward_before': .1, 'reward': 1.1 + .1 * k, **about})
  return workdir


def cells(text: str) -> dict[str, list[str]]:
  """{first cell: the others} of a Markdown table."""
  rows = [line.strip('| ').split(' | ') for line in text.splitlines() if line.startswith('| ')]
  return {row[0]: row[1:] for row in rows}


def test_t_interval_by_hand():
  found = statistics.estimate([0.70, 0.72, 0.74])
  half = T_2 * 0.02 / math.sqrt(3)
  assert (found.mean, found.n) == (pytest.approx(0.72), 3)
  assert found.low == pytest.approx(0.72 - half) and found.high == pytest.approx(0.72 + half)


def test_one_seed_has_no_interval_and_none_no_estimate():
  single = statistics.estimate([0.5])
  assert single.mean == 0.5 and math.isnan(single.low)
  assert statistics.within(0.5, single) == 'unknown' and statistics.sign(single) == 'unclear'
  assert statistics.estimate([math.nan]) is None and statistics.estimate([]) is None


def test_within_and_sign():
  interval = statistics.Estimate(1.0, 0.5, 1.5, 3)
  assert [statistics.within(v, interval) for v in (0.4, 0.5, 1.5, 1.6)] == [
    'no, below it', 'yes', 'yes', 'no, above it']
  assert statistics.sign(interval) == 'rises'
  assert statistics.sign(statistics.Estimate(-1., -2., -.1, 3)) == 'falls'
  assert statistics.sign(statistics.Estimate(0., -2., 2., 3)) == 'unclear'


def test_collects_every_seed_and_method_full_first(tmp_path):
  rows = tables.collect(str(sweep(tmp_path)))
  assert [(r['peft'], r['seed']) for r in rows] == [
    ('full', 0), ('full', 1), ('full', 2), ('lora', 0), ('lora', 1), ('lora', 2)]
  assert rows[3]['reward']['auc'] == 0.70


def test_the_table_by_hand(tmp_path):
  text = tables.render(tables.collect(str(sweep(tmp_path))))
  found = cells(text)
  half = T_2 * 0.02 / math.sqrt(3)
  assert found['RM AUC, test'][:3] == [f'0.730 ± {half:.3f}', f'0.720 ± {half:.3f}', '–']
  assert found['RL reward, test'][0] == f'0.100 → 1.200 ± {T_2 * .1 / math.sqrt(3):.3f}'
  assert found['RM trainable parameters'][:2] == ['1,000,000', '20,000']
  assert found['RM trainable, % of the model'][:2] == ['100.00', '2.00']
  assert found['RM peak memory, MiB'] == [
    '200.0', '100.0', '50 % of full', '43 to 56 % of full']
  assert found['RM step, ms'] == ['600', '400', '1.50 times full', '1.5 to 1.9 times full']
  assert found['RL peak memory, MiB'][-1] == '74 to 80 % of full'
  assert found['RL step, ms'][-1] == '1.05 to 1.3 times full'
  assert 'RM pair accuracy, test' not in found and 'Gold reward, test' not in found
  assert 'paper (other tasks and models)' in text


def test_claims_are_computed(tmp_path):
  text = tables.render(tables.collect(str(sweep(tmp_path))))
  half = T_2 * 0.02 / math.sqrt(3)
  assert (f'lora within the interval of full, RM AUC on test: yes (lora 0.720, n=3; full '
          f'[{.73 - half:.3f}, {.73 + half:.3f}], n=3).') in text
  assert 'RM of lora beats a bag of words, on test: yes (AUC +0.070' in text
  assert 'RL with lora, exact match: falls (-0.110' in text
  assert 'RL with lora, the valid-API-call rate: unclear (+0.000' in text
  assert 'RL with full, reward on test: rises (+1.100' in text


def test_lora_below_full_is_said(tmp_path):
  rows = tables.collect(str(sweep(tmp_path)))
  for row in rows:
    if row['peft'] == 'lora':
      row['reward']['auc'] = 0.5
  text = tables.render(rows)
  assert 'RM AUC on test: no, below it' in text
  assert 'RM of lora beats a bag of words, on test: no' in text


def test_one_seed_is_printed_without_interval(tmp_path):
  text = tables.render(tables.collect(str(sweep(tmp_path, seeds=(0,)))))
  assert cells(text)['RM AUC, test'][:2] == ['0.710', '0.700']
  assert 'unknown' in text and 'has no interval' in text


def test_unfinished_stages_and_missing_methods(tmp_path):
  sweep(tmp_path, methods=('lora',))
  (tmp_path / 'seed2' / 'lora' / 'reward' / 'summary.json').unlink()
  for stage in ('rl', 'evaluate'):
    (tmp_path / 'seed2' / 'lora' / stage / 'summary.json').unlink()
  (tmp_path / 'seed1' / 'lora' / 'evaluate' / 'summary.json').unlink()
  text = tables.render(tables.collect(str(tmp_path)))
  assert 'against full' not in text
  assert cells(text)['RL reward, test'][0] == '0.100 → 1.100 (n=1)'


def test_ratios_are_of_seeds_that_both_have(tmp_path):
  sweep(tmp_path)
  (tmp_path / 'seed0' / 'full' / 'reward' / 'summary.json').unlink()
  path = tmp_path / 'seed0' / 'lora' / 'reward' / 'summary.json'
  save(path, {**json.loads(path.read_text()), 'step_seconds': 100.})
  found = cells(tables.render(tables.collect(str(tmp_path))))
  assert found['RM step, ms'][2] == '1.50 times full'


def test_csv_and_latex(tmp_path):
  rows = tables.collect(str(sweep(tmp_path)))
  text = tables.render(rows, 'csv')
  parsed = list(csv.reader(io.StringIO(
    '\n'.join(line for line in text.splitlines() if not line.startswith('# ')))))
  assert len({len(row) for row in parsed}) == 1 and parsed[0][1] == 'full (n=3)'
  assert ['RM trainable parameters', '1,000,000', '20,000', '–', '–'] in parsed
  tex = tables.render(rows, 'latex')
  assert r'\begin{tabular}{lrrrl}' in tex and r'50 \% of full' in tex and r'$\pm$' in tex
  body = tex[tex.index(r'\midrule'):tex.index(r'\bottomrule')].splitlines()[1:]
  assert all(line.count(' & ') == 4 and line.endswith(r'\\') for line in body)


def test_result_file_renders_as_the_runs_do(tmp_path, capsys):
  workdir, file = sweep(tmp_path / 'runs'), tmp_path / 'results' / 'coffee.json'
  assert tables.main([f'--workdir={workdir}', f'--json={file}']) == 0
  first = capsys.readouterr().out
  saved = json.loads(file.read_text())
  assert saved['seeds'] == [0, 1, 2] and saved['methods'] == ['full', 'lora']
  assert saved['commit'] == 'abc' and saved['hardware'] == {'cores': 2}
  assert 'commit' not in saved['rows'][0]['reward']
  assert tables.main([f'--results={file}', '--format=markdown']) == 0
  assert capsys.readouterr().out == first


def test_commits_that_differ_are_kept_apart(tmp_path):
  rows = tables.collect(str(sweep(tmp_path)))
  rows[0]['rl']['commit'] = 'def'
  found = tables.results(rows, str(tmp_path))
  assert found['commit'] == ['abc', 'def'] and found['rows'][0]['rl']['commit'] == 'def'


def test_bad_input_is_an_error(tmp_path, capsys):
  assert tables.main([f'--workdir={tmp_path}']) == 2
  assert 'run experiments.sweep first' in capsys.readouterr().err
  assert tables.main([f'--results={tmp_path}/none.json']) == 2
  assert 'expected a result file' in capsys.readouterr().err
  with pytest.raises(ValueError, match='expected a format'):
    tables.render([{'seed': 0, 'peft': 'lora'}], 'html')


def test_results_hold_the_stages_that_rows_share(tmp_path):
  found = tables.results(tables.collect(str(sweep(tmp_path))), str(tmp_path))
  assert list(found['shared_stages']) == ['base/pretrain', 'seed0/sft', 'seed1/sft', 'seed2/sft']
  assert found['shared_stages']['base/pretrain'] == {'loss': 2.0}
