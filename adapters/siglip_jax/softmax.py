"""The softmax loss as a JAX function: gradients come from our two passes, not from a trace."""

from functools import partial

import jax
import jax.numpy as jnp

from siglip_jax.arguments import checked, vary_alike
from siglip_jax.cotangents import Residuals, pull_back, residuals
from siglip_jax.tile_loop import Grid, Tile, add_rows, grid, rows_of
from siglip_ref.losses import Pairs, diagonal, softmax_loss_bwd
from siglip_ref.losses.blocks import indices
from siglip_ref.losses.softmax import (
    LineStatistics,
    SoftmaxLossCotangents,
    SoftmaxLossResiduals,
    line_statistics,
    lines_loss,
    merge_statistics,
    softmax_dlogits,
)
from siglip_ref.precision import at_least_float32
from siglip_ref.primitives import scaled_cosine_fwd
from siglip_ref.types import Array, Float

Lines = tuple[LineStatistics, LineStatistics]
"""The sums over the rows of the images, and those over the columns of the texts."""


def softmax_loss(
    zimg: Float[Array, "n d"],
    ztxt: Float[Array, "m d"],
    t_prime: Float[Array, ""],
    *,
    tile: int = 1024,
    pairs: Pairs = diagonal,
) -> Float[Array, ""]:
    """`siglip_ref.losses.tiled_softmax_loss` for jit, grad, vmap and shard_map.

        loss = ½ [ (1/n) Σᵢ (logsumexpⱼ logitsᵢⱼ - logitsᵢᵢ)
                 + (1/m) Σⱼ (logsumexpᵢ logitsᵢⱼ - logitsⱼⱼ) ],   logits = exp(t') zimg ztxtᵀ

    Gradients, memory, the size of the program and errors are as with `sigmoid_loss`; the loss
    alone takes one matrix product a tile, with its gradients four.
    """
    return _compiled(*checked(pairs, zimg, ztxt, t_prime=t_prime), tile, pairs)


def _line_pass(
    zimg: Float[Array, "n d"],
    ztxt: Float[Array, "m d"],
    t_prime: Float[Array, ""],
    pair_grid: Grid,
) -> Lines:
    """The running log-sum-exp, and the positives, of all rows and columns."""

    def step(done: Lines, tile: Tile) -> Lines:
        logits, _ = scaled_cosine_fwd(
            rows_of(zimg, tile.row, pair_grid.images.size),
            rows_of(ztxt, tile.column, pair_grid.texts.size),
            t_prime,
        )
        starts = (tile.row, tile.column)
        images, texts = (
            _merge_at(lines, start, line_statistics(logits, tile.targets, axis=1 - axis), axis)
            for axis, (lines, start) in enumerate(zip(done, starts, strict=True))
        )
        return images, texts

    images, texts = (_no_lines(at_least_float32(z)[:, :1]) for z in (zimg, ztxt))
    return pair_grid.fold(step, (images, LineStatistics(*(jnp.matrix_transpose(x) for x in texts))))


def _gradient_pass(
    zimg: Float[Array, "n d"],
    ztxt: Float[Array, "m d"],
    t_prime: Float[Array, ""],
    pair_grid: Grid,
    lines: Lines,
) -> SoftmaxLossCotangents:
    """The gradients in at least float32, from logits that are computed again."""
    t_prime = at_least_float32(t_prime)

    def step(done: SoftmaxLossCotangents, tile: Tile) -> SoftmaxLossCotangents:
        logits, cosine = scaled_cosine_fwd(
            at_least_float32(rows_of(zimg, tile.row, pair_grid.images.size)),
            at_least_float32(rows_of(ztxt, tile.column, pair_grid.texts.size)),
            t_prime,
        )
        images, texts = lines
        dlogits = softmax_dlogits(
            logits,
            tile.targets,
            _part_of(images, tile.row, pair_grid.images.size, axis=0),
            _part_of(texts, tile.column, pair_grid.texts.size, axis=1),
            image_total=zimg.shape[0],
            text_total=ztxt.shape[0],
        )
        one = jnp.ones((), dtype=dlogits.dtype)
        part = softmax_loss_bwd(SoftmaxLossResiduals(cosine, dlogits), one)
        return SoftmaxLossCotangents(
            add_rows(done.dzimg, part.dzimg, tile.row),
            add_rows(done.dztxt, part.dztxt, tile.column),
            done.dt_prime + part.dt_prime,
        )

    arguments = (zimg, ztxt, t_prime)
    return pair_grid.fold(
        step, SoftmaxLossCotangents(*(jnp.zeros_like(at_least_float32(x)) for x in arguments))
    )


def _no_lines(like: Float[Array, "n 1"]) -> LineStatistics:
    """The sums over no pairs at all."""
    zeros = jnp.zeros_like(like)
    return LineStatistics(zeros + float(jnp.finfo(like.dtype).min), zeros, zeros, zeros)


def _part_of(lines: LineStatistics, start: Array, size: int, axis: int) -> LineStatistics:
    return LineStatistics(*(jax.lax.dynamic_slice_in_dim(x, start, size, axis) for x in lines))


def _merge_at(
    lines: LineStatistics, start: Array, part: LineStatistics, axis: int
) -> LineStatistics:
    """`lines` with the sums of some of them merged with those over more pairs."""
    size = part.maximum.shape[axis]
    merged = merge_statistics(_part_of(lines, start, size, axis), part)
    return LineStatistics(
        *(
            jax.lax.dynamic_update_slice_in_dim(x, new, start, axis)
            for x, new in zip(lines, merged, strict=True)
        )
    )


@partial(jax.jit, static_argnums=(3, 4))
def _compiled(
    zimg: Float[Array, "n d"],
    ztxt: Float[Array, "m d"],
    t_prime: Float[Array, ""],
    tile: int,
    pairs: Pairs,
) -> Float[Array, ""]:
    return _softmax_loss(*vary_alike(zimg, ztxt, t_prime), tile, pairs)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _softmax_loss(
    zimg: Float[Array, "n d"],
    ztxt: Float[Array, "m d"],
    t_prime: Float[Array, ""],
    tile: int,
    pairs: Pairs,
) -> Float[Array, ""]:
    return _fwd(zimg, ztxt, t_prime, tile, pairs)[0]


def _fwd(
    zimg: Float[Array, "n d"],
    ztxt: Float[Array, "m d"],
    t_prime: Float[Array, ""],
    tile: int,
    pairs: Pairs,
) -> tuple[Float[Array, ""], Residuals]:
    pair_grid = grid(indices(zimg, None), indices(ztxt, None), tile, pairs)
    with jax.default_matmul_precision("highest"):  # float32 is float32 on any device
        lines = _line_pass(zimg, ztxt, t_prime, pair_grid)
        images, texts = lines
        loss = lines_loss(images) / (2 * zimg.shape[0]) + lines_loss(texts) / (2 * ztxt.shape[0])
        grads = _gradient_pass(zimg, ztxt, t_prime, pair_grid, lines)
    return loss, residuals(grads, (zimg, ztxt, t_prime))


_softmax_loss.defvjp(_fwd, lambda _tile, _pairs, res, dloss: pull_back(res, dloss))
