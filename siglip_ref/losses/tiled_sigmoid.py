"""The sigmoid loss and all its gradients in one pass over tiles of the pair matrix."""

from typing import Protocol, runtime_checkable

from array_api_compat import array_namespace

from siglip_ref.losses.blocks import check_embeddings, check_scalar, indices
from siglip_ref.losses.pairs import Pairs, diagonal
from siglip_ref.losses.sigmoid import SigmoidLossCotangents, sigmoid_loss_bwd, sigmoid_loss_fwd
from siglip_ref.precision import at_least_float32, cast_like
from siglip_ref.tiles import tiles
from siglip_ref.types import Array, Float, Int


@runtime_checkable
class TiledSigmoidLoss(Protocol):
    """`tiled_sigmoid_loss`, or a faster form of it that a backend has."""

    def __call__(
        self,
        zimg: Float[Array, "n d"],
        ztxt: Float[Array, "m d"],
        t_prime: Float[Array, ""],
        b: Float[Array, ""],
        *,
        tile: int = 1024,
        pairs: Pairs = diagonal,
        rows: Int[Array, " n"] | None = None,
        columns: Int[Array, " m"] | None = None,
        total: int | None = None,
    ) -> tuple[Float[Array, ""], SigmoidLossCotangents]:
        """The loss, and the gradients at dloss = 1."""


def tiled_sigmoid_loss(
    zimg: Float[Array, "n d"],
    ztxt: Float[Array, "m d"],
    t_prime: Float[Array, ""],
    b: Float[Array, ""],
    *,
    tile: int = 1024,
    pairs: Pairs = diagonal,
    rows: Int[Array, " n"] | None = None,
    columns: Int[Array, " m"] | None = None,
    total: int | None = None,
) -> tuple[Float[Array, ""], SigmoidLossCotangents]:
    """`sigmoid_loss_fwd` and its gradients at dloss = 1, never holding more than a tile of logits.

    No pair needs another pair's logit, so each tile yields its share of the loss and of all
    gradients at once: three matrix products a tile, and beside inputs and outputs O(tile² + tile d)
    memory. Sums over tiles run in at least float32 and in a fixed order.

    Raises ValueError as `sigmoid_loss_fwd` does, and if `tile` is not a positive integer.

    Source: arXiv:2303.15343, section 3.3, with the tiles on one device.
    """
    xp = array_namespace(zimg, ztxt)
    check_embeddings(zimg, ztxt)
    check_scalar("t_prime", t_prime)
    check_scalar("b", b)
    rows, columns = indices(zimg, rows), indices(ztxt, columns)
    total = zimg.shape[0] if total is None else total
    one = xp.ones_like(at_least_float32(t_prime))
    loss = dt_prime = db = xp.zeros_like(one)
    dztxt_tiles: list[Array] = []
    dzimg_tiles: list[Array] = []
    for text_tile in tiles("tile", ztxt.shape[0], tile):
        texts = at_least_float32(ztxt[text_tile, :])
        dtexts = xp.zeros_like(texts)
        for number, image_tile in enumerate(tiles("tile", zimg.shape[0], tile)):
            images = at_least_float32(zimg[image_tile, :])
            nll, res = sigmoid_loss_fwd(
                images,
                texts,
                t_prime,
                b,
                pairs=pairs,
                rows=rows[image_tile],
                columns=columns[text_tile],
                total=total,
            )
            cotangents = sigmoid_loss_bwd(res, one)
            loss, db = loss + nll, db + cotangents.db
            dt_prime = dt_prime + cotangents.dt_prime
            dtexts = dtexts + cotangents.dztxt
            if number == len(dzimg_tiles):
                dzimg_tiles.append(cotangents.dzimg)
            else:
                dzimg_tiles[number] = dzimg_tiles[number] + cotangents.dzimg
        dztxt_tiles.append(cast_like(dtexts, ztxt))
    return loss, SigmoidLossCotangents(
        cast_like(xp.concat(dzimg_tiles, axis=0), zimg),
        xp.concat(dztxt_tiles, axis=0),
        cast_like(dt_prime, t_prime),
        cast_like(db, b),
    )
