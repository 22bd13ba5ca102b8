"""The symmetric softmax loss and its gradients in two passes over tiles of the pair matrix."""

from array_api_compat import array_namespace

from siglip_ref.losses.blocks import check_embeddings, check_scalar, indices
from siglip_ref.losses.pairs import Pairs, diagonal
from siglip_ref.losses.softmax import (
    LineStatistics,
    SoftmaxLossCotangents,
    SoftmaxLossResiduals,
    line_statistics,
    lines_loss,
    merge_statistics,
    softmax_dlogits,
    softmax_loss_bwd,
)
from siglip_ref.precision import at_least_float32, cast_like
from siglip_ref.primitives import scaled_cosine_fwd
from siglip_ref.tiles import tiles
from siglip_ref.types import Array, Float


def tiled_softmax_loss(
    zimg: Float[Array, "n d"],
    ztxt: Float[Array, "m d"],
    t_prime: Float[Array, ""],
    *,
    tile: int = 1024,
    pairs: Pairs = diagonal,
) -> tuple[Float[Array, ""], SoftmaxLossCotangents]:
    """`softmax_loss_fwd` and its gradients at dloss = 1, never holding more than a tile of logits.

    The normalisers need every logit before any gradient can be formed. So the first pass keeps a
    running log-sum-exp of each line, and the second computes the logits again: four matrix
    products a tile where the sigmoid loss needs three.

    Raises ValueError as `softmax_loss_fwd` does, and if `tile` is not a positive integer.

    Source: the running maximum and sum are those of arXiv:1805.02867, section 3.
    """
    xp = array_namespace(zimg, ztxt)
    check_embeddings(zimg, ztxt)
    check_scalar("t_prime", t_prime)
    rows, columns = indices(zimg, None), indices(ztxt, None)
    image_tiles, text_tiles = (
        list(tiles("tile", zimg.shape[0], tile)),
        list(tiles("tile", ztxt.shape[0], tile)),
    )

    images: dict[int, LineStatistics] = {}
    texts: dict[int, LineStatistics] = {}
    for i, image_tile in enumerate(image_tiles):
        for j, text_tile in enumerate(text_tiles):
            logits, _ = scaled_cosine_fwd(zimg[image_tile, :], ztxt[text_tile, :], t_prime)
            targets = pairs(rows[image_tile], columns[text_tile])
            for lines, line, axis in ((images, i, 1), (texts, j, 0)):
                part = line_statistics(logits, targets, axis=axis)
                lines[line] = merge_statistics(lines[line], part) if line in lines else part

    one = xp.ones_like(at_least_float32(t_prime))
    loss = dt_prime = xp.zeros_like(one)
    for lines, count in ((images, zimg.shape[0]), (texts, ztxt.shape[0])):
        for part in lines.values():
            loss = loss + lines_loss(part) / (2 * count)

    dzimg_tiles: list[Array] = []
    dztxt_tiles: dict[int, Array] = {}
    for i, image_tile in enumerate(image_tiles):
        image_rows = at_least_float32(zimg[image_tile, :])
        dimages = xp.zeros_like(image_rows)
        for j, text_tile in enumerate(text_tiles):
            text_rows = at_least_float32(ztxt[text_tile, :])
            logits, cosine = scaled_cosine_fwd(image_rows, text_rows, t_prime)
            dlogits = softmax_dlogits(
                logits,
                pairs(rows[image_tile], columns[text_tile]),
                images[i],
                texts[j],
                image_total=zimg.shape[0],
                text_total=ztxt.shape[0],
            )
            cotangents = softmax_loss_bwd(SoftmaxLossResiduals(cosine, dlogits), one)
            dimages = dimages + cotangents.dzimg
            dztxt_tiles[j] = (
                dztxt_tiles[j] + cotangents.dztxt if j in dztxt_tiles else cotangents.dztxt
            )
            dt_prime = dt_prime + cotangents.dt_prime
        dzimg_tiles.append(cast_like(dimages, zimg))
    return loss, SoftmaxLossCotangents(
        xp.concat(dzimg_tiles, axis=0),
        cast_like(xp.concat(list(dztxt_tiles.values()), axis=0), ztxt),
        cast_like(dt_prime, t_prime),
    )
