"""Win rates of finished policies by a reward model of the same study; each is judged once."""

import argparse
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from perl.cli import judge
from perl.config import runs
from perl.train import metrics

FILE = 'wins.json'
"""What the judge said, in the folder of the evaluate stage."""


def win_rates(
  places: Mapping[str, pathlib.Path], reward: pathlib.Path, *, ask: bool
) -> dict[str, dict[str, Any]]:
  """{name: `win_rate.report` of its policy against the anchor} of those that are finished.

  Args:
    places: {name: the folder of its evaluate stage}.
    reward: the folder of the reward stage that judges.
    ask: judge what is not judged yet, which takes a model.
  """
  reports = {}
  for name, folder in places.items():
    if not runs.summary(folder) or not runs.summary(reward):
      continue
    file = folder / FILE
    if not file.exists() and ask:
      metrics.write_json(file, judge.run(argparse.Namespace(
        ours=str(folder), theirs=f'{folder}:before', by='reward', reward=str(reward), command='',
        seed=0)))
    if file.exists():
      reports[name] = json.loads(file.read_text(encoding='utf-8'))
  return reports
