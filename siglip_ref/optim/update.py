"""Applying a rule to every leaf of the trees: the part that all optimizers share."""

from collections.abc import Callable
from typing import Any

from siglip_ref.optim.leaves import Schedule, factor_of, is_frozen
from siglip_ref.precision import at_least_float32, cast_like
from siglip_ref.tree import flatten, unflatten
from siglip_ref.types import Array, Float, Tree

LeafRule = Callable[..., tuple[Array, ...]]
"""(path, gradient, parameter, *state leaves) to the step to subtract and the new state leaves."""


def update_leaves(
    rule: LeafRule, grads: Tree, params: Tree, states: tuple[Tree, ...], schedule: Schedule
) -> tuple[Tree, tuple[Tree, ...]]:
    """p ← p - factor · step for every parameter, and the new states.

    The step is formed, and subtracted, in at least float32; the parameter keeps its dtype. A
    frozen leaf, whose factor is 0, is passed on untouched with its states.

    Raises ValueError if a gradient is missing for a parameter, naming the paths.
    """
    flat = flatten(params)
    flat_grads = flatten(grads)
    if flat.keys() != flat_grads.keys():
        raise ValueError(
            "grads must have the paths of params; they differ in "
            f"{', '.join(sorted(flat.keys() ^ flat_grads.keys()))}"
        )
    flat_states = [flatten(state) for state in states]
    new_params: dict[str, Any] = {}
    new_states: list[dict[str, Any]] = [{} for _ in states]
    for path, p in flat.items():
        old = [state[path] for state in flat_states]
        factor = factor_of(schedule, path)
        if is_frozen(factor):
            new_params[path], new = p, tuple(old)
        else:
            step, *new_leaves = rule(path, flat_grads[path], p, *old)
            new_params[path], new = moved(p, step, factor), tuple(new_leaves)
        for state, leaf in zip(new_states, new, strict=True):
            state[path] = leaf
    return unflatten(new_params), tuple(unflatten(state) for state in new_states)


def moved(
    p: Float[Array, "*shape"], step: Float[Array, "*shape"], factor: float
) -> Float[Array, "*shape"]:
    """p - factor · step in the dtype of p."""
    return cast_like(at_least_float32(p) - factor * step, p)
