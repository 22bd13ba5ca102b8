"""What the pairs of a grid of tiles add to the sigmoid loss and its gradients."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from siglip_jax.tile_loop import Grid, Tile, add_rows, x_transposed_y, x_y_transposed
from siglip_ref.losses import diagonal
from siglip_ref.losses.sigmoid import SigmoidLossCotangents, pair_nll
from siglip_ref.types import Array, Bool, Float


class ImageSums(NamedTuple):
    """Sums over the pairs of each image: the losses, their derivatives by the logits, and
    dzimg = t dlogits ztxt.
    """

    nll: Float[Array, " n"]
    dlogits: Float[Array, " n"]
    dzimg: Float[Array, "n d"]


class SigmoidSums(NamedTuple):
    """Sums over pairs, all of one dtype, float32 at least; dztxt = t dlogitsᵀ zimg."""

    images: ImageSums
    dztxt: Float[Array, "m d"]


def no_pairs(zimg: Float[Array, "n d"], ztxt: Float[Array, "m d"]) -> SigmoidSums:
    """The sums over no pairs at all."""
    dtype = jnp.result_type(jnp.float32, zimg, ztxt)
    dzimg, dztxt = (jnp.zeros_like(z, dtype=dtype) for z in (zimg, ztxt))
    return SigmoidSums(ImageSums(dzimg[:, 0], dzimg[:, 0], dzimg), dztxt)


def add_pairs(
    sums: SigmoidSums,
    zimg: Float[Array, "n d"],
    ztxt: Float[Array, "m d"],
    t_prime: Float[Array, ""],
    b: Float[Array, ""],
    grid: Grid,
) -> SigmoidSums:
    """`sums` with those over a grid: three matrix products a tile, and what XLA fuses to them."""
    dtype = sums.dztxt.dtype
    t, b = jnp.exp(t_prime.astype(dtype)), b.astype(dtype)

    def step(done: SigmoidSums, tile: Tile) -> SigmoidSums:
        images, texts = (z.astype(dtype) for z in (tile.images(zimg), tile.texts(ztxt)))
        logits = t * x_y_transposed(images, texts) + b
        if grid.pairs is diagonal:
            match = tile.images(grid.rows)[:, None] == tile.texts(grid.columns)[None, :]
            nll, dlogits = diagonal_nll(logits, match)
        else:
            nll, dlogits = pair_nll(logits, grid.targets(tile))
        image_sums = ImageSums(
            add_rows(done.images.nll, jnp.sum(nll, axis=1), tile.row),
            add_rows(done.images.dlogits, jnp.sum(dlogits, axis=1), tile.row),
            add_rows(done.images.dzimg, t * (dlogits @ texts), tile.row),
        )
        dtexts = t * x_transposed_y(dlogits, images)
        return SigmoidSums(image_sums, add_rows(done.dztxt, dtexts, tile.column))

    with jax.default_matmul_precision("highest"):  # float32 is float32 on any device
        return grid.fold(step, sums)


def finished(
    sums: SigmoidSums, zimg: Float[Array, "n d"], total: int
) -> tuple[Float[Array, ""], SigmoidLossCotangents]:
    """The loss of a batch of `total` images, and its gradients in the dtype of the sums."""
    nll, dlogits, dzimg = (x / total for x in sums.images)
    return jnp.sum(nll), SigmoidLossCotangents(
        dzimg, sums.dztxt / total, jnp.sum(zimg * dzimg), jnp.sum(dlogits)
    )


def diagonal_nll(
    logits: Float[Array, "n m"], match: Bool[Array, "n m"]
) -> tuple[Float[Array, "n m"], Float[Array, "n m"]]:
    """`pair_nll` of labels ±1 with one exp a logit. With z = -labels logits and E = exp(z):

    nll = softplus(z) = log1p(E);    dnll = -labels σ(z) = -labels E / (1 + E)

    Smooth wherever it is finite, so it can be differentiated.
    """
    # E is kept below the largest finite number; beyond it softplus(z) is z, and σ(z) is 1.
    limit = math.log(float(jnp.finfo(logits.dtype).max)) - 1
    z = jnp.where(match, -logits, logits)
    e = jnp.exp(jnp.minimum(z, limit))
    nll = jnp.log1p(e) + jnp.maximum(z - limit, 0)
    dz = e / (1 + e)
    return nll, jnp.where(match, -dz, dz)
