"""The pair matrix tile by tile in a compiled loop, the program of which does not grow with it."""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from siglip_ref.losses.pairs import Pairs, PairTargets
from siglip_ref.types import Array, Bool, Float, Int

T = TypeVar("T")


class Cut(NamedTuple):
    """An axis of `total` rows cut into tiles of `size`; the last one is moved back to fit in."""

    total: int
    size: int

    @property
    def tiles(self) -> int:
        """How many tiles there are."""
        return -(-self.total // self.size)

    def start(self, number: Int[Array, ""]) -> Int[Array, ""]:
        """The first row of a tile."""
        return jnp.minimum(number * self.size, self.total - self.size)

    def fresh(self, number: Int[Array, ""]) -> Bool[Array, " size"]:
        """Which rows of a tile are not in the tile before it."""
        return self.start(number) + jnp.arange(self.size) >= number * self.size


class Tile(NamedTuple):
    """A tile of the pair matrix: the first row and column of its block, and its targets."""

    row: Int[Array, ""]
    column: Int[Array, ""]
    targets: PairTargets


class Grid(NamedTuple):
    """The pair matrix of some images and texts, cut into tiles.

    rows, columns
        The global indices of the images and of the texts.
    """

    images: Cut
    texts: Cut
    pairs: Pairs
    rows: Int[Array, " n"]
    columns: Int[Array, " m"]

    def fold(self, step: Callable[[T, Tile], T], first: T) -> T:
        """`step(… step(step(first, tile 0), tile 1) …)`, along the images first."""

        def body(number: Int[Array, ""], carry: T) -> T:
            return step(carry, self._tile(number % self.images.tiles, number // self.images.tiles))

        last: T = jax.lax.fori_loop(0, self.images.tiles * self.texts.tiles, body, first)
        return last

    def _tile(self, i: Int[Array, ""], j: Int[Array, ""]) -> Tile:
        row, column = self.images.start(i), self.texts.start(j)
        labels, weights = self.pairs(
            rows_of(self.rows, row, self.images.size),
            rows_of(self.columns, column, self.texts.size),
        )
        for cut, number, axis in ((self.images, i, 1), (self.texts, j, 0)):
            if cut.total % cut.size:
                fresh = jnp.expand_dims(cut.fresh(number), axis).astype(labels.dtype)
                weights = fresh if weights is None else weights * fresh
        if weights is not None:
            weights = jnp.broadcast_to(weights, labels.shape)
        return Tile(row, column, PairTargets(labels, weights))


def grid(rows: Int[Array, " n"], columns: Int[Array, " m"], tile: int, pairs: Pairs) -> Grid:
    """The grid of these images and texts in tiles of at most `tile` each way.

    Raises ValueError if `tile` is not a positive integer.
    """
    if not isinstance(tile, int) or tile < 1:
        raise ValueError(f"tile must be a positive integer, got {tile!r}")
    images, texts = (Cut(index.shape[0], min(tile, index.shape[0])) for index in (rows, columns))
    return Grid(images, texts, pairs, rows, columns)


def rows_of(z: Array, start: Int[Array, ""], size: int) -> Array:
    """`size` rows of a matrix, or elements of a vector, from `start` on."""
    return jax.lax.dynamic_slice_in_dim(z, start, size)


def add_rows(
    total: Float[Array, "n d"], part: Float[Array, "size d"], start: Int[Array, ""]
) -> Float[Array, "n d"]:
    """`total` with `part` added to its rows from `start` on, in place when compiled."""
    rows = rows_of(total, start, part.shape[0]) + part
    return jax.lax.dynamic_update_slice_in_dim(total, rows, start, axis=0)
