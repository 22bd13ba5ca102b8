"""What the pictures share: colours, a page measured in inches, pictures on it."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

RIGHT, WRONG, INK, FAINT, LINE = "#1a7f37", "#b42318", "#1f2328", "#6e7781", "#0969da"
DPI = 110


def paper(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of that size, and an axes over all of it with inches from its top left corner."""
    figure = Figure((width, height), dpi=DPI)
    FigureCanvasAgg(figure)
    ax = figure.add_axes((0, 0, 1, 1))
    ax.axis("off")
    ax.set_autoscale_on(False)
    ax.set_xlim(0, width)
    ax.set_ylim(height, 0)
    return figure, ax


def inset(
    figure: Figure, left: float, top: float, width: float, height: float
) -> tuple[float, float, float, float]:
    """Inches from the top left corner as the fractions of the figure that `add_axes` takes."""
    across, down = figure.get_size_inches()
    return left / across, 1 - (top + height) / down, width / across, height / down


def picture(ax: Axes, left: float, top: float, side: float, image: NDArray[np.uint8]) -> None:
    """Draw an image (height, width, 3) as a framed square of `side` inches."""
    extent = (left, left + side, top + side, top)
    shown = ax.imshow(image, extent=extent, interpolation="lanczos", aspect="auto", origin="upper")
    frame = Rectangle((left, top), side, side, fill=False, edgecolor="#d0d7de", linewidth=0.8)
    shown.set_clip_path(ax.add_patch(frame))


def shares(logits: NDArray[np.floating]) -> NDArray[np.floating]:
    """The softmax of a vector, for display."""
    powers: NDArray[np.floating] = np.exp(logits - logits.max())
    shared: NDArray[np.floating] = powers / powers.sum()
    return shared


def logistic(x: NDArray[np.floating]) -> NDArray[np.floating]:
    """1 / (1 + exp(-x)) for display."""
    result: NDArray[np.floating] = np.exp(-np.logaddexp(0, -x))
    return result


def spread(count: int, most: int) -> NDArray[np.integer]:
    """At most so many of the first `count` integers, evenly spread, the ends among them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(int))


def tidy(ax: Axes, title: str) -> None:
    """The style of all diagrams; the x axis has whole numbers where it is long enough."""
    ax.set_title(title, fontsize=9, color=INK)
    ax.tick_params(labelsize=8)
    ax.ticklabel_format(axis="x", useOffset=False)
    if ax.get_yscale() == "linear":
        ax.ticklabel_format(axis="y", useOffset=False)
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.spines[["top", "right"]].set_visible(False)
