"""What the states of all optimizers are made of: moments that start at 0, and a count."""

from collections.abc import Callable

from array_api_compat import array_namespace, device

from siglip_ref.optim.leaves import Schedule, factor_of
from siglip_ref.precision import at_least_float32
from siglip_ref.tree import tree_map_with_path
from siglip_ref.types import Array, Count, Float, Tree

Shape = tuple[int, ...]


def same_shape(p: Float[Array, "*shape"]) -> Shape:
    """The shape of the parameter itself."""
    return tuple(p.shape)


def zero_moments(
    params: Tree, schedule: Schedule, shape_of: Callable[[Array], Shape] = same_shape
) -> Tree:
    """Zeros of `shape_of(p)` for each parameter, in at least float32; (0,) for a frozen one."""

    def zeros(path: str, p: Float[Array, "*shape"]) -> Float[Array, "*moment"]:
        shape = (0,) if factor_of(schedule, path) is None else shape_of(p)
        xp = array_namespace(p)
        return at_least_float32(xp.zeros(shape, dtype=p.dtype, device=device(p)))

    return tree_map_with_path(zeros, params)


def count_like(count: Count, x: Float[Array, "*shape"]) -> float | Float[Array, ""]:
    """The count for a formula with `x`: a number, or a 0-d array in the dtype of `x`."""
    # A power of an integer array is taken in float32 by Torch, and refused by the standard.
    return float(count) if isinstance(count, int) else array_namespace(x).astype(count, x.dtype)
