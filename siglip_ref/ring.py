"""The losses on a ring of devices, each of which holds a shard of the images and of the texts.

Texts go round: in every ring step a device works on its images and the texts that it holds, then
passes these on. The next texts travel while it computes, and so do the gradients of the last ones.
Nothing grows with the number of devices but the time.
"""

from functools import reduce
from itertools import accumulate
from operator import add
from typing import NamedTuple

from array_api_compat import array_namespace, device

from siglip_ref.communicator import Communicator, Shift
from siglip_ref.losses import tiled_sigmoid_loss
from siglip_ref.losses.blocks import check_embeddings, check_scalar, tiles
from siglip_ref.losses.pairs import Pairs, diagonal
from siglip_ref.losses.sigmoid import SigmoidLossCotangents
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
from siglip_ref.types import Array, Float, Int


class Shards(NamedTuple):
    """How many rows each rank has, and at which global index they start."""

    counts: tuple[int, ...]
    starts: tuple[int, ...]

    @property
    def total(self) -> int:
        """Rows of the global batch."""
        return sum(self.counts)

    def indices(self, owner: int, like: Array) -> Int[Array, " n"]:
        """The global indices of the rows of a rank."""
        xp = array_namespace(like)
        start = self.starts[owner]
        return xp.arange(start, start + self.counts[owner], device=device(like))


def sigmoid_loss(
    zimg: Float[Array, "n d"],
    ztxt: Float[Array, "m d"],
    t_prime: Float[Array, ""],
    b: Float[Array, ""],
    comm: Communicator,
    *,
    tile: int = 1024,
    pairs: Pairs = diagonal,
) -> tuple[Float[Array, ""], SigmoidLossCotangents]:
    """The sigmoid loss of the global batch, and the gradients of the local shards at dloss = 1.

    `zimg` and `ztxt` are the shards of this rank, in any numbers; t' and b are equal on all ranks.
    The global batch is the shards in the order of the ranks, and `pairs` gets global indices. The
    loss, dt' and db are sums over all ranks.

    One rotation: the logit's gradient needs no other logit, so when the texts of a rank come by,
    their gradient by the images here is complete at once. It travels in at least float32 one ring
    step behind them, and is home after as many steps as there are ranks. Beside inputs and
    outputs a rank holds three shards of texts, two of gradients and O(tile) more, whatever the
    number of ranks.

    Raises ValueError as `tiled_sigmoid_loss` does.

    Source: arXiv:2303.15343, section 3.3, whose devices exchange texts; gradients that travel
    along make the second exchange, and the blocks kept for it, unnecessary.
    """
    xp = array_namespace(zimg, ztxt)
    check_embeddings(zimg, ztxt)
    images, texts = shards_of(zimg, comm), shards_of(ztxt, comm)
    wide_zimg = at_least_float32(zimg)
    rows = images.indices(comm.rank, zimg)
    losses: list[Array] = []
    dzimg: Array = xp.zeros_like(wide_zimg)
    held = ztxt
    travelling: Shift | None = None
    for owner in owners(comm):
        coming = start(comm, (held,), owner)
        loss, grads = tiled_sigmoid_loss(
            wide_zimg,
            at_least_float32(held),
            t_prime,
            b,
            tile=tile,
            pairs=pairs,
            rows=rows,
            columns=texts.indices(owner, ztxt),
            total=images.total,
        )
        losses.append(xp.stack((loss, grads.dt_prime, grads.db)))
        dzimg = dzimg + grads.dzimg
        dtexts = grads.dztxt
        if travelling is not None:
            dtexts = travelling.wait()[0] + dtexts
        travelling = comm.start_shift((dtexts,))
        if coming is not None:
            (held,) = coming.wait()
    assert travelling is not None
    (dztxt,) = travelling.wait()
    scalars = comm.sum(reduce(add, losses))
    return scalars[0], SigmoidLossCotangents(
        cast_like(dzimg, zimg),
        cast_like(dztxt, ztxt),
        cast_like(scalars[1], t_prime),
        cast_like(scalars[2], b),
    )


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

    Two rotations, where the sigmoid loss needs one: a gradient needs the normalisers of its row
    and its column, which need every logit. In the first the running log-sum-exp of the texts
    travels with them, in the second their gradient, and the logits are computed again. Images are
    worked on `tile` at a time.

    Raises ValueError as `softmax_loss_fwd` does, and if `tile` is not a positive integer.

    Source: arXiv:2103.00020, figure 3; the running sums are those of arXiv:1805.02867, section 3.
    """
    xp = array_namespace(zimg, ztxt)
    check_embeddings(zimg, ztxt)
    check_scalar("t_prime", t_prime)
    images, texts = shards_of(zimg, comm), shards_of(ztxt, comm)
    rows = images.indices(comm.rank, zimg)
    parts = list(tiles("tile", zimg.shape[0], tile))

    image_lines: list[LineStatistics | None] = [None for _ in parts]
    text_lines: LineStatistics | None = None
    held = ztxt
    for owner in owners(comm):
        coming = start(comm, (held,), owner)
        columns = texts.indices(owner, ztxt)
        for number, part in enumerate(parts):
            logits, _ = scaled_cosine_fwd(zimg[part, :], held, t_prime)
            targets = pairs(rows[part], columns)
            image_lines[number] = merged(
                image_lines[number], line_statistics(logits, targets, axis=1)
            )
            text_lines = merged(text_lines, line_statistics(logits, targets, axis=0))
        assert text_lines is not None
        text_lines = LineStatistics(*comm.start_shift(tuple(text_lines)).wait())
        if coming is not None:
            (held,) = coming.wait()
    assert text_lines is not None
    lines = [line for line in image_lines if line is not None]
    loss = reduce(add, (lines_loss(line) for line in lines)) / (2 * images.total)
    loss = loss + lines_loss(text_lines) / (2 * texts.total)

    dzimg_parts = [xp.zeros_like(at_least_float32(zimg[part, :])) for part in parts]
    dt_prime = xp.zeros_like(loss)
    held = ztxt
    travelling: Shift | None = None
    for owner in owners(comm):
        coming = start(comm, (held, *text_lines), owner)
        columns = texts.indices(owner, ztxt)
        dtexts = xp.zeros_like(at_least_float32(held))
        for number, part in enumerate(parts):
            logits, res = scaled_cosine_fwd(
                at_least_float32(zimg[part, :]), at_least_float32(held), t_prime
            )
            dlogits = softmax_dlogits(
                logits,
                pairs(rows[part], columns),
                lines[number],
                text_lines,
                image_total=images.total,
                text_total=texts.total,
            )
            grads = scaled_cosine_bwd(res, dlogits)
            dzimg_parts[number] = dzimg_parts[number] + grads[0]
            dtexts = dtexts + grads[1]
            dt_prime = dt_prime + cast_like(grads[2], dt_prime)
        if travelling is not None:
            dtexts = travelling.wait()[0] + dtexts
        travelling = comm.start_shift((dtexts,))
        if coming is not None:
            held, *moved = coming.wait()
            text_lines = LineStatistics(*moved)
    assert travelling is not None
    (dztxt,) = travelling.wait()
    scalars = comm.sum(xp.stack((loss, dt_prime)))
    return scalars[0], SoftmaxLossCotangents(
        cast_like(xp.concat(dzimg_parts, axis=0), zimg),
        cast_like(dztxt, ztxt),
        cast_like(scalars[1], t_prime),
    )


def shards_of(z: Float[Array, "n d"], comm: Communicator) -> Shards:
    """The numbers of rows on all ranks.

    Raises ValueError if the rows are not of one size everywhere, naming a rank that differs.
    """
    counts, sizes = comm.gather(z.shape[0]), comm.gather(z.shape[1])
    for rank, size in enumerate(sizes):
        if size != sizes[0]:
            raise ValueError(
                f"embeddings must have one size on all ranks, "
                f"got {sizes[0]} on rank 0 and {size} on rank {rank}"
            )
    return Shards(counts, tuple(accumulate(counts, initial=0))[:-1])


def owners(comm: Communicator) -> list[int]:
    """Whose texts are here in each ring step: this rank's own first, then those from the left."""
    return [(comm.rank - step) % comm.world_size for step in range(comm.world_size)]


def start(comm: Communicator, arrays: tuple[Array, ...], owner: int) -> Shift | None:
    """Send the arrays on, unless these are the last that come by: nobody would work on them."""
    return None if owner == owners(comm)[-1] else comm.start_shift(arrays)


def merged(one: LineStatistics | None, other: LineStatistics) -> LineStatistics:
    """The sums over both parts, or the second where there is no first."""
    return other if one is None else merge_statistics(one, other)
