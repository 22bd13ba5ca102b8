"""How a tower is run: in which parts, side by side or not, and what is kept for the way back."""

from collections.abc import Callable
from operator import add
from typing import NamedTuple, TypeVar

from array_api_compat import array_namespace

from siglip_ref.tiles import tiles
from siglip_ref.tree import tree_map
from siglip_ref.types import Array, Float, Map, Tree

R = TypeVar("R")


class Execution(NamedTuple):
    """How the layers of a tower are run. What they compute is the same, to rounding.

    remat
        Keep the input of each block only, and compute the rest again on the way back.
    microbatch
        Run each layer over this many images, or texts, at a time; None for all at once. What a
        layer holds in its course, and a gradient before it is summed, is that small then.
    parallel_map
        How the microbatches of a layer are mapped over.
    use_up
        Let the backward pass take the residuals of each block out of the list that holds them, so
        that they go as the gradients come. Without, it may be run on them again.
    """

    remat: bool = False
    microbatch: int | None = None
    parallel_map: Map = map
    use_up: bool = False


WHOLE = Execution()
"""All at once, and everything kept."""


def forward_in_parts(
    fwd: Callable[[Array], tuple[Array, R]], x: Float[Array, "n *shape"], execution: Execution
) -> tuple[Float[Array, "n *out"], tuple[R, ...]]:
    """`fwd` of all of `x`, and its residuals microbatch by microbatch.

    Raises ValueError if the microbatch is not a positive integer.
    """
    parts = (x[rows, ...] for rows in _microbatches(x, execution))
    outs, residuals = zip(*execution.parallel_map(fwd, parts), strict=True)
    return _joined(outs), residuals


def backward_in_parts(
    bwd: Callable[[R, Array], tuple[Array, Tree]],
    residuals: tuple[R, ...],
    dout: Float[Array, "n *out"],
    execution: Execution,
) -> tuple[Float[Array, "n *shape"], Tree]:
    """Cotangents (dx, dparams), the latter summed over the microbatches."""
    parts = (dout[rows, ...] for rows in _microbatches(dout, execution))
    work = zip(residuals, parts, strict=True)
    dxs: list[Array] = []
    grads: Tree | None = None
    # Added as they come, so that those of few microbatches are there at a time.
    for dx, dparams in execution.parallel_map(lambda part: bwd(*part), work):
        dxs.append(dx)
        grads = dparams if grads is None else tree_map(add, grads, dparams)
    return _joined(tuple(dxs)), grads


def _microbatches(x: Float[Array, "n *shape"], execution: Execution) -> list[slice]:
    size = x.shape[0] if execution.microbatch is None else execution.microbatch
    return list(tiles("microbatch", x.shape[0], size))


def _joined(parts: tuple[Float[Array, "_ *shape"], ...]) -> Float[Array, "n *shape"]:
    return parts[0] if len(parts) == 1 else array_namespace(*parts).concat(parts)
