"""Sample dialogues of the report: the prompt's turns, and the responses before and after RL."""

import html
import re

from etils import epath

from perl.config import runs

SPEAKERS = {'user': 'User', 'agent': 'Agent', 'api': 'API'}
MARKER = re.compile(r'<\|(user|agent|api)\|>')


def render(path: epath.Path) -> str:
  """HTML of samples.json, {"prompt", "reference", "before", "after", "gold_before", ...} each."""
  samples = runs.read_json(path, [])
  samples = [s for s in samples if isinstance(s, dict)] if isinstance(samples, list) else []
  shown = ''.join(map(_sample, samples))
  return f'<div class="dialogues">{shown}</div>' if shown else ''


def turns(prompt: str) -> list[tuple[str, str]]:
  """(speaker, text) of a rendered prompt; speaker '' for what precedes the first marker."""
  first, *rest = MARKER.split(prompt)
  spoken = [('', first), *zip(rest[::2], rest[1::2])]
  return [(speaker, text.strip()) for speaker, text in spoken if text.strip()]


def _sample(sample: dict) -> str:
  prompt = ''.join(
    f'<p class="turn {speaker}"><b>{SPEAKERS.get(speaker, "Text")}</b> '
    f'<span>{html.escape(text)}</span></p>'
    for speaker, text in turns(str(sample.get('prompt', ''))))
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
