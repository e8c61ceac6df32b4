"""Charts of result files (png, svg, pdf), by matplotlib: one look for all, that of the report."""

from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

INK, SOFT = '#1c1e21', '#63686f'
SERIES = ('#2f62b5', '#c4570c', '#2e7d4f', '#7d4fa8')
"""The colours --c0 to --c3 of perl/report/style.py, on paper."""
SMALL, TEXT = 8, 9
"""Points: of labels, and of titles."""


def new(
  width: float, height: float, panels: int = 1, rows: int = 1, *, shared: bool = True
) -> tuple[Figure, list[Any]]:
  """A figure and its axes, row by row.

  Args:
    width: inches.
    height: inches.
    panels: how many axes in a row.
    rows: how many rows of them.
    shared: those side by side have one vertical axis.
  """
  figure = Figure(figsize=(width, height), layout='constrained')
  FigureCanvasAgg(figure)
  axes = list(figure.subplots(
    rows, panels, sharey='row' if shared else False, squeeze=False).flat)
  for axis in axes:
    axis.tick_params(labelsize=SMALL)
    axis.spines[['top', 'right']].set_visible(False)
  return figure, axes


def save(figure: Figure, file: str) -> None:
  """Writes it; the format is the file's suffix."""
  figure.savefig(file, dpi=150)
