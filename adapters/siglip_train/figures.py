"""The pictures of a run: its curves, a grid of retrievals, and the similarities of a batch."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from siglip_train.evaluation import Embedded, positive_ranks

RIGHT, WRONG, INK, FAINT = "#1a7f37", "#b42318", "#1f2328", "#8c959f"
_COLUMNS = 6
_LONGEST = 27  # letters of a caption that fit


def curves(records: Sequence[dict[str, Any]]) -> Figure:
    """Loss, t, b, recall and speed over the steps of a run."""
    figure = _figure(11, 6.4)
    axes = figure.subplots(2, 3)
    steps = np.array([record["step"] for record in records])
    for ax, key, title in (
        (axes[0, 0], "loss", "training loss"),
        (axes[0, 1], "t", "temperature t"),
        (axes[0, 2], "b", "bias b"),
        (axes[1, 1], "gradient_norm", "gradient norm, before clipping"),
        (axes[1, 2], "examples_per_second", "examples per second"),
    ):
        values = np.array([record[key] for record in records], dtype=float)
        noisy = key not in ("t", "b")
        ax.plot(steps, values, color="#0969da", alpha=0.25 if noisy else 1, linewidth=1)
        if noisy:
            ax.plot(steps, smoothed(values), color="#0969da", linewidth=1.6)
            ax.set_ylim(*_range(values))
        _tidy(ax, title)
    _recall(axes[1, 0], records)
    return figure


def _recall(ax: Axes, records: Sequence[dict[str, Any]]) -> None:
    evaluated = [record for record in records if "eval" in record]
    steps = [record["step"] for record in evaluated]
    names = [key for key in (evaluated[-1]["eval"] if evaluated else {}) if key.endswith("/R@5")]
    styles = ("-", "--")
    colours = ("#0969da", "#bc4c00", "#8250df")
    tasks = list(dict.fromkeys(name.split("/")[0] for name in names))
    for name in names:
        task, way, _ = name.split("/")
        values = [100 * record["eval"].get(name, np.nan) for record in evaluated]
        colour = colours[tasks.index(task) % len(colours)]
        style = styles[way.startswith("text")]
        label = f"{task}, {way.replace('_', ' ')}"
        ax.plot(steps, values, style, color=colour, marker="o", markersize=3, label=label)
        if way.startswith("image"):
            chance = 100 * evaluated[-1]["eval"][f"{task}/{way}/chance@5"]
            ax.axhline(chance, color=colour, linewidth=0.8, linestyle=":")
    if names:
        ax.legend(fontsize=7, frameon=False)
        ax.set_ylim(bottom=0)
    else:
        ax.text(0.5, 0.5, "no validation data", ha="center", transform=ax.transAxes, color=FAINT)
    _tidy(ax, "recall at 5 in %, chance dotted")


def retrieval_grid(embedded: Sequence[Embedded], t: float, b: float, *, each: int = 12) -> Figure:
    """Validation images with their five best names: the right one green, the others red.

    Behind each name stands sigmoid(t cos + b), the model's probability that the pair matches. Of
    every task `each` images are shown, evenly spread over it.
    """
    tasks = [(part, _spread(len(part.task.pairs), each)) for part in embedded]
    rows = sum(-(-len(chosen) // _COLUMNS) for _, chosen in tasks)
    figure = _figure(2.35 * _COLUMNS, 2.75 * rows + 0.45 * len(tasks))
    grid = figure.add_gridspec(
        rows + len(tasks),
        _COLUMNS,
        height_ratios=[
            height for _, chosen in tasks for height in [0.16, *[1.0] * -(-len(chosen) // _COLUMNS)]
        ],
    )
    row = 0
    for part, chosen in tasks:
        heading = figure.add_subplot(grid[row, :])
        heading.axis("off")
        candidates = np.arange(len(part.task.texts))
        ranks = positive_ranks(part.zimg, part.ztxt, part.task.answers, candidates)
        heading.text(
            0,
            0,
            f"{part.task.name}: right name first in {np.mean(ranks == 1):.0%} and among five in "
            f"{np.mean(ranks <= 5):.0%} of {len(ranks)} images, {len(candidates)} names",
            fontsize=11,
            weight="bold",
            color=INK,
        )
        for place, index in enumerate(chosen):
            ax = figure.add_subplot(grid[row + 1 + place // _COLUMNS, place % _COLUMNS])
            _retrieved(ax, part, int(index), int(ranks[index]), t, b)
        row += 1 + -(-len(chosen) // _COLUMNS)
    return figure


def _retrieved(ax: Axes, part: Embedded, index: int, rank: int, t: float, b: float) -> None:
    cosines = part.ztxt @ part.zimg[index]
    answer = int(part.task.answers[index])
    ax.axis("off")
    ax.set_xlim(0, 1.1)  # the rest is the gap to the next column
    ax.set_ylim(0, 1)
    picture = ax.inset_axes((0.24, 0.52, 0.52, 0.48))
    picture.imshow(part.task.pairs[index].image, interpolation="lanczos")
    picture.set_xticks([])
    picture.set_yticks([])
    for side in picture.spines.values():
        side.set_color(FAINT)
    best = np.argsort(-cosines, kind="stable")[:5]
    for line, candidate in enumerate(best):
        right = candidate == answer
        style: dict[str, Any] = {
            "fontsize": 7,
            "color": RIGHT if right else WRONG,
            "weight": "bold" if right else "normal",
        }
        y = 0.42 - 0.085 * line
        ax.text(0, y, "✓" if right else "✗", **style)
        ax.text(0.07, y, shortened(part.task.texts[candidate], _LONGEST), **style)
        ax.text(1, y, f"{logistic(t * cosines[candidate] + b):.0%}", ha="right", **style)
    if answer not in best:
        ax.text(
            0,
            -0.02,
            f"right: {shortened(part.task.texts[answer], _LONGEST - 9)}, place {rank}",
            fontsize=6.6,
            color=INK,
            style="italic",
        )


def similarity(part: Embedded, t: float, b: float, *, pairs: int = 32) -> Figure:
    """The match probabilities of a batch, and the cosines of all its pairs.

    On the left sigmoid(t cos + b) of `pairs` images and their own names; cells with a probability
    above 1/2 are framed. On the right the histogram of the cosines of matching and of other pairs
    with the decision boundary cos = -b/t, where the sigmoid is 1/2.
    """
    _, first = np.unique(part.task.answers, return_index=True)
    chosen = first[_spread(len(first), pairs)]
    cosines = part.zimg[chosen] @ part.ztxt[part.task.answers[chosen]].T
    every = part.zimg @ part.ztxt.T
    own = part.task.answers[:, None] == np.arange(every.shape[1])
    figure = _figure(12, 5.6)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.15))
    probabilities = logistic(t * cosines + b)
    shown = left.imshow(probabilities, cmap="viridis", vmin=0, vmax=1, interpolation="nearest")
    for i, j in zip(*np.nonzero(probabilities > 0.5), strict=True):
        colour = "white" if i == j else "#ff6b6b"
        left.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, fill=False, color=colour, linewidth=1.2))
    figure.colorbar(shown, ax=left, shrink=0.8, label="probability of a match")
    left.set_xlabel("names")
    left.set_ylabel("images")
    hits = int(np.sum(np.diag(probabilities) > 0.5))
    false = int(np.sum(probabilities > 0.5)) - hits
    left.set_title(
        f"{len(chosen)} {part.task.name} pairs: {hits} matches found (white frame),\n"
        f"{false} of {probabilities.size - len(chosen)} others taken for one (red frame)",
        fontsize=9,
        color=INK,
    )
    _cosines(right, every[own], every[~own], t, b)
    return figure


def _cosines(
    ax: Axes, matching: NDArray[np.floating], others: NDArray[np.floating], t: float, b: float
) -> None:
    boundary = -b / t
    every = np.concatenate([matching, others])
    bins = np.linspace(every.min(), every.max(), 70).tolist()
    ax.hist(others, bins=bins, color=WRONG, alpha=0.45, label=f"{others.size:,} other pairs")
    ax.hist(matching, bins=bins, color=RIGHT, alpha=0.65, label=f"{matching.size:,} matching pairs")
    ax.set_yscale("log")
    ax.set_ylim(top=30 * ax.get_ylim()[1])  # room for the legend
    if -1 <= boundary <= 1:
        ax.axvline(boundary, color=INK, linestyle="--", linewidth=1.2)
        ax.annotate(
            f"boundary -b/t = {boundary:.2f}",
            (boundary, 0.8),
            xycoords=("data", "axes fraction"),
            xytext=(-6, 0),
            textcoords="offset points",
            fontsize=8,
            ha="right",
        )
    else:
        ax.text(
            0.03,
            0.03,
            f"the boundary -b/t = {boundary:.2f} lies outside [-1, 1]:\nno pair can reach it",
            transform=ax.transAxes,
            fontsize=8,
        )
    ax.legend(fontsize=8, frameon=False, loc="upper left")
    ax.set_xlabel("cosine of image and name")
    _tidy(ax, f"all pairs; t = {t:.2f}, b = {b:.2f}")


def logistic(x: NDArray[np.floating]) -> NDArray[np.floating]:
    """1 / (1 + exp(-x)) for display."""
    probabilities: NDArray[np.floating] = np.exp(-np.logaddexp(0, -x))
    return probabilities


def smoothed(values: NDArray[np.floating]) -> NDArray[np.floating]:
    """A running mean over 2 % of the values, shorter at the start."""
    window = max(1, len(values) // 50)
    sums = np.cumsum(np.concatenate(([0.0], values)))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    means: NDArray[np.floating] = (sums[ends] - sums[starts]) / (ends - starts)
    return means


def shortened(text: str, longest: int) -> str:
    """The text with an ellipsis where it is too long, and without letters that the font lacks."""
    plain = "".join(letter for letter in text if ord(letter) < 0x2500).strip() or "(no letters)"
    return plain if len(plain) <= longest else plain[: longest - 1] + "…"


def _spread(count: int, most: int) -> NDArray[np.integer]:
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(int))


def _range(values: NDArray[np.floating]) -> tuple[float, float]:
    """Limits that show all but a few outliers."""
    if not values.size:
        return 0.0, 1.0
    low, high = np.percentile(values, [0, 98])
    margin = 0.08 * (high - low) or 1.0
    return float(low - margin), float(high + 2 * margin)


def _figure(width: float, height: float) -> Figure:
    figure = Figure((width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _tidy(ax: Axes, title: str) -> None:
    ax.set_title(title, fontsize=9, color=INK)
    ax.tick_params(labelsize=8)
    ax.spines[["top", "right"]].set_visible(False)
