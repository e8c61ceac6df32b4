"""Line charts as inline SVG: no scripts, no links; colours come from the page's CSS variables."""

import dataclasses
import html
import math
from collections.abc import Sequence

WIDTH, HEIGHT = 460, 260
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 10, 40
MOST_POINTS = 400


@dataclasses.dataclass(frozen=True)
class Series:
  """One curve: points (x, y), drawn as a line, with dots where there are few of them."""

  name: str
  points: Sequence[tuple[float, float]]
  dots: bool = False  # evaluations: a dot each
  faint: bool = False  # the noise behind a smoothed curve; not in the legend
  colour: int = 0  # --c<n> of the page


def line_chart(
  series: Sequence[Series], *, title: str, x_label: str = 'step', y_label: str = '',
  reference: tuple[str, float] | None = None,
) -> str:
  """A <figure> with title, legend and SVG; '' if there is no finite point.

  Args:
    series: curves; points that are not finite are left out.
    title, x_label, y_label: plain text.
    reference: (name, y) of a dashed horizontal line, as an optimum.
  """
  series = [dataclasses.replace(s, points=thin(finite(s.points))) for s in series]
  series = [s for s in series if s.points]
  if not series:
    return ''
  xs = [x for s in series for x, _ in s.points]
  ys = [y for s in series for _, y in s.points] + ([reference[1]] if reference else [])
  x_ticks, y_ticks = ticks(min(xs), max(xs)), ticks(min(ys), max(ys))
  # The x axis ends with the data; the y axis ends on ticks, so that curves do not touch the frame.
  scale_x = _scale(min(xs), max(xs), LEFT, WIDTH - RIGHT)
  scale_y = _scale(min(*ys, *y_ticks), max(*ys, *y_ticks), HEIGHT - BOTTOM, TOP)
  inside = [
    *_axes(x_ticks, y_ticks, scale_x, scale_y, x_label),
    *(_reference(*reference, scale_y) if reference else ()),
    *(_curve(s, scale_x, scale_y) for s in sorted(series, key=lambda s: not s.faint)),
  ]
  label = html.escape(f'{title} against {x_label}', quote=True)
  return (
    f'<figure class="chart"><figcaption>{html.escape(title)}'
    f'{f" <small>{html.escape(y_label)}</small>" if y_label else ""}{_legend(series)}</figcaption>'
    f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(inside)}</svg>'
    '</figure>')


def finite(points: Sequence[tuple[float | None, float | None]]) -> list[tuple[float, float]]:
  """The points whose coordinates are both finite numbers."""
  good = lambda v: isinstance(v, (int, float)) and math.isfinite(v)
  return [(float(x), float(y)) for x, y in points if good(x) and good(y)]


def thin(points: list[tuple[float, float]], most: int = MOST_POINTS) -> list[tuple[float, float]]:
  """At most about `most` points: means over equal runs of neighbours, the last point kept."""
  run = math.ceil(len(points) / most)
  if run <= 1:
    return points
  cut = [points[i:i + run] for i in range(0, len(points), run)]
  means = [tuple(sum(v) / len(part) for v in zip(*part)) for part in cut]
  return [*means[:-1], points[-1]]


def smooth(points: Sequence[tuple[float, float]], weight: float = 0.9) -> list[tuple[float, float]]:
  """Exponential moving mean with the bias of its start taken out (as Adam's)."""
  total = norm = 0.0
  out = []
  for x, y in points:
    total, norm = weight * total + (1 - weight) * y, weight * norm + 1 - weight
    out.append((x, total / norm))
  return out


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
  """Round numbers (1, 2, 5 times a power of ten) that cover [low, high]."""
  if high <= low:
    pad = abs(low) / 2 or 1.0
    low, high = low - pad, high + pad
  raw = (high - low) / wanted
  power = 10.0 ** math.floor(math.log10(raw))
  step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * (1 - 1e-9))
  first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
  return [round(i * step, 12 - math.floor(math.log10(step))) for i in range(first, last + 1)]


def number(value: float) -> str:
  """Short: 0.25, 1.5k, 3e-04."""
  if value == 0:
    return '0'
  size = abs(value)
  if size >= 1e6:
    return f'{value / 1e6:g}M'
  if size >= 1e4:
    return f'{value / 1e3:g}k'
  return f'{value:.6g}' if size >= 1e-3 else f'{value:.0e}'


def _scale(low: float, high: float, start: float, end: float):
  """The linear map [low, high] -> [start, end]; the middle for an empty range."""
  if high == low:
    return lambda v: (start + end) / 2
  return lambda v: start + (v - low) / (high - low) * (end - start)


def _axes(x_ticks, y_ticks, scale_x, scale_y, x_label: str) -> list[str]:
  out = []
  for y in y_ticks:
    at = scale_y(y)
    out.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
               f'<text x="{LEFT - 7}" y="{at + 4:.1f}" text-anchor="end">{number(y)}</text>')
  for x in x_ticks:
    at = scale_x(x)
    if LEFT - 0.5 <= at <= WIDTH - RIGHT + 0.5:
      out.append(f'<text x="{at:.1f}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">{number(x)}'
                 '</text>')
  middle = (LEFT + WIDTH - RIGHT) / 2
  return [*out, f'<text class="label" x="{middle:.0f}" y="{HEIGHT - 5}" text-anchor="middle">'
          f'{html.escape(x_label)}</text>']


def _reference(name: str, y: float, scale_y) -> list[str]:
  at = scale_y(y)
  return [f'<line class="reference" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
          f'<text x="{LEFT + 6}" y="{at + 13:.1f}">{html.escape(name)} {number(y)}</text>']


def _curve(series: Series, scale_x, scale_y) -> str:
  places = [(scale_x(x), scale_y(y)) for x, y in series.points]
  kind = f'curve c{series.colour}' + (' faint' if series.faint else '')
  path = ' '.join(f'{x:.1f},{y:.1f}' for x, y in places)
  line = f'<polyline class="{kind}" points="{path}"/>' if len(places) > 1 else ''
  if not series.dots and len(places) > 1:
    return line
  dots = ''.join(
    f'<circle class="dot c{series.colour}" cx="{x:.1f}" cy="{y:.1f}" r="3">'
    f'<title>{html.escape(series.name)}: {number(a)}, {b:.5g}</title></circle>'
    for (x, y), (a, b) in zip(places, series.points))
  return line + dots


def _legend(series: Sequence[Series]) -> str:
  named = [s for s in series if not s.faint]
  if len(named) < 2:
    return ''
  return ''.join(f'<span class="key c{s.colour}">{html.escape(s.name)}</span>' for s in named)
