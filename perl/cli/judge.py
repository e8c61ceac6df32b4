r"""The win rate of one policy's responses against another's, on the prompts that both answered.

    perl-rlhf judge --ours=runs/demo/evaluate --theirs=runs/demo/evaluate:before --by=gold
    perl-rlhf judge --ours=runs/a/evaluate --theirs=runs/b/evaluate --by=reward \
        --reward=runs/held_out/reward
    perl-rlhf judge --ours=runs/a/evaluate --theirs=runs/b/evaluate --by=command \
        --command='python my_judge.py'

A folder is that of a finished `evaluate` stage, with ':before' for its anchor in place of its
policy; its responses.json holds what was sampled. The judge sees each pair in both orders, and a
pair is won only if preferred in both (perl/evaluate/win_rate.py, where `by_command` says what a
program that judges reads and writes). --by=gold is the dataset's own gold reward, --by=reward a
reward model over the same anchor, best one that no policy learnt from.
"""

import argparse
import shlex
from collections.abc import Callable, Sequence
from typing import Any

from etils import epath

from perl import documents, paths
from perl.config import command_line
from perl.config.fields import ConfigError
from perl.documents import FLAG, TEXT
from perl.evaluate import win_rate
from perl.jobs import _reading
from perl.jobs._artefacts import Artefacts
from perl.jobs._data import Data
from perl.jobs._run import Run
from perl.jobs._scoring import Answer, Scorer
from perl.report import formats
from perl.rl.rewards import Rewards
from perl.rl.rules import Rules
from perl.train import metrics

RESPONSE = documents.record(prompt=TEXT, group=TEXT, before=TEXT, after=TEXT,
                            finished_before=FLAG, finished_after=FLAG)
FIGURES = (('wins', 'win'), ('ties', 'tie'), ('losses', 'loss'), ('win rate', 'win_rate'))


def read(place: str) -> tuple[epath.Path, list[dict[str, Any]], list[Answer]]:
  """(the stage's folder, the prompts, the responses) of 'folder' or 'folder:before'.

  Raises:
    ConfigError: no finished evaluate stage with its responses.
  """
  name, _, which = place.partition(':') if '://' not in place else place.rpartition(':')
  if which.startswith('//'):  # of a scheme
    name, which = place, ''
  if which not in ('', 'before', 'after'):
    raise ConfigError(f"expected ':before' or ':after' behind the folder, found {which!r}")
  folder = paths.of(name)
  try:
    rows = paths.read_json(folder / 'responses.json', documents.items(RESPONSE))
    which = which or 'after'
    return folder, rows, [Answer(row[which], row[f'finished_{which}']) for row in rows]
  except (OSError, ValueError) as error:
    raise ConfigError(f'expected responses.json of a finished evaluate stage in {folder}, found '
                      f'{type(error).__name__} ({error}); run --job=evaluate first; '
                      'if an older version left it, delete the folder before') from None


def by_gold(folder: epath.Path) -> Callable:
  """The judge who has the dataset's gold reward.

  Raises:
    ConfigError: the dataset has none.
  """
  data = Data(_run(folder), None)
  if not hasattr(data.dataset, 'gold_reward'):
    raise ConfigError(f'expected a dataset with a gold reward, found {data.run.config.data.name}; '
                      'use --by=reward or --by=command')
  gold = data.dataset.gold_reward
  return win_rate.by_score(
    lambda prompts, answers: [gold(p, a.text) for p, a in zip(prompts, answers)])


def by_reward(folder: epath.Path, stage: str, prompts: Sequence[str]) -> Callable:
  """The judge who has the reward model of a stage, over the anchor of `folder`.

  Raises:
    FileNotFoundError: there is no such model.
    ConfigError: the dataset has not these prompts any more.
  """
  _reading.of_result(stage, 'reward')
  run = _run(folder)
  artefacts = Artefacts(run)
  data = artefacts.data
  known = {example.prompt: example for example in data.answered('test')}
  if lost := [prompt for prompt in prompts if prompt not in known]:
    raise ConfigError(
      f'expected the prompts of {folder} in the test split of {run.config.data.name}, found '
      f'{len(lost)} of {len(prompts)} missing; give the data that were evaluated on')
  anchor = artefacts.anchor()
  adapter, _ = artefacts.adapter(stage, anchor)
  rewards = Rewards(None, {'reward': adapter}, Rules((), (), data.dataset),
                    max_new_tokens=run.config.rl.max_new_tokens, decode=data.decode)
  scorer = Scorer(run, data, anchor)
  return win_rate.by_score(lambda prompts, answers: scorer.of_answers(
    rewards, [known[prompt] for prompt in prompts], answers))


def _run(folder: epath.Path) -> Run:
  config = command_line.saved(folder / 'config.json')
  config.rl.rules = ()  # who judges needs none, and imports none that a folder names
  return Run(config, str(folder), 'evaluate')


def _judge(options: argparse.Namespace, folder: epath.Path, prompts: Sequence[str]) -> Callable:
  needed = {'reward': options.reward, 'command': options.command}
  if not needed.get(options.by, 'nothing more'):
    raise ConfigError(f'expected --{options.by}=<...> with --by={options.by}, found none')
  if options.by == 'gold':
    return by_gold(folder)
  if options.by == 'reward':
    return by_reward(folder, options.reward, prompts)
  judge = win_rate.by_command(shlex.split(options.command))
  texts = lambda answers: [answer.text for answer in answers]
  return lambda prompts, first, second: judge(prompts, texts(first), texts(second))


def run(options: argparse.Namespace) -> dict[str, Any]:
  """The report of `win_rate.report`, and who was judged by whom.

  Raises:
    ConfigError: responses to other prompts, or a judge that cannot be had.
  """
  (folder, rows, ours), (_, others, theirs) = read(options.ours), read(options.theirs)
  if [row['prompt'] for row in rows] != [row['prompt'] for row in others]:
    raise ConfigError(f'expected responses to the same prompts, found {len(rows)} in '
                      f'{options.ours} and {len(others)} others in {options.theirs}; evaluate both '
                      'with one dataset and one evaluate.max_examples')
  prompts = [row['prompt'] for row in rows]
  first, second = win_rate.verdicts(_judge(options, folder, prompts), prompts, ours, theirs)
  report = win_rate.report(first, second, [row['group'] for row in rows], seed=options.seed)
  return {'ours': options.ours, 'theirs': options.theirs, 'by': options.by, **report}


def table(report: dict[str, Any]) -> str:
  """The report in Markdown."""
  share = lambda name: (f'{100 * report[name]:.1f} % [{100 * report[f"{name}_low"]:.1f}, '
                        f'{100 * report[f"{name}_high"]:.1f}]')
  return formats.markdown(
    [f'{report["ours"]} against {report["theirs"]}', f'of {report["pairs"]} pairs'],
    [[title, share(name)] for title, name in FIGURES],
    [f'Judged by {report["by"]}, in both orders; a pair is won only if preferred in both. The '
     f'order decided {100 * report["order_dependent"]:.1f} %, which are ties. Win rate: wins and '
     'half of the ties. 95 % group-bootstrap intervals.'])


@command_line.guarded
def main(argv: Sequence[str] | None = None) -> None:
  """The program; returns the exit code, 2 for what cannot be judged, else 0."""
  reader = argparse.ArgumentParser(
    prog='perl-rlhf judge', description=__doc__, allow_abbrev=False,
    formatter_class=argparse.RawDescriptionHelpFormatter)
  reader.add_argument('--ours', required=True, help='<folder of an evaluate stage>[:before]')
  reader.add_argument('--theirs', required=True, help='the same of the other')
  reader.add_argument('--by', default='gold', choices=('gold', 'reward', 'command'))
  reader.add_argument('--reward', default='', help='folder of a reward stage')
  reader.add_argument('--command', default='', help='a program that judges')
  reader.add_argument('--seed', type=int, default=0, help='of the bootstrap')
  reader.add_argument('--json', default='', help='write the report to this file')
  options = command_line.explaining(reader).parse_args(argv)
  report = run(options)
  print(table(report))
  if options.json:
    metrics.write_json(options.json, report)
