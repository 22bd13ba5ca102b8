"""The pair matrix tile by tile in compiled loops, the program of which does not grow with it."""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax

from siglip_ref.losses.pairs import Pairs, PairTargets
from siglip_ref.types import Array, Count, Float, Int

T = TypeVar("T")

MULTIPLE = 16
"""Rows of a tile are a multiple of it, so that matrix products have no ragged edge."""


class Span(NamedTuple):
    """Some tiles of `size` rows one after the other, from the row `start` on."""

    start: int
    size: int
    tiles: int


def spans(total: int, tile: int) -> tuple[Span, ...]:
    """`total` rows in as few tiles of at most `tile` as there can be, of about the same size.

    All but the last are of one size, so that one loop does for them; no row is in two tiles.

    Raises ValueError if `tile` is not a positive integer.
    """
    if not isinstance(tile, int) or tile < 1:
        raise ValueError(f"tile must be a positive integer, got {tile!r}")
    number = -(-total // tile)
    even = -(-total // number)
    size = min(tile, total, -(-even // MULTIPLE) * MULTIPLE)
    whole, rest = divmod(total, size)
    last = (Span(whole * size, rest, 1),) if rest else ()
    return (Span(0, size, whole), *last)


class Tile(NamedTuple):
    """n images and m texts, the first of which are those of a row and of a column."""

    row: Count
    column: Count
    n: int
    m: int

    def images(self, x: Array) -> Array:
        """What a matrix, or a vector, has for these images."""
        return rows_of(x, self.row, self.n)

    def texts(self, x: Array) -> Array:
        """What a matrix, or a vector, has for these texts."""
        return rows_of(x, self.column, self.m)


class Grid(NamedTuple):
    """The pairs of some images and texts, and how many of either make a tile.

    rows, columns
        The global indices of the images and of the texts.
    """

    rows: Int[Array, " n"]
    columns: Int[Array, " m"]
    tile: int
    pairs: Pairs

    def targets(self, tile: Tile) -> PairTargets:
        """Which pairs of a tile match."""
        return self.pairs(tile.images(self.rows), tile.texts(self.columns))

    def fold(self, step: Callable[[T, Tile], T], first: T) -> T:
        """`step(… step(step(first, one tile), the next tile) …)`, along the images first.

        Raises ValueError if `tile` is not a positive integer.
        """
        done = first
        # The long loop comes last: what is computed of its result can overwrite it, where XLA
        # would fuse the end of a single tile to it, and need a copy.
        for texts in reversed(spans(self.columns.shape[0], self.tile)):
            for images in reversed(spans(self.rows.shape[0], self.tile)):

                def body(
                    number: Int[Array, ""], done: T, images: Span = images, texts: Span = texts
                ) -> T:
                    row = images.start + number % images.tiles * images.size
                    column = texts.start + number // images.tiles * texts.size
                    return step(done, Tile(row, column, images.size, texts.size))

                done = jax.lax.fori_loop(0, images.tiles * texts.tiles, body, done)
        return done


def rows_of(x: Array, start: Count, size: int, axis: int = 0) -> Array:
    """`size` rows of a matrix, or elements of a vector, from `start` on; or columns of axis 1."""
    return jax.lax.dynamic_slice_in_dim(x, start, size, axis)


def add_rows(total: Array, part: Array, start: Count) -> Array:
    """`total` with `part` added to its rows from `start` on, in place when compiled."""
    rows = rows_of(total, start, part.shape[0]) + part
    return jax.lax.dynamic_update_slice_in_dim(total, rows, start, axis=0)


def x_y_transposed(x: Float[Array, "n d"], y: Float[Array, "m d"]) -> Float[Array, "n m"]:
    """x yᵀ, without a transposed copy."""
    return jax.lax.dot_general(x, y, (((1,), (1,)), ((), ())))


def x_transposed_y(x: Float[Array, "n m"], y: Float[Array, "n d"]) -> Float[Array, "m d"]:
    """xᵀ y, without a transposed copy."""
    return jax.lax.dot_general(x, y, (((0,), (0,)), ((), ())))
