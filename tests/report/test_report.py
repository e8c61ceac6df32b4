"""The report of a made-up pipeline: whole, partial, empty and hostile."""

import html.parser
import json
import math
import pathlib
import random
import re

import pytest

from perl.cli import report as program
from perl.jobs import STAGES
from perl.report import curves, dialogues, figures
from perl.report import page as report

HOSTILE = '<script>alert("x")</script> & \'<|bogus|>'


class Parser(html.parser.HTMLParser):
  """Checks that every element is closed in its order; gathers tags, attributes and text."""

  VOID = {'meta', 'br', 'line', 'polyline'}

  def __init__(self):
    super().__init__()
    self.open, self.tags, self.values, self.text = [], [], [], ''

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.values += [value or '' for _, value in attrs]
    if tag not in self.VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.tags.append(tag)
    self.values += [value or '' for _, value in attrs]

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.text += data


def parse(text: str) -> Parser:
  parser = Parser()
  parser.feed(text)
  parser.close()
  assert not parser.open
  return parser


def save(path: pathlib.Path, value) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(value))


def log(folder: pathlib.Path, rows: list[dict]) -> None:
  folder.mkdir(parents=True, exist_ok=True)
  (folder / 'metrics.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))


def fake_pipeline(workdir: pathlib.Path) -> pathlib.Path:
  """A finished demo, with the names of the jobs."""
  rng = random.Random(0)
  common = {
    'commit': 'abc1234', 'versions': {'jax': '0.10.2', 'flax': '0.12.8'}, 'seed': 0, 'peft': 'lora',
    'hardware': {'cpu': 'Test CPU', 'cores': 2, 'memory_bytes': 8 * 2**30}, 'step_seconds': 0.31,
    'peak_memory_bytes': 300 * 2**20, 'parameters_trainable': 32769, 'parameters_total': 1100000,
    'wall_seconds': 48.2,
  }
  config = {'name': 'demo', 'seed': 0, 'model': {'size': 'tiny'}, 'data': {'name': 'toy'},
            'peft': {'name': 'lora', 'rank': 8}}
  save(workdir / 'config.json', config)
  save(workdir / 'tokenizer' / 'summary.json', {**common, 'vocab_size': 1024})
  for stage, level in (('pretrain', 1.4), ('sft', .6), ('reward', .45)):
    rows = []
    for step in range(10, 401, 10):
      loss = level * (1 + 2 * math.exp(-step / 80))
      rows.append({'step': step, 'time': 1., 'train/loss': loss * rng.uniform(.93, 1.07),
                   'train/grad_norm': rng.uniform(.5, 1.), 'train/step_seconds': .31,
                   'train/learning_rate': 1e-3 * (400 - step)})
      if step % 50 == 0:
        rows.append({'step': step, 'time': 1., 'dev/loss': loss * 1.05,
                     'dev/auc': .5 + .3 * step / 400, 'dev/auc_low': .4})
    log(workdir / stage, rows)
    save(workdir / stage / 'summary.json', {**common, 'loss': level})
  save(workdir / 'reward' / 'summary.json', {
    **common, 'loss': .45, 'accuracy': .84, 'balanced_accuracy': .81, 'auc': .885, 'auc_low': .86,
    'auc_high': .91, 'majority_rate': .62, 'baseline_auc': .71, 'baseline_auc_low': .68,
    'baseline_auc_high': .74, 'calibration_error': .05})
  rows = []
  for step in range(0, 201):
    gold = .93 - .31 * math.exp(-step / 60)
    rows.append({'step': step, 'time': 2., 'train/reward': 3 * gold - 1 + rng.gauss(0, .25),
                 'train/kl': 6 * gold - 3.6 + rng.gauss(0, .1), 'train/entropy': 4 - 3 * gold,
                 'train/response_tokens': 22 + rng.gauss(0, 1), 'train/finished': 1.})
    if step % 25 == 0:
      rows.append({'step': step, 'time': 2., 'dev/reward': 3 * gold - 1, 'dev/gold_reward': gold,
                   'dev/kl': max(6 * gold - 3.72, 0), 'dev/response_tokens': 22,
                   'dev/finished': 1.})
  log(workdir / 'rl', rows)
  save(workdir / 'rl' / 'summary.json', {
    **common, 'reward_start': .86, 'reward': 1.72, 'gold_reward_start': .62, 'gold_reward': .92,
    'kl_start': 0., 'kl': 1.8})
  save(workdir / 'evaluate' / 'summary.json', {
    **common, 'gold_reward_before': .618, 'gold_reward_low_before': .58,
    'gold_reward_high_before': .65, 'gold_reward': .915, 'gold_reward_low': .89,
    'gold_reward_high': .93, 'reward_before': .85, 'reward': 1.71, 'kl_before': 0., 'kl': 1.83,
    'exact_match_before': .41, 'exact_match': .78, 'valid_api_call_before': .8,
    'valid_api_call': .83, 'response_tokens_before': 22.4, 'response_tokens': 23.1,
    'finished_before': 1., 'finished': 1., 'gold_optimum': 1.})
  prompt = ('<|user|>hi, could i get a large latte with oat milk<|agent|>Anything else?'
            '<|user|>{}<|agent|>')
  call = '{"add_order_item":{"item":"latte","size":"large","milk":"oat"}}'
  save(workdir / 'evaluate' / 'samples.json', [
    {'prompt': prompt.format('no, make that two please'), 'reference': call,
     'before': call[:-20], 'after': call, 'gold_before': .31, 'gold_after': 1.,
     'reward_before': -.2, 'reward_after': 2.1},
    {'prompt': HOSTILE, 'reference': None, 'before': '', 'after': HOSTILE, 'gold_before': None,
     'gold_after': None, 'reward_before': None, 'reward_after': 0.5},
  ] * 2)
  return workdir


def test_responses_are_shown_as_the_policy_learns(tmp_path):
  """Of a resumed run the newest line of a step; five steps, the first and the last among them."""
  lines = [{'step': step, 'prompt': HOSTILE, 'response': f'said at {step}', 'reward': step / 10}
           for step in (0, 5, 10, 15, 20, 25, 30, 30)]
  lines[-1]['response'] = 'said again'
  (tmp_path / 'rl').mkdir()
  (tmp_path / 'rl' / 'rollouts.jsonl').write_text('\n'.join(map(json.dumps, lines)) + '\n{"st')
  text = dialogues.during(tmp_path / 'rl')
  parse(text)
  assert '&lt;script&gt;' in text and HOSTILE not in text
  shown = re.findall(r'said at \d+|said again', text)
  assert shown == ['said at 0', 'said at 10', 'said at 15', 'said at 20', 'said again']
  assert 'reward 2.00' in text
  assert dialogues.during(tmp_path / 'nothing') == ''


def test_the_whole_report_parses_and_stands_alone(tmp_path):
  path = pathlib.Path(report.write(str(fake_pipeline(tmp_path))))
  assert path == tmp_path / 'report.html'
  text = path.read_text()
  parser = parse(text)
  assert not {'script', 'link', 'img', 'iframe'} & set(parser.tags)
  assert not any(re.search(r'https?:|//', value) for value in parser.values)
  assert 'url(' not in text and '@import' not in text
  assert parser.tags.count('svg') > 15
  for part in ('Pretraining', 'Reward model', 'Reinforcement learning', 'optimum of 1.000',
               'from 0.618 (SFT) to 0.915 (RL)', '78 % of the way', 'KL to the anchor of 1.83',
               '0.885 [0.860, 0.910]', '0.710 [0.680, 0.740]', 'abc1234', '0.31', 'Config'):
    assert part in parser.text, part


def test_text_is_escaped(tmp_path):
  parser = parse(pathlib.Path(report.write(str(fake_pipeline(tmp_path)))).read_text())
  assert HOSTILE in parser.text


def test_missing_stages_are_left_out(tmp_path):
  fake_pipeline(tmp_path)
  for stage in ('rl', 'evaluate'):
    for file in (tmp_path / stage).iterdir():
      file.unlink()
  text = parse(pathlib.Path(report.write(str(tmp_path))).read_text()).text
  assert 'Reward model' in text and 'Reinforcement' not in text and 'Dialogues' not in text


def test_every_finished_stage_is_in_the_report(tmp_path):
  for name, stage in STAGES.items():
    log(tmp_path / name, [{'step': n, f'dev/{stage.curves[0]}': 1.0} for n in (1, 2)])
    save(tmp_path / name / 'summary.json', {'wall_seconds': 1.0})
  text = parse(report.page(tmp_path)).text
  assert f'{len(STAGES)} of {len(STAGES)} stages finished' in text
  for name, stage in STAGES.items():
    assert f'{stage.title}\n{curves.title_of(stage.curves[0])}' in text, name
    assert f'{name}1.0 s' in text, name


def test_what_else_is_measured_before_and_after_is_in_the_table(tmp_path):
  """A dataset's own metric needs no file of the report."""
  save(tmp_path / 'evaluate' / 'summary.json', {
    'correct_before': 0.25, 'correct': 0.5, 'correct_low': 0.375, 'correct_high': 0.625,
    'kl_before': 0.0, 'kl': 1.5, 'responses_before': 3, 'responses': 3})
  text = parse(report.page(tmp_path)).text
  assert 'Correct0.2500.500 [0.375, 0.625]' in text and 'Responses' not in text
  assert text.index('KL to the anchor, nats a response') < text.index('Correct0.250')


def test_an_empty_workdir_has_a_report(tmp_path):
  parser = parse(pathlib.Path(report.write(str(tmp_path))).read_text())
  assert '0 of 6 stages finished' in parser.text


def test_a_missing_workdir_is_an_error(tmp_path, capsys):
  with pytest.raises(FileNotFoundError, match='found no folder'):
    report.write(str(tmp_path / 'none'))
  assert program.main(['--workdir', str(tmp_path / 'none')]) == 2
  assert 'expected the workdir' in capsys.readouterr().err


def test_broken_files_do_no_harm(tmp_path):
  fake_pipeline(tmp_path)
  with (tmp_path / 'rl' / 'metrics.jsonl').open('a') as file:
    file.write('{"step": 999, "train/reward": null}\n[1]\n{"step": 10')
  (tmp_path / 'evaluate' / 'samples.json').write_text('{"not": "a list"')
  (tmp_path / 'reward' / 'summary.json').write_text('nonsense')
  parse(pathlib.Path(report.write(str(tmp_path))).read_text())


def test_ticks_are_round_and_cover():
  assert figures.ticks(0.0, 1.0) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
  assert figures.ticks(-3, 22) == [-5, 0, 5, 10, 15, 20, 25]
  for low, high in ((0.613, 0.62), (1e-5, 3e-4), (5.0, 5.0), (-1e9, 1e9), (0.0, 0.0)):
    found = figures.ticks(low, high)
    assert found[0] <= low and found[-1] >= high and 2 <= len(found) <= 9


def test_numbers_are_short():
  assert [figures.number(v) for v in (0, 0.25, 2e-4, 12000, 3e6, -1.5)] == [
    '0', '0.25', '2e-04', '12k', '3M', '-1.5']


def test_smoothing_keeps_a_constant_and_starts_at_the_first_value():
  assert [y for _, y in figures.smooth([(i, 3.0) for i in range(9)])] == pytest.approx([3.0] * 9)
  assert figures.smooth([(0, 7.0), (1, 0.0)])[0] == (0, pytest.approx(7.0))


def test_thinning_keeps_the_end_and_the_mean():
  points = [(float(i), float(i % 2)) for i in range(4000)]
  found = figures.thin(points)
  assert len(found) <= 400 and found[-1] == points[-1]
  assert sum(y for _, y in found[:-1]) / len(found[:-1]) == pytest.approx(.5)


def test_a_chart_without_finite_points_is_nothing():
  series = [figures.Series('a', [(0, float('nan')), (1, None)])]
  assert figures.line_chart(series, title='t') == ''


def test_metrics_are_gathered_by_name():
  rows = [{'step': 1, 'time': 0, 'train/loss': 2., 'dev/auc_low': .1}, {'step': 2, 'dev/loss': 1.}]
  assert curves.collect(rows) == {'loss': {'train': [(1., 2.)], 'dev': [(2., 1.)]}}


def test_what_tells_hacking_early_is_shown_at_once(tmp_path):
  names = ('response_tokens', 'entropy', 'kl', 'repetition', 'uncertainty')
  log(tmp_path / 'rl', [
    {'step': s, 'dev/reward': 1., 'train/other': 1., **{f'dev/{name}': .1 for name in names}}
    for s in range(3)])
  (_, text), = curves.sections(tmp_path, {})
  shown, folded = text.split('<details>')
  assert all(curves.title_of(name) in shown and curves.title_of(name) not in folded
             for name in names)
  assert 'Other' in folded and 'nats a token' in shown


def test_turns_of_a_prompt():
  found = dialogues.turns('<|user|>hi<|api|>{"a":1}<|agent|>')
  assert found == [('user', 'hi'), ('api', '{"a":1}')]
  assert dialogues.turns('plain text') == [('', 'plain text')]
