"""Charts of a comparison: what methods reach, and ranks by matrices; bars are 95 % t-intervals."""

from experiments import charts
from experiments.charts import INK, SERIES, SMALL, SOFT, TEXT
from experiments.compare import rows as kinds

PLAIN, LORA = SERIES[:2]


def methods(found: kinds.Found, file: str) -> None:
  """A line a method, from the least test loss, a panel a figure; LoRA's interval is shaded."""
  names = kinds.by_loss(found)
  panels = [(title, values) for title, stage, field in kinds.FIGURES if title != 'perplexity'
            and any((values := {name: kinds.over_seeds(found, stage, field, name=name)
                                for name in names}).values())]
  figure, axes = charts.new(9.0, 0.9 + 0.24 * len(names), len(panels))
  for axis, (title, values) in zip(axes, panels):
    if (lora := values.get('lora')) and lora.n > 1:
      axis.axvspan(lora.low, lora.high, color=LORA, alpha=0.15, linewidth=0)
    for i, name in enumerate(names):
      if value := values[name]:
        axis.plot([value.low, value.high], [i, i], color=INK, linewidth=1)
        axis.plot(value.mean, i, 'o', markersize=4, color=LORA if name == 'lora' else PLAIN)
    axis.set_title(title, fontsize=TEXT, color=SOFT)
  axes[0].set_yticks(range(len(names)), names, fontsize=SMALL)
  axes[0].set_ylim(len(names) - 0.5, -0.5)
  charts.save(figure, file)


def grid(found: kinds.Found, file: str) -> None:
  """The test loss by rank, a line a set of matrices."""
  figure, (axis,) = charts.new(5.0, 3.2)
  for targets, colour in zip(kinds.GRID_TARGETS, SERIES):
    names = [kinds.grid_name(targets, rank) for rank in kinds.GRID_RANKS]
    values = {i: x for i, name in enumerate(names)
              if (x := kinds.over_seeds(found, 'sft', 'test_loss', name=name))}
    axis.plot(list(values), [x.mean for x in values.values()], 'o-', markersize=4, linewidth=1.2,
              color=colour, label=targets)
    for i, value in values.items():
      axis.plot([i, i], [value.low, value.high], color=colour, linewidth=1)
  axis.set_xticks(range(len(kinds.GRID_RANKS)), [f'r = {rank}' for rank in kinds.GRID_RANKS])
  axis.legend(frameon=False, fontsize=SMALL)
  axis.set_title('SFT loss, test', fontsize=TEXT, color=SOFT)
  charts.save(figure, file)
