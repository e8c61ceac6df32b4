"""The report of a workdir: results, curves, dialogues, config; one file, no links."""

import html
import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

from etils import epath

from perl import paths
from perl.config import runs
from perl.jobs import PERL
from perl.report import curves, dialogues
from perl.report.style import STYLE


def write(workdir: str) -> str:
  """Writes workdir/report.html from whatever stages are there; returns its path.

  Raises:
    FileNotFoundError: there is no such folder.
  """
  folder = paths.of(workdir)
  if not folder.is_dir():
    raise FileNotFoundError(f'expected the workdir of a run, found no folder {workdir!r}; '
                            'run perl-rlhf launch first')
  path = folder / 'report.html'
  path.write_text(page(folder))
  return str(path)


def page(workdir: epath.Path) -> str:
  """The whole document."""
  config, summaries = runs.config(workdir), runs.summaries(workdir)
  name = str(config.get('name') or workdir.name)
  sections = [
    _header(name, config, summaries),
    section('Results', results(summaries)),
    *(section(title, body) for title, body in curves.sections(workdir, summaries)),
    section('Responses as the policy learns', dialogues.during(workdir / 'rl')),
    section('Dialogues before and after', dialogues.render(workdir / 'evaluate' / 'samples.json')),
    section('Where this comes from', provenance(summaries)),
    _config(config),
  ]
  return (
    '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    f'<title>{html.escape(name)}</title>\n<style>\n{STYLE}</style></head>\n<body><main>'
    + '\n'.join(filter(None, sections)) + '</main></body></html>\n')


def section(title: str, body: str) -> str:
  """A titled section; '' without a body."""
  return f'<section><h2>{html.escape(title)}</h2>\n{body}</section>' if body else ''


def table(rows: Iterable[Sequence[str]], head: Sequence[str] = ()) -> str:
  """Cells are plain text; the first of a row is its heading. '' without rows."""
  cell = lambda text: f'<td>{html.escape(str(text))}</td>'
  body = ''.join(
    f'<tr><th scope="row">{html.escape(str(first))}</th>{"".join(map(cell, rest))}</tr>'
    for first, *rest in rows)
  if not body:
    return ''
  top = ''.join(f'<th scope="col">{html.escape(text)}</th>' for text in head)
  return (f'<div class="scroll"><table>{f"<thead><tr>{top}</tr></thead>" if head else ""}'
          f'<tbody>{body}</tbody></table></div>')


def results(summaries: dict[str, dict]) -> str:
  """The headline: gold reward from SFT to RL to the optimum, and the reward model's figures."""
  return ''.join([
    _headline(summaries), table(_policy_rows(summaries), ('Policy', 'before', 'after')),
    table(_reward_rows(summaries), ('Reward model', 'this', 'bag of words', 'majority'))])


def start_and_end(summaries: dict[str, dict], name: str) -> tuple[float | None, float | None]:
  """A policy metric before and after RL: of the test prompts, else of RL's own evaluations.

  Without RL, of preference optimisation.
  """
  evaluate, sft = (summaries.get(stage, {}) for stage in ('evaluate', 'sft'))
  rl = summaries.get('rl') or summaries.get('preference', {})
  for where, before, after in ((evaluate, f'{name}_before', name), (rl, f'{name}_start', name)):
    if is_number(where.get(before)) and is_number(where.get(after)):
      return where[before], where[after]
  return sft.get(name), rl.get(name)


def is_number(value: Any) -> bool:
  """A finite number, and no bool."""
  return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _headline(summaries: dict[str, dict]) -> str:
  start, end = start_and_end(summaries, 'gold_reward')
  best, kl = runs.optimum(summaries), start_and_end(summaries, 'kl')[1]
  if not (is_number(start) and is_number(end)):
    return ''
  last = 'RL' if 'rl' in summaries or 'preference' not in summaries else 'preferences'
  text = f'Gold reward went from <b>{start:.3f}</b> (SFT) to <b>{end:.3f}</b> ({last})'
  if is_number(best) and best > start:
    share = 100 * (end - start) / (best - start)
    text += f', of an optimum of <b>{best:.3f}</b>: {share:.0f} % of the way'
  if is_number(kl):
    text += f', at a KL to the anchor of <b>{kl:.2f}</b> nats a response'
  return f'<p class="headline">{text}.</p>'


POLICY = (('gold_reward', 'Gold reward'), ('reward', 'Reward of the reward model'),
          ('exact_match', 'Exact match with the reference'), ('valid_api_call', 'Valid API calls'),
          ('api_accuracy', 'Right API'), ('kl', 'KL to the anchor, nats a response'),
          ('response_tokens', 'Length, tokens'), ('finished', 'Ends in EOS'),
          ('distinct_2', 'Distinct 2-grams'), ('repetition', 'Repetition'))
"""First of the table of policies; whatever else an evaluation measures before and after follows."""


def _policy_rows(summaries: dict[str, dict]) -> list[tuple[str, str, str]]:
  rows, test = [], summaries.get('evaluate', {})
  more = [name.removesuffix('_before') for name in test if name.endswith('_before')]
  others = {name: curves.title_of(name) for name in more if not curves.HIDDEN.search(name)}
  for name, title in (dict(POLICY) | others | dict(POLICY)).items():
    start, end = start_and_end(summaries, name)
    if is_number(start) or is_number(end):
      rows.append((title, figure(start, test.get(f'{name}_low_before'),
                                 test.get(f'{name}_high_before')),
                   figure(end, test.get(f'{name}_low'), test.get(f'{name}_high'))))
  return rows


REWARD = (('auc', 'ROC AUC'), ('pair_accuracy', 'Pair accuracy'), ('accuracy', 'Accuracy'),
          ('balanced_accuracy', 'Balanced accuracy'), ('calibration_error', 'Calibration error'))


def _reward_rows(summaries: dict[str, dict]) -> list[tuple[str, str, str, str]]:
  reward = summaries.get('reward', {})
  bounds = lambda name: (reward.get(name), reward.get(f'{name}_low'), reward.get(f'{name}_high'))
  constant = {'auc': 0.5, 'balanced_accuracy': 0.5, 'accuracy': reward.get('majority_rate')}
  return [
    (title, figure(*bounds(name)), figure(*bounds(f'baseline_{name}')), figure(constant.get(name)))
    for name, title in REWARD if is_number(reward.get(name))]


def figure(value: Any, low: Any = None, high: Any = None) -> str:
  """'0.71 [0.65, 0.77]', as far as it is known."""
  if not is_number(value):
    return '–'
  digits = 3 if abs(value) < 10 else 1
  text = f'{value:.{digits}f}'
  bounded = is_number(low) and is_number(high)
  return f'{text} [{low:.{digits}f}, {high:.{digits}f}]' if bounded else text


def _header(name: str, config: dict, summaries: dict[str, dict]) -> str:
  facts = [
    config.get('data', {}).get('name'), f"{config.get('model', {}).get('size', '')} model".strip(),
    config.get('peft', {}).get('name'),
    f"seed {config['seed']}" if 'seed' in config else None,
    f'{len(summaries)} of {len({*config.get("stages", PERL), *summaries})} stages finished',
  ]
  line = ' · '.join(html.escape(str(fact)) for fact in facts if fact and fact != 'model')
  return f'<header><h1>{html.escape(name)}</h1><p>{line}</p></header>'


def provenance(summaries: dict[str, dict]) -> str:
  """A row a stage with time, memory and parameters; then the code and the machine."""
  rows = [
    (stage, duration(s.get('wall_seconds')), duration(s.get('step_seconds')),
     megabytes(s.get('peak_memory_bytes')), count(s.get('parameters_trainable')),
     count(s.get('parameters_total')))
    for stage, s in summaries.items()]
  head = ('Stage', 'wall time', 'a step', 'peak memory', 'trainable', 'parameters')
  facts: dict[str, dict[str, None]] = {}
  for s in summaries.values():  # stages of one pipeline may have been run by different code
    for name in ('commit', 'hardware', 'versions'):
      if s.get(name):
        facts.setdefault(name, {})[describe(s[name])] = None
  return table(rows, head) + table([(name, '; or '.join(values)) for name, values in facts.items()])


def describe(value: Any) -> str:
  """A dict as 'name value, name value'; anything else as itself."""
  if not isinstance(value, dict):
    return str(value)
  show = lambda k, v: megabytes(v) if k.endswith('_bytes') else v
  return ', '.join(f'{k.removesuffix("_bytes")} {show(k, v)}' for k, v in value.items())


def duration(seconds: Any) -> str:
  """'12.3 ms', '4.1 s', '3 min 5 s'."""
  if not is_number(seconds):
    return '–'
  if seconds >= 100:
    return f'{int(seconds // 60)} min {seconds % 60:.0f} s'
  return f'{seconds:.1f} s' if seconds >= 1 else f'{1000 * seconds:.3g} ms'


def megabytes(value: Any) -> str:
  """Bytes in MiB or GiB."""
  if not is_number(value):
    return '–'
  return f'{value / 2**30:.2f} GiB' if value >= 2**30 else f'{value / 2**20:.4g} MiB'


def count(value: Any) -> str:
  """An integer with its thousands apart."""
  return f'{int(value):,}' if is_number(value) else '–'


def _config(config: dict) -> str:
  if not config:
    return ''
  text = html.escape(json.dumps(config, indent=2, ensure_ascii=False))
  return f'<details><summary>Config</summary><pre>{text}</pre></details>'
