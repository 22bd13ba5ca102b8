"""Functions that say which pairs match, as JAX can pass them on: the arrays in them by themselves.

`same_group(ids, ids)` in a compiled step holds `ids` of the batch, which are no numbers there. A
custom derivative must not see such arrays but in its arguments.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from siglip_jax.tile_loop import spans
from siglip_ref.losses.pairs import Pairs, PairTargets, diagonal
from siglip_ref.types import Array, Int

Arrays = tuple[Array, ...]


class Program(NamedTuple):
    """What a function does with the indices of a tile of some shape, and how to read what it gives.

    first, last
        Which of all arrays it takes before the indices.
    """

    jaxpr: Any
    tree: Any
    first: int
    last: int


class Opened:
    """A function for pairs without its arrays: a program for each shape of a tile."""

    def __init__(self, programs: dict[tuple[int, int], Program]) -> None:
        self._programs = programs

    def closed(self, arrays: Arrays) -> Pairs:
        """The function, with these arrays in it."""

        def pairs(rows: Int[Array, " n"], columns: Int[Array, " m"]) -> PairTargets:
            program = self._programs[rows.shape[0], columns.shape[0]]
            run = jaxpr_as_fun(ClosedJaxpr(program.jaxpr, arrays[program.first : program.last]))
            targets: PairTargets = jax.tree.unflatten(program.tree, run(rows, columns))
            return targets

        return pairs


def opened(
    pairs: Pairs, rows: Int[Array, " n"], columns: Int[Array, " m"], tile: int
) -> tuple[Pairs | Opened, Arrays]:
    """`pairs` and no arrays; or, where it holds arrays that are being traced, it without them,
    and them.
    """
    if pairs is diagonal:
        return pairs, ()
    programs: dict[tuple[int, int], Program] = {}
    arrays: Arrays = ()
    for n, m in _shapes(rows.shape[0], columns.shape[0], tile):
        indices = (
            jax.ShapeDtypeStruct((n,), rows.dtype),
            jax.ShapeDtypeStruct((m,), columns.dtype),
        )
        program, shape = jax.make_jaxpr(pairs, return_shape=True)(*indices)
        last = len(arrays) + len(program.consts)
        programs[n, m] = Program(program.jaxpr, jax.tree.structure(shape), len(arrays), last)
        arrays = (*arrays, *program.consts)
    if any(isinstance(array, jax.core.Tracer) for array in arrays):
        return Opened(programs), arrays
    return pairs, ()


def closed(pairs: Pairs | Opened, arrays: Arrays) -> Pairs:
    """The inverse of `opened`."""
    return pairs.closed(arrays) if isinstance(pairs, Opened) else pairs


def _shapes(n: int, m: int, tile: int) -> Iterator[tuple[int, int]]:
    return ((i.size, j.size) for i in spans(n, tile) for j in spans(m, tile))
