"""Sample dialogues of the report: the prompt's turns, and the responses before and after RL."""

import html
import re

from etils import epath

from perl import documents, paths
from perl.config import runs

SPEAKERS = {'user': 'User', 'agent': 'Agent', 'api': 'API'}
MARKER = re.compile(r'<\|(user|agent|api)\|>')


def render(path: epath.Path) -> str:
  """HTML of samples.json, {"prompt", "reference", "before", "after", "gold_before", ...} each."""
  read = lambda path: paths.read_json(path, documents.items(documents.OBJECT))
  samples = runs.readable(read, path, []) if path.exists() else []
  shown = ''.join(map(_sample, samples))
  return f'<div class="dialogues">{shown}</div>' if shown else ''


def during(folder: epath.Path, most: int = 5) -> str:
  """HTML of rollouts.jsonl of a stage: what was answered to some dev prompts as the policy learnt.

  Args:
    folder: of the stage.
    most: steps that are shown, evenly over them, the first and the last among them.
  """
  by_prompt: dict[str, dict[int, dict]] = {}
  for row in runs.read_metrics(folder, 'rollouts.jsonl'):
    by_prompt.setdefault(str(row.get('prompt', '')), {})[row['step']] = row
  shown = ''.join(_course(prompt, _some(rows, most)) for prompt, rows in by_prompt.items())
  return f'<details><summary>{len(by_prompt)} prompts</summary><div class="dialogues">{shown}' \
         '</div></details>' if shown else ''


def _some(rows: dict[int, dict], most: int) -> dict[int, dict]:
  steps = sorted(rows)
  places = {round(i * (len(steps) - 1) / max(1, most - 1)) for i in range(most)}
  return {step: rows[step] for place, step in enumerate(steps) if place in places}


def _course(prompt: str, rows: dict[int, dict]) -> str:
  """A prompt, and a response to it at each of these steps."""
  responses = [_response(f'step {step}', row.get('response'), {
    'reward_now': row.get('reward')}, 'now') for step, row in rows.items()]
  return f'<article>{_prompt(prompt)}<dl>{"".join(responses)}</dl></article>'


def turns(prompt: str) -> list[tuple[str, str]]:
  """(speaker, text) of a rendered prompt; speaker '' for what precedes the first marker."""
  first, *rest = MARKER.split(prompt)
  spoken = [('', first), *zip(rest[::2], rest[1::2])]
  return [(speaker, text.strip()) for speaker, text in spoken if text.strip()]


def _prompt(text: str) -> str:
  return ''.join(
    f'<p class="turn {speaker}"><b>{SPEAKERS.get(speaker, "Text")}</b> '
    f'<span>{html.escape(spoken)}</span></p>' for speaker, spoken in turns(text))


def _sample(sample: dict) -> str:
  prompt = _prompt(str(sample.get('prompt', '')))
  before, after = sample.get('before'), sample.get('after')
  rows = [_response('SFT', before, sample, 'before'), _response('RL', after, sample, 'after')]
  if sample.get('reference') is not None:
    rows.append(_response('Reference', sample['reference'], {}, ''))
  return f'<article>{prompt}<dl>{"".join(rows)}</dl></article>'


def _response(name: str, text, sample: dict, when: str) -> str:
  figures = ', '.join(
    f'{title} {value:.2f}' for key, title in (('gold', 'gold'), ('reward', 'reward'))
    if isinstance(value := sample.get(f'{key}_{when}'), (int, float)))
  shown = html.escape(str(text)) if text else '<i>nothing</i>'
  note = f' <small>{figures}</small>' if figures else ''
  return f'<div class="{when}"><dt>{name}{note}</dt><dd>{shown}</dd></div>'
