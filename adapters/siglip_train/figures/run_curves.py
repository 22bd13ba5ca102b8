"""The curves of a run over its steps."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from siglip_train.figures.paper import DPI, FAINT, LINE, tidy

_TASK_COLOURS = ("#0969da", "#bc4c00", "#8250df")


def curves(records: Sequence[dict[str, Any]]) -> Figure:
    """Loss and recall over the steps of a run; below, what else was recorded of each step."""
    figure = Figure((12.5, 6.6), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, 10, height_ratios=(1.5, 1))
    for place, key, title in (
        (grid[0, :5], "loss", "training loss (thin: each step, thick: running mean)"),
        (grid[1, :2], "t", "temperature t"),
        (grid[1, 2:4], "b", "bias b"),
        (grid[1, 4:6], "schedule", "learning rate / its peak"),
        (grid[1, 6:8], "gradient_norm", "gradient norm, unclipped"),
        (grid[1, 8:], "examples_per_second", "examples per second"),
    ):
        ax = figure.add_subplot(place)
        # A step that was left out, since its gradient was not finite, has no gradient norm.
        known = [record for record in records if record[key] is not None]
        steps = np.array([record["step"] for record in known])
        values = np.array([record[key] for record in known], dtype=float)
        noisy = key in ("loss", "gradient_norm", "examples_per_second")
        marker = "o" if len(values) < 20 else None
        ax.plot(steps, values, color=LINE, alpha=0.25 if noisy else 1, linewidth=1, marker=marker)
        if noisy:
            ax.plot(steps, smoothed(values), color=LINE, linewidth=1.8)
        ax.set_ylim(*_range(values, outliers=noisy))
        tidy(ax, title)
    _recall(figure.add_subplot(grid[0, 5:]), records)
    return figure


def _recall(ax: Axes, records: Sequence[dict[str, Any]]) -> None:
    evaluated = [record for record in records if record.get("eval")]
    steps = [record["step"] for record in evaluated]
    keys = [key for key in (evaluated[-1]["eval"] if evaluated else {}) if key.endswith("/R@5")]
    tasks = list(dict.fromkeys(key.split("/")[0] for key in keys))
    for key in keys:
        task, way, _ = key.split("/")
        values = [100 * record["eval"].get(key, np.nan) for record in evaluated]
        chance = 100 * evaluated[-1]["eval"][f"{task}/{way}/chance@5"]
        colour = _TASK_COLOURS[tasks.index(task) % len(_TASK_COLOURS)]
        back = way.startswith("text")
        ax.plot(
            steps,
            values,
            color=colour,
            linestyle="--" if back else "-",
            marker="o",
            markersize=3.5,
            label=f"{task}, {way.replace('_', ' ')}: {values[-1]:.1f} % (chance {chance:.1f} %)",
        )
        if not back:
            ax.axhline(chance, color=colour, linewidth=0.9, linestyle=":")
    if keys:
        ax.set_xlim(0, 1.04 * steps[-1])
        ax.set_ylim(0, 1.45 * max(ax.get_ylim()[1], 1))  # room for the legend
        ax.legend(fontsize=8, frameon=False, loc="upper left")
    else:
        ax.text(0.5, 0.5, "no validation data", ha="center", transform=ax.transAxes, color=FAINT)
    tidy(ax, "validation recall at 5 in %; dotted: chance, image to text")


def smoothed(values: NDArray[np.floating]) -> NDArray[np.floating]:
    """A running mean over 2 % of the values, shorter at the start."""
    window = max(1, len(values) // 50)
    sums = np.cumsum(np.concatenate(([0.0], values)))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    mean: NDArray[np.floating] = (sums[ends] - sums[starts]) / (ends - starts)
    return mean


def _range(values: NDArray[np.floating], *, outliers: bool) -> tuple[float, float]:
    """Limits that show the values, or all but a few outliers, and do not magnify noise."""
    if not values.size:
        return 0.0, 1.0
    low, high = np.percentile(values, [0, 98 if outliers else 100])
    span = max(high - low, 0.02 * abs(high), 1e-3)
    return float(low - 0.08 * span), float(high + 0.12 * span)
