"""CLIP's softmax loss on a ring, in two rotations."""

from array_api_compat import array_namespace

from siglip_ref.communicator import Arrays, Communicator
from siglip_ref.losses.blocks import check_scalar
from siglip_ref.losses.pairs import Pairs, diagonal
from siglip_ref.losses.softmax import (
    LineStatistics,
    SoftmaxLossCotangents,
    line_statistics,
    lines_loss,
    merge_statistics,
    softmax_dlogits,
)
from siglip_ref.precision import at_least_float32, cast_like
from siglip_ref.primitives import scaled_cosine_bwd, scaled_cosine_fwd
from siglip_ref.ring.lines import joined, pack, unpack_columns
from siglip_ref.ring.rotation import rotation
from siglip_ref.ring.shards import shards_of
from siglip_ref.tiles import tiles
from siglip_ref.types import Array, Float, Int


def softmax_loss(
    zimg: Float[Array, "n d"],
    ztxt: Float[Array, "m d"],
    t_prime: Float[Array, ""],
    comm: Communicator,
    *,
    tile: int = 1024,
    pairs: Pairs = diagonal,
) -> tuple[Float[Array, ""], SoftmaxLossCotangents]:
    """CLIP's symmetric softmax loss of the global batch, and the gradients of the local shards.

    Arguments are those of the sigmoid loss on a ring. It takes two rotations where that takes one:
    a gradient needs the normalisers of its row and its column, and these need every logit. In the
    first the running log-sum-exp of the texts travels behind them, in the second their gradient
    does, and the logits are computed again.

    Raises ValueError as `tiled_softmax_loss` does, and on all ranks if the shards do not fit
    together.

    Source: arXiv:2103.00020, figure 3; the running sums are those of arXiv:1805.02867, section 3.
    """
    xp = array_namespace(zimg, ztxt)
    check_scalar("t_prime", t_prime)
    images, texts = shards_of(zimg, ztxt, comm)
    rows = images.indices(comm.rank, zimg)
    wide_zimg, wide_t_prime = at_least_float32(zimg), at_least_float32(t_prime)
    image_tiles = list(tiles("tile", zimg.shape[0], tile))

    def collect(
        state: tuple[LineStatistics, ...], held: Arrays, columns: Int[Array, " m"]
    ) -> tuple[tuple[LineStatistics, ...], Arrays]:
        ztxt_here = at_least_float32(held[0])
        image_lines, text_lines = list(state), []
        for text_tile in tiles("tile", ztxt_here.shape[0], tile):
            column_lines: list[LineStatistics] = []
            for number, image_tile in enumerate(image_tiles):
                logits, _ = scaled_cosine_fwd(
                    wide_zimg[image_tile, :], ztxt_here[text_tile, :], wide_t_prime
                )
                targets = pairs(rows[image_tile], columns[text_tile])
                _merge_into(image_lines, number, line_statistics(logits, targets, axis=1))
                _merge_into(column_lines, 0, line_statistics(logits, targets, axis=0))
            text_lines.extend(column_lines)
        return tuple(image_lines), (xp.concat([pack(lines) for lines in text_lines], axis=0),)

    def merge_lines(one: Arrays, other: Arrays) -> Arrays:
        merged = merge_statistics(unpack_columns(one[0]), unpack_columns(other[0]))
        return (pack(merged),)

    no_lines: tuple[LineStatistics, ...] = ()
    image_lines, (text_sums,) = rotation(collect, merge_lines, no_lines, (ztxt,), texts, comm)
    loss = lines_loss(joined(image_lines)) / (2 * images.total)
    loss = loss + lines_loss(unpack_columns(text_sums)) / (2 * texts.total)

    def visit(
        state: tuple[tuple[Array, ...], Array], held: Arrays, columns: Int[Array, " m"]
    ) -> tuple[tuple[tuple[Array, ...], Array], Arrays]:
        ztxt_here, sums = at_least_float32(held[0]), held[1]
        dzimg, dt_prime = list(state[0]), state[1]
        dztxt = []
        for text_tile in tiles("tile", ztxt_here.shape[0], tile):
            dtexts = xp.zeros_like(ztxt_here[text_tile, :])
            text_lines = unpack_columns(sums[text_tile, :])
            for number, image_tile in enumerate(image_tiles):
                logits, res = scaled_cosine_fwd(
                    wide_zimg[image_tile, :], ztxt_here[text_tile, :], wide_t_prime
                )
                dlogits = softmax_dlogits(
                    logits,
                    pairs(rows[image_tile], columns[text_tile]),
                    image_lines[number],
                    text_lines,
                    image_total=images.total,
                    text_total=texts.total,
                )
                grads = scaled_cosine_bwd(res, dlogits)
                dzimg[number] = dzimg[number] + grads[0]
                dtexts = dtexts + grads[1]
                dt_prime = dt_prime + cast_like(grads[2], dt_prime)
            dztxt.append(dtexts)
        return (tuple(dzimg), dt_prime), (xp.concat(dztxt, axis=0),)

    def merge(one: Arrays, other: Arrays) -> Arrays:
        return (one[0] + other[0],)

    (dzimg, dt_prime), (dztxt,) = rotation(
        visit,
        merge,
        (tuple(xp.zeros_like(wide_zimg[part, :]) for part in image_tiles), xp.zeros_like(loss)),
        (ztxt, text_sums),
        texts,
        comm,
    )
    scalars = comm.sum(xp.stack((loss, dt_prime)))
    return scalars[0], SoftmaxLossCotangents(
        cast_like(xp.concat(list(dzimg), axis=0), zimg),
        cast_like(dztxt, ztxt),
        cast_like(scalars[1], t_prime),
    )


def _merge_into(lines: list[LineStatistics], number: int, part: LineStatistics) -> None:
    """Merge a part into the lines of a number, or make it them where they are the next."""
    if number == len(lines):
        lines.append(part)
    else:
        lines[number] = merge_statistics(lines[number], part)
