"""The norm of all gradients together, and its clipping."""

import math
from functools import reduce
from operator import add

from array_api_compat import array_namespace

from siglip_ref.precision import at_least_float32, cast_like
from siglip_ref.tree import flatten, tree_map
from siglip_ref.types import Array, Float, Tree


def global_norm(tree: Tree) -> Float[Array, ""]:
    """sqrt(Σ over all leaves of Σ x²), in at least float32.

    Raises ValueError if the tree has no leaves.
    """
    leaves = [at_least_float32(leaf) for leaf in flatten(tree).values()]
    if not leaves:
        raise ValueError("tree must have at least one leaf, got none")
    xp = array_namespace(*leaves)
    return xp.sqrt(reduce(add, (xp.sum(leaf * leaf) for leaf in leaves)))


def clip_by_global_norm(grads: Tree, max_norm: float) -> tuple[Tree, Float[Array, ""]]:
    """grads · min(1, max_norm / ‖grads‖), and ‖grads‖ before the clipping.

    In data-parallel training the gradients must be summed over the devices first.

    Raises ValueError unless `max_norm` is above 0; infinity clips nothing.

    Source: arXiv:1211.5063, section 3.2; big_vision's SigLIP 2 recipe has max_norm = 1.
    """
    norm = global_norm(grads)
    factor = clip_factor(norm, max_norm)
    if math.isinf(max_norm):
        return grads, norm
    return tree_map(lambda g: cast_like(at_least_float32(g) * factor, g), grads), norm


def clip_factor(norm: Float[Array, ""], max_norm: float) -> Float[Array, ""]:
    """min(1, max_norm / norm): what gradients of this norm are multiplied by to clip them.

    Raises ValueError unless `max_norm` is above 0; infinity clips nothing.
    """
    if not max_norm > 0:
        raise ValueError(f"max_norm must be above 0, got {max_norm!r}")
    xp = array_namespace(norm)
    if math.isinf(max_norm):
        return xp.ones_like(norm)
    # max(norm, max_norm) instead of norm: no division by zero, and nothing below it is scaled.
    return max_norm / xp.maximum(norm, xp.full_like(norm, max_norm))
