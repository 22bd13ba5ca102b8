"""The answers of the sigmoid within a batch, and the cosines behind them."""

from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from siglip_train.evaluation import CHUNK, Embedded
from siglip_train.figures.lettering import FONT, fitted
from siglip_train.figures.paper import (
    FAINT,
    INK,
    RIGHT,
    WRONG,
    inset,
    logistic,
    paper,
    picture,
    spread,
    tidy,
)

_BINS = np.linspace(-1, 1, 2001)
_SHOWN_BINS = 80


class Cosines(NamedTuple):
    """The cosines of all images with all texts, counted: in `_BINS`, and beyond the boundary."""

    matching: NDArray[np.integer]
    others: NDArray[np.integer]
    matching_found: int
    others_found: int


def count_cosines(part: Embedded, t: float, b: float, *, chunk: int = CHUNK) -> Cosines:
    """How many pairs have which cosine, in tiles, and how many have a logit t cos + b above 0."""
    bins = len(_BINS) - 1
    matching, others = np.zeros(bins, int), np.zeros(bins, int)
    matching_found = others_found = 0
    texts = np.arange(len(part.task.texts))
    for row in range(0, len(part.zimg), chunk):
        for column in range(0, len(texts), chunk):
            rows, columns = slice(row, row + chunk), slice(column, column + chunk)
            cosines = np.clip(part.zimg[rows] @ part.ztxt[columns].T, -1, 1)
            own = part.task.answers[rows, None] == texts[columns]
            matching += np.histogram(cosines[own], _BINS)[0]
            others += np.histogram(cosines[~own], _BINS)[0]
            found = t * cosines + b > 0
            matching_found += int(np.sum(found & own))
            others_found += int(np.sum(found & ~own))
    return Cosines(matching, others, matching_found, others_found)


def similarity(part: Embedded, t: float, b: float, *, pairs: int = 32) -> Figure:
    """The match probabilities of a batch, and the cosines of all pairs.

    On the left sigmoid(t cos + b) of `pairs` images and their own texts; cells with a logit above
    0, a probability above 1/2, are framed. On the right the histogram of the cosines of matching
    and of other pairs with the decision boundary cos = -b/t, where the sigmoid is 1/2.
    """
    _, first = np.unique(part.task.answers, return_index=True)
    chosen = first[spread(len(first), pairs)]
    n, side, left, top = len(chosen), 5.6, 0.55, 2.0
    figure, page = paper(14.2, top + side + 0.45)
    logits = t * (part.zimg[chosen] @ part.ztxt[part.task.answers[chosen]].T) + b
    found = logits > 0
    hits = int(np.trace(found))
    page.text(left, 0.32, "One batch", size=12.5, weight="bold", color=INK, family=FONT)
    page.text(
        left + 1.2,
        0.32,
        f"{hits} matches found of {n} (green frames), "
        f"{int(found.sum()) - hits} of {n * n - n} others taken for one (red)",
        size=9,
        color=FAINT,
        family=FONT,
    )
    cell = side / n
    for place, index in enumerate(chosen):
        thumb = min(0.92 * cell, 0.45)
        y = top + place * cell + (cell - thumb) / 2
        picture(page, left - thumb - 0.03, y, thumb, part.task.pairs[index].image)
        page.text(
            left + (place + 0.5) * cell,
            top - 0.05,
            fitted(part.task.texts[part.task.answers[index]], top - 0.6, 7),
            size=7,
            rotation=90,
            color=INK,
            ha="center",
            va="bottom",
            family=FONT,
            parse_math=False,
        )
    _matrix(figure, inset(figure, left, top, side, side), logits)
    page.text(8.1, 0.32, "All pairs", size=12.5, weight="bold", color=INK, family=FONT)
    page.text(9.2, 0.32, f"t = {t:.2f}, b = {b:.2f}", size=9, color=FAINT, family=FONT)
    right = figure.add_axes(inset(figure, 8.1, 0.6, 5.8, top + side - 0.6))
    _histogram(right, count_cosines(part, t, b), t, b)
    return figure


def _matrix(
    figure: Figure, place: tuple[float, float, float, float], logits: NDArray[np.floating]
) -> None:
    ax = figure.add_axes(place)
    # The square root, because the probabilities that tell a start from noise are near 1 %.
    norm = PowerNorm(0.5, 0, 1)
    shown = ax.imshow(logistic(logits), cmap="Blues", norm=norm, interpolation="nearest")
    for i, j in np.argwhere((logits > 0) | np.eye(len(logits), dtype=bool)):
        if logits[i, j] > 0:
            colour, width, line = "#2da44e" if i == j else "#cf222e", 1.7, "-"
        else:
            colour, width, line = FAINT, 0.7, ":"
        frame = Rectangle((j - 0.46, i - 0.46), 0.92, 0.92, fill=False)
        frame.set(edgecolor=colour, linewidth=width, linestyle=line)
        ax.add_patch(frame)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.set_xlabel("diagonal: pairs that belong together (dotted where not found)", fontsize=8)
    x, y, width, height = place
    bar = figure.colorbar(shown, cax=figure.add_axes((x + 1.03 * width, y, 0.02 * width, height)))
    bar.set_ticks(
        [0, 0.01, 0.1, 0.25, 0.5, 1], labels=["0", "1 %", "10 %", "25 %", "50 %", "100 %"]
    )
    bar.ax.axhline(0.5, color="#cf222e", linewidth=1.5)
    bar.ax.tick_params(labelsize=8)
    bar.set_label("probability of a match; red line: the boundary", fontsize=8)


def _histogram(ax: Axes, counts: Cosines, t: float, b: float) -> None:
    boundary = -b / t
    occupied = np.flatnonzero(counts.matching + counts.others)
    low, high = _BINS[occupied[0]], _BINS[occupied[-1] + 1]
    inside = -1 <= boundary <= 1
    if inside:
        low, high = min(low, boundary - 0.02), max(high, boundary + 0.02)
    width = max(1, int(np.ceil((high - low) / 0.001 / _SHOWN_BINS)))
    edges = np.append(_BINS[:-1:width], 1.0)
    starts = np.arange(0, len(_BINS) - 1, width)
    for values, colour, name, found in (
        (counts.others, WRONG, "other pairs", counts.others_found),
        (counts.matching, RIGHT, "matching pairs", counts.matching_found),
    ):
        total = int(values.sum())
        ax.stairs(
            np.add.reduceat(values, starts),
            edges,
            fill=True,
            color=colour,
            alpha=0.5,
            label=f"{total:,} {name}, {found:,} of them beyond the boundary",
        )
    ax.set_xlim(low, high)
    ax.set_yscale("log", nonpositive="clip")
    ax.set_ylim(0.7, 40 * max(counts.others.max(), counts.matching.max(), 1) * width)
    ax.legend(fontsize=8.5, frameon=False, loc="upper left")
    if inside:
        ax.axvline(boundary, ymax=0.86, color=INK, linestyle="--", linewidth=1.3)
        near = (boundary - low) / (high - low) > 0.5
        ax.annotate(
            f"boundary -b/t = {boundary:.2f}",
            (boundary, 0.82),
            xycoords=("data", "axes fraction"),
            xytext=(-6 if near else 6, 0),
            textcoords="offset points",
            fontsize=9,
            ha="right" if near else "left",
        )
    else:
        said = "says no to every pair" if b < 0 else "says yes to every pair"
        ax.text(
            0.03,
            0.8,
            f"the boundary -b/t = {boundary:.2f} lies outside [-1, 1]:\nthe model {said}",
            transform=ax.transAxes,
            fontsize=9,
        )
    ax.set_xlabel("cosine of image and text", fontsize=9)
    ax.set_ylabel("pairs", fontsize=9)
    tidy(ax, "")
    ax.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10]))
