"""Validation images with the texts that the model finds most likely."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from siglip_train.evaluation import Embedded, positive_ranks
from siglip_train.figures.lettering import FONT, fitted
from siglip_train.figures.paper import (
    FAINT,
    INK,
    RIGHT,
    WRONG,
    logistic,
    paper,
    picture,
    shares,
    spread,
)

TASK_TITLES = {
    "seen": "Concepts seen in training, drawn by another vendor",
    "unseen": "Concepts never seen in training",
    "validation": "Validation pairs",
}

_COLUMNS = 6
_MARGIN, _GAP, _CARD, _PICTURE, _PITCH, _HEADING = 0.3, 0.24, 2.05, 1.2, 0.215, 0.5  # inches
_CARD_HEIGHT = _PICTURE + 6.4 * _PITCH + 0.2


def retrieval_grid(
    embedded: Sequence[Embedded], t: float, b: float | None, *, each: int = 12
) -> Figure:
    """Validation images with their five best texts: the right one green, the others red.

    Behind each text stands the model's probability as a number and as a bar: sigmoid(t cos + b),
    that the pair matches, or where there is no b, softmax(t cos) over all texts. Of every task
    `each` images are shown, evenly spread over it.
    """
    parts = [(part, spread(len(part.task.pairs), each)) for part in embedded]
    heights = [_HEADING + -(-len(chosen) // _COLUMNS) * _CARD_HEIGHT for _, chosen in parts]
    width = 2 * _MARGIN + _COLUMNS * _CARD + (_COLUMNS - 1) * _GAP
    figure, ax = paper(width, sum(heights) + _MARGIN)
    top = 0.0
    for (part, chosen), height in zip(parts, heights, strict=True):
        ranks = positive_ranks(
            part.zimg, part.ztxt, part.task.answers, np.arange(len(part.task.texts))
        )
        title = TASK_TITLES.get(part.task.name, part.task.name)
        ax.text(_MARGIN, top + 0.3, title, size=12.5, weight="bold", color=INK, family=FONT)
        ax.text(
            width - _MARGIN,
            top + 0.3,
            f"right text first for {np.mean(ranks == 1):.0%}, among five for "
            f"{np.mean(ranks <= 5):.0%} of {len(ranks):,} images; {len(part.task.texts):,} texts",
            size=9,
            color=FAINT,
            ha="right",
            family=FONT,
        )
        for place, index in enumerate(chosen):
            row, column = divmod(place, _COLUMNS)
            corner = (_MARGIN + column * (_CARD + _GAP), top + _HEADING + row * _CARD_HEIGHT)
            _card(ax, corner, part, int(index), int(ranks[index]), t, b)
        top += height
    return figure


def _card(
    ax: Axes,
    corner: tuple[float, float],
    part: Embedded,
    index: int,
    rank: int,
    t: float,
    b: float | None,
) -> None:
    left, top = corner
    cosines = part.ztxt @ part.zimg[index]
    probabilities = shares(t * cosines) if b is None else logistic(t * cosines + b)
    answer = int(part.task.answers[index])
    best = np.argsort(-cosines, kind="stable")[:5]
    picture(ax, left + (_CARD - _PICTURE) / 2, top, _PICTURE, part.task.pairs[index].image)
    for line, candidate in enumerate(best):
        right = candidate == answer
        colour, weight = (RIGHT, "bold") if right else (WRONG, "normal")
        probability = float(probabilities[candidate])
        y = top + _PICTURE + (1 + line) * _PITCH
        bar = (left + 0.19, y - 0.56 * _PITCH), _CARD - 0.19, 0.94 * _PITCH
        ax.add_patch(Rectangle(*bar, color=colour, alpha=0.05, linewidth=0))
        filled = bar[0], probability * bar[1], bar[2]
        ax.add_patch(Rectangle(*filled, color=colour, alpha=0.2, linewidth=0))
        style: dict[str, Any] = {
            "size": 8,
            "color": colour,
            "weight": weight,
            "va": "center",
            "family": FONT,
        }
        ax.text(left + 0.02, y, "✓" if right else "✗", **style)
        name = fitted(part.task.texts[candidate], _CARD - 0.19 - 0.49, 8, weight)
        ax.text(left + 0.24, y, name, parse_math=False, **style)
        ax.text(left + _CARD - 0.04, y, percent(probability), ha="right", **style)
    if answer not in best:
        place = f"place {rank:,}: "
        y = top + _PICTURE + 6 * _PITCH
        right_name = fitted(part.task.texts[answer], _CARD - 0.02 - 0.072 * len(place), 8)
        ax.text(
            left + 0.02,
            y,
            f"{place}{right_name}",
            size=8,
            color=INK,
            va="center",
            family=FONT,
            parse_math=False,
        )


def percent(probability: float) -> str:
    """A probability for display: 37 %, and below one in a hundred, <1 %."""
    return f"{probability:.0%}" if probability >= 0.01 or probability == 0 else "<1%"
