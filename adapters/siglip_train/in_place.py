"""An optimizer's update that writes over the parameters and their state, block by block.

The rules of the core make new trees, so that during an update the old and the new parameters and
moments are all in memory. Here a rule sees one block of one parameter at a time, and what it
returns is written over what it was given: the same numbers, in the memory of one set of trees.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from siglip_ref.tree import flatten, unflatten
from siglip_ref.types import Array, Map, Tree

Update = Callable[[Tree, Tree, Tree, Any], tuple[Tree, Tree]]
"""(grads, state, params, factors) to (params, state); the state is a dict of trees and counts."""


def in_place(update: Update, block: float, parallel_map: Map) -> Update:
    """`update` in the memory of its state and parameters, which must be arrays to write to.

    block
        Elements of a parameter that are handed to `update` at a time, in whole rows; infinity
        hands over whole parameters, for a rule in which an element depends on others.
    """

    def update_in_place(grads: Tree, state: Tree, params: Tree, factors: Any) -> tuple[Tree, Tree]:
        counts = {name: part for name, part in state.items() if not isinstance(part, Mapping)}
        moments = {name: flatten(part) for name, part in state.items() if name not in counts}
        flat_grads, flat_params = flatten(grads), flatten(params)
        if flat_grads.keys() != flat_params.keys():
            return update(grads, state, params, factors)  # raises, naming the paths

        def step(work: tuple[str, slice]) -> Tree:
            path, rows = work
            given_params = {path: _block(flat_params[path], rows)}
            given = {name: {path: _block(part[path], rows)} for name, part in moments.items()}
            new_params, new_state = update(
                {path: _block(flat_grads[path], rows)}, counts | given, given_params, factors
            )
            _overwrite(flat_params, path, rows, given_params[path], new_params)
            for name, part in moments.items():
                _overwrite(part, path, rows, given[name][path], new_state[name])
            return {name: new_state[name] for name in counts}

        work = [(path, rows) for path, p in flat_params.items() for rows in _row_blocks(p, block)]
        *_, new_counts = parallel_map(step, work)
        new_state = {name: unflatten(part) for name, part in moments.items()}
        return unflatten(flat_params), {**state, **new_state, **new_counts}

    return update_in_place


def _row_blocks(p: Array, block: float) -> Iterator[slice]:
    rows = p.shape[0] if p.ndim else 1
    size = math.prod(p.shape)
    count = max(1, math.ceil(size / block))
    height = math.ceil(rows / count)
    yield from (slice(start, start + height) for start in range(0, rows, height))


def _block(leaf: Array, rows: slice) -> Array:
    return leaf[rows] if leaf.ndim else leaf


def _overwrite(leaves: dict[str, Any], path: str, rows: slice, old: Array, new: Tree) -> None:
    """Put the new block where the old one was; a leaf without rows is replaced."""
    found = flatten(new)[path]
    if found is old:
        return
    if found.ndim:
        leaves[path][rows] = found
    else:
        leaves[path] = found
