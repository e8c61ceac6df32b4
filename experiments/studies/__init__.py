"""Comparisons over seeds, a file a study: `python -m experiments.studies <study>`.

experiments/studies/_engine.py says what a study's file holds.
"""

from collections.abc import Mapping
from typing import Any

from perl import choices
from perl.report import formats


def render(study: str, results: Mapping[str, Any], fmt: str = 'markdown') -> str:
  """The table of a study and what follows from it: a function of the results as JSON has them.

  Args:
    study: its name.
    results: what the study's `collect` returned, or a committed file of experiments/results.
    fmt: 'markdown', 'csv' or 'latex'; notes are comments in the last two.
  """
  text = formats.FORMATS[fmt](*choices.find(__name__, study).table(results))
  return f'{results["title"]}\n\n{text}' if 'title' in results else text
