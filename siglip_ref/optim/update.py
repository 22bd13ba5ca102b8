"""Applying a rule to every leaf of the trees: the part that all optimizers share."""

import math
from collections.abc import Callable

from siglip_ref.optim.leaves import Factor, Schedule, factor_of
from siglip_ref.precision import at_least_float32, cast_like
from siglip_ref.tree import flatten, unflatten
from siglip_ref.types import Array, Float, Map, Tree

LeafRule = Callable[..., tuple[Array, ...]]
"""(path, factor, gradient, parameter, *state leaves) to the new parameter and state leaves."""


def update_leaves(
    rule: LeafRule,
    grads: Tree,
    params: Tree,
    states: tuple[Tree, ...],
    schedule: Schedule,
    parallel_map: Map,
) -> tuple[Tree, tuple[Tree, ...]]:
    """`rule` for every parameter, with the factor that `schedule` has for it: the new trees.

    A frozen leaf, whose factor is None, is passed on untouched with its states. Leaves are
    independent of each other and go through `parallel_map`.

    Raises ValueError if a gradient is missing for a parameter, naming the paths, or if a leaf
    that was frozen when the state was made is to move.
    """
    flat, flat_grads = flatten(params), flatten(grads)
    if flat.keys() != flat_grads.keys():
        raise ValueError(
            "grads must have the paths of params; they differ in "
            f"{', '.join(sorted(flat.keys() ^ flat_grads.keys()))}"
        )
    flat_states = [flatten(state) for state in states]

    def update(path: str) -> tuple[Array, ...]:
        p, old = flat[path], [state[path] for state in flat_states]
        factor = factor_of(schedule, path)
        if factor is None:
            return p, *old
        if math.prod(p.shape) and not any(math.prod(leaf.shape) for leaf in old):
            raise ValueError(f"state has no moments for {path}: it was made with {path} frozen")
        p, *new = rule(path, factor, flat_grads[path], p, *old)
        return p, *new

    updated = zip(*parallel_map(update, flat), strict=True)
    new_params, *new_states = (unflatten(dict(zip(flat, part, strict=True))) for part in updated)
    return new_params, tuple(new_states)


def moved(
    p: Float[Array, "*shape"], step: Float[Array, "*shape"], factor: Factor
) -> Float[Array, "*shape"]:
    """p - factor · step, formed in at least float32, in the dtype of p."""
    return cast_like(at_least_float32(p) - factor * step, p)
