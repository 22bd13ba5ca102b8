"""What the pairs of a grid of tiles add to the softmax loss and its gradients, in two passes."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from siglip_jax.tile_loop import Grid, Tile, add_rows, rows_of, x_transposed_y, x_y_transposed
from siglip_ref.losses.softmax import (
    LineStatistics,
    SoftmaxLossCotangents,
    line_statistics,
    lines_loss,
    merge_statistics,
    softmax_dlogits,
)
from siglip_ref.types import Array, Count, Float


class Lines(NamedTuple):
    """The sums over the rows of the images, (n, 1), and over the columns of the texts, (1, m)."""

    images: LineStatistics
    texts: LineStatistics


class SoftmaxSums(NamedTuple):
    """t dlogits ztxt and t dlogitsᵀ zimg, in at least float32."""

    dzimg: Float[Array, "n d"]
    dztxt: Float[Array, "m d"]


def no_lines(zimg: Float[Array, "n d"], ztxt: Float[Array, "m d"]) -> Lines:
    """The sums over no pairs at all."""
    wide = no_gradients(zimg, ztxt)
    return Lines(no_statistics(wide.dzimg[:, :1]), no_statistics(wide.dztxt[:, :1].T))


def no_statistics(zeros: Float[Array, "n m"]) -> LineStatistics:
    """The sums over no pairs at all, of lines in the shape of these zeros."""
    return LineStatistics(zeros + float(jnp.finfo(zeros.dtype).min), zeros, zeros, zeros)


def no_gradients(zimg: Float[Array, "n d"], ztxt: Float[Array, "m d"]) -> SoftmaxSums:
    """The sums over no pairs at all."""
    dtype = jnp.result_type(jnp.float32, zimg, ztxt)
    return SoftmaxSums(*(jnp.zeros_like(z, dtype=dtype) for z in (zimg, ztxt)))


def add_lines(
    lines: Lines,
    zimg: Float[Array, "n d"],
    ztxt: Float[Array, "m d"],
    t_prime: Float[Array, ""],
    grid: Grid,
) -> Lines:
    """`lines` with the pairs of a grid, one matrix product a tile."""

    def step(done: Lines, tile: Tile) -> Lines:
        logits, _, _ = _logits(zimg, ztxt, t_prime, tile, done.images.mass.dtype)
        targets = grid.targets(tile)
        images, texts = (line_statistics(logits, targets, axis=axis) for axis in (1, 0))
        return Lines(
            _merged(done.images, images, tile.row, axis=0),
            _merged(done.texts, texts, tile.column, axis=1),
        )

    with jax.default_matmul_precision("highest"):  # float32 is float32 on any device
        return grid.fold(step, lines)


def add_gradients(
    sums: SoftmaxSums,
    zimg: Float[Array, "n d"],
    ztxt: Float[Array, "m d"],
    t_prime: Float[Array, ""],
    lines: Lines,
    grid: Grid,
    totals: tuple[int, int],
) -> SoftmaxSums:
    """`sums` with the pairs of a grid, from logits that are computed again.

    `lines` are those of the global batch, which has so many images and texts in `totals`.
    """

    def step(done: SoftmaxSums, tile: Tile) -> SoftmaxSums:
        logits, images, texts = _logits(zimg, ztxt, t_prime, tile, done.dzimg.dtype)
        dlogits = softmax_dlogits(
            logits,
            grid.targets(tile),
            LineStatistics(*(rows_of(x, tile.row, tile.n) for x in lines.images)),
            LineStatistics(*(rows_of(x, tile.column, tile.m, axis=1) for x in lines.texts)),
            image_total=totals[0],
            text_total=totals[1],
        )
        t = jnp.exp(t_prime.astype(dlogits.dtype))
        return SoftmaxSums(
            add_rows(done.dzimg, t * (dlogits @ texts), tile.row),
            add_rows(done.dztxt, x_transposed_y(dlogits, images), tile.column),
        )

    with jax.default_matmul_precision("highest"):
        return grid.fold(step, sums)


def loss_of(lines: Lines, totals: tuple[int, int]) -> Float[Array, ""]:
    """What these lines are of the loss of a batch with so many images and texts."""
    images, texts = (
        lines_loss(part) / (2 * total) for part, total in zip(lines, totals, strict=True)
    )
    return images + texts


def cotangents(sums: SoftmaxSums, zimg: Float[Array, "n d"]) -> SoftmaxLossCotangents:
    """The gradients, that by t' among them."""
    return SoftmaxLossCotangents(*sums, jnp.sum(zimg * sums.dzimg))


def _logits(
    zimg: Float[Array, "n d"],
    ztxt: Float[Array, "m d"],
    t_prime: Float[Array, ""],
    tile: Tile,
    dtype: jnp.dtype,
) -> tuple[Float[Array, "n m"], Float[Array, "n d"], Float[Array, "m d"]]:
    """The logits of a tile, its images times t, and its texts."""
    # Multiplied before the product: after it, XLA would fuse the product with t and the
    # subtraction of a maximum, and round them once, so that what is 0 would not be.
    images = tile.images(zimg).astype(dtype) * jnp.exp(t_prime.astype(dtype))
    texts = tile.texts(ztxt).astype(dtype)
    return x_y_transposed(images, texts), images, texts


def _merged(lines: LineStatistics, part: LineStatistics, start: Count, axis: int) -> LineStatistics:
    """`lines` with the sums of some of them merged with those over more pairs."""
    size = part.mass.shape[axis]
    here = LineStatistics(*(rows_of(x, start, size, axis=axis) for x in lines))
    return LineStatistics(
        *(
            jax.lax.dynamic_update_slice_in_dim(x, new, start, axis)
            for x, new in zip(lines, merge_statistics(here, part), strict=True)
        )
    )
