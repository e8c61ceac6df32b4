"""Writes the blocks of docs/: one holds what a file of experiments/results says, or what the code
declares (`DECLARED`).

    python -m experiments.render            rewrites the blocks that differ
    python -m experiments.render --check    exit code 1 where one differs; writes nothing

A page is written by hand around blocks, which nobody edits:

    <!-- results: demo.json -->
    ...
    <!-- end -->
"""

import argparse
import fnmatch
import json
import pathlib
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

from experiments.bench import contest, loading
from perl import choices
from perl.config import schema
from perl.forecast import table as forecast
from perl.report import formats
from perl.rl import algorithms

ROOT = pathlib.Path(__file__).parents[1]
RESULTS = ROOT / 'experiments' / 'results'
BLOCK = re.compile(r'(<!-- (?:results|declared): ([\w.-]+) -->\n).*?(<!-- end -->)', re.DOTALL)
Results = Mapping[str, Any]


def evaluation(run: Results) -> str:
  """The evaluation of one run's summary.json: before and after RL, with 95 % intervals."""
  figures = run['evaluate']

  def cell(name: str, when: str) -> str:
    mean, low, high = (f'{figures[f"{name}{end}{when}"]:z.3f}' for end in ('', '_low', '_high'))
    return f'{mean} [{low}, {high}]'

  names = [name for name in EVALUATION if f'{name}_before' in figures]
  body = [[EVALUATION[name], cell(name, '_before'), cell(name, '')] for name in names]
  return formats.markdown(['', 'SFT anchor', 'after RL'], body, [
    f'One run of seed {figures["seed"]}, {run["wall_seconds"]:.0f} s in all; '
    f'{figures["responses"]} sampled responses to test prompts.'])


EVALUATION = {
  'gold_reward': 'gold reward', 'reward': 'reward', 'kl': 'KL to the anchor, nats a response',
  'exact_match': 'exact match, greedy', 'correct': 'right answers, greedy',
  'valid_api_call': 'valid API calls, greedy', 'response_tokens': 'length, tokens',
  'finished': 'ends in EOS',
}


def reward_model(run: Results) -> str:
  """The reward model of one run's summary.json, on test, with 95 % intervals."""
  figures = run['reward']
  names = {'auc': 'reward model', 'probe_auc': 'its start: frozen model, logistic regression',
           'baseline_auc': 'bag of words'}
  body = [[title, f'{figures[n]:.3f} [{figures[f"{n}_low"]:.3f}, {figures[f"{n}_high"]:.3f}]']
          for n, title in names.items()]
  return formats.markdown(['ROC AUC', 'test'], body, [
    f'{figures["examples"]} examples in {figures["groups"]} groups; group-bootstrap intervals.'])


def memory(result: Results) -> str:
  """Bytes of a reward-model step, LoRA against full tuning."""
  mib = lambda row, method: f'{row[method]["total_bytes"] / 2**20:,.0f}'
  body = [[str(row['pairs']), row['remat'], mib(row, 'lora'), mib(row, 'full'),
           f'{row["ratio"]:.1%}'] for row in result['rows']]
  return formats.markdown(['pairs', 'remat', 'LoRA, MiB', 'full, MiB', 'LoRA / full'], body, [])


def published(result: Results) -> str:
  """Published counts of parameters and bytes beside ours, a line each."""
  def subject(f: Mapping[str, Any]) -> str:
    sizes = [f'{name} {value}' for name, value in f['sizes'].items()]
    rank = [f'r {f["rank"]}'] if f['rank'] else []
    return '; '.join(filter(None, [f'{f["method"]} {", ".join(f["targets"])}'.strip(), *sizes,
                                   *rank, f['what']]))

  body = [[f['publication'], f['model'], subject(f), f['printed'], f['form'], f'{f["ours"]:,.4g}'
           if isinstance(f['ours'], float) else f'{f["ours"]:,}',
           ': '.join(filter(None, (f['verdict'], f['why'])))] for f in result['figures']]
  slips = sum(f['verdict'] == 'slips' for f in result['figures'])
  head = ['publication', 'model', 'figure', 'printed', 'form', 'ours', 'verdict']
  return formats.markdown(
    head, body, [f'{len(body)} figures, of which {slips} slip.', *result['notes']])


def memory_of_stages(result: Results) -> str:
  """A forecast: LoRA over one base against whole models, a table a stage."""
  return '\n\n'.join(
    forecast.markdown(figures, stage) for stage, figures in result['stages'].items())


def fuzz(result: Results) -> str:
  """What became of spoilt inputs, by kind."""
  rows = [(name, row['inputs'], row['accepted'], row['refused'],
           sum(finding['count'] for finding in row['findings']))
          for name, row in result['kinds'].items()]
  total = ('all', *(sum(column) for column in list(zip(*rows))[1:]))
  body = [[name, *(f'{count:,}' for count in counts)] for name, *counts in [*rows, total]]
  return formats.markdown(['kind', 'inputs', 'accepted', 'refused', 'findings'], body, [
    f'Seed {result["settings"]["seed"]}; at most {result["settings"]["seconds"]:.0f} s and '
    f'{result["settings"]["mebibytes"]:,} MiB an input.'])


STUDIES = {
  '*_algorithms.json': 'algorithms', '*_regularizers.json': 'regularizers',
  '*_frozen*.json': 'frozen', 'smollm2_coffee.json': 'sweep',
  '*_folds*.json': 'crossvalidate', 'hh_rlhf*.json': 'preferences', 'qlora*.json': 'qlora',
  'published.json': 'settings', 'published_reward.json': 'settings',
  'solutions*.json': 'sweep', 'e2e*.json': 'methods',
  'coffee.json': 'sweep', 'coffee_methods.json': 'methods',
  'coffee_grid.json': 'grid', 'coffee_rates.json': 'rates',
  'overoptimisation.json': 'overoptimisation', 'gsm8k_verifier.json': 'verifier',
  'versions.json': 'versions',
}
"""Pattern of a file's name -> the study whose table it has: a file of experiments/studies."""

OTHERS: dict[str, Callable[[Results], str]] = {
  'methods_published.json': published,
  'methods_*.json': lambda r: formats.markdown(*study('costs').table(r)),
  'memory_*.json': memory,
  'forecast_*.json': memory_of_stages,
  'load_*.json': lambda r: loading.table(r['cases']),
  'speed_*.json': lambda r: contest.table(r['cases']),
  'ticketing.json': reward_model,
  'fuzz.json': fuzz,
  '*.json': evaluation,
}
"""Pattern of a file's name -> its table in Markdown; the first that fits."""


def study(name: str) -> ModuleType:
  """The module of a study."""
  return choices.find('experiments.studies', name)


def render(name: str) -> str:
  """What a file of experiments/results says, in Markdown.

  Raises:
    FileNotFoundError: there is no such file.
  """
  if name in DECLARED:
    return DECLARED[name]()
  result = json.loads((RESULTS / name).read_text(encoding='utf-8'))
  for pattern, about in STUDIES.items():
    if fnmatch.fnmatch(name, pattern):
      return formats.markdown(*study(about).table(result))
  return next(f for pattern, f in OTHERS.items() if fnmatch.fnmatch(name, pattern))(result)


def options_of_algorithms() -> str:
  """Which algorithm reads which field: of those that not all of them read."""
  fields = [path.removeprefix('rl.') for path in schema.of_stage('rl')]
  readers = {option: algorithms.readers(option) for option in fields}
  judging: dict[str, list[str]] = {}
  for name in choices.names(algorithms.__name__):
    judging.setdefault(algorithms.find(name).JUDGES_BY, []).append(name)
  judged = '; '.join(f'by {what}: {", ".join(names)}' for what, names in judging.items())
  return formats.markdown(
    ['field', 'read by'], [[f'`rl.{option}`', by] for option, by in readers.items() if by],
    [f'Responses are judged {judged} (returns are rewards to go; scores are before any KL, offset '
     'or scale).'])


DECLARED: dict[str, Callable[[], str]] = {'options_of_algorithms': options_of_algorithms}
"""Name of a block -> what the code declares, in Markdown."""


def updated(page: str) -> str:
  """The page with every block as its file has it now."""
  return BLOCK.sub(lambda m: f'{m[1]}\n{render(m[2]).strip()}\n\n{m[3]}', page)


def main(argv: Sequence[str] | None = None) -> int:
  """The program; returns the exit code."""
  parser = argparse.ArgumentParser(
    prog='python -m experiments.render', description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--check', action='store_true', help='write nothing; 1 where a block differs')
  options = parser.parse_args(argv)
  stale = []
  for path in sorted((ROOT / 'docs').rglob('*.md')):
    page = path.read_text(encoding='utf-8')
    if (text := updated(page)) != page:
      stale.append(path.relative_to(ROOT).as_posix())
      if not options.check:
        path.write_text(text, encoding='utf-8')
  print(f'{"differ" if options.check else "written"}: {", ".join(stale) or "none"}')
  return int(options.check and bool(stale))


if __name__ == '__main__':
  sys.exit(main())
