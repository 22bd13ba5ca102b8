"""The sigmoid loss on a ring, in one rotation."""

from array_api_compat import array_namespace, device

from siglip_ref.communicator import Arrays, Communicator
from siglip_ref.losses.blocks import check_scalar
from siglip_ref.losses.pairs import Pairs, diagonal
from siglip_ref.losses.sigmoid import SigmoidLossCotangents
from siglip_ref.losses.tiled_sigmoid import TiledSigmoidLoss, tiled_sigmoid_loss
from siglip_ref.precision import at_least_float32, cast_like
from siglip_ref.ring.rotation import rotation
from siglip_ref.ring.shards import shards_of
from siglip_ref.types import Array, Float, Int


def sigmoid_loss(
    zimg: Float[Array, "n d"],
    ztxt: Float[Array, "m d"],
    t_prime: Float[Array, ""],
    b: Float[Array, ""],
    comm: Communicator,
    *,
    tile: int = 1024,
    pairs: Pairs = diagonal,
    block_loss: TiledSigmoidLoss = tiled_sigmoid_loss,
) -> tuple[Float[Array, ""], SigmoidLossCotangents]:
    """The sigmoid loss of the global batch, and the gradients of the local shards at dloss = 1.

    `zimg` and `ztxt` are the shards of this rank, in any numbers above 0; t' and b are equal on
    all ranks. The global batch is the shards in the order of the ranks, and `pairs` gets global
    indices. The loss, dt' and db are sums over all ranks. `block_loss` works on each shard.

    One rotation: a logit's gradient needs no other logit, so when the texts of a rank come by,
    their gradient by the images here is complete at once. It travels in at least float32 behind
    them, and is home after as many steps as there are ranks. Beside its shards a rank holds up to
    2 m d numbers like theirs, (5 m + 3 n) d of gradients, (n + m) d of copies in float32 where the
    embeddings are narrower, and O(tile² + tile d), whatever the number of ranks.

    Raises ValueError as `tiled_sigmoid_loss` does, and on all ranks if the shards do not fit
    together.

    Source: arXiv:2303.15343, section 3.3, whose devices exchange texts; gradients that travel
    along make the second exchange, and the blocks kept for it, unnecessary.
    """
    xp = array_namespace(zimg, ztxt)
    check_scalar("t_prime", t_prime)
    check_scalar("b", b)
    images, texts = shards_of(zimg, ztxt, comm)
    rows = images.indices(comm.rank, zimg)
    wide_zimg, wide_t_prime, wide_b = (at_least_float32(x) for x in (zimg, t_prime, b))
    zeros = xp.zeros(3, dtype=xp.result_type(wide_zimg, wide_t_prime), device=device(zimg))

    def visit(
        state: tuple[Array, Array], held: Arrays, columns: Int[Array, " m"]
    ) -> tuple[tuple[Array, Array], Arrays]:
        dzimg, scalars = state
        loss, grads = block_loss(
            wide_zimg,
            at_least_float32(held[0]),
            wide_t_prime,
            wide_b,
            tile=tile,
            pairs=pairs,
            rows=rows,
            columns=columns,
            total=images.total,
        )
        here = xp.stack([cast_like(x, zeros) for x in (loss, grads.dt_prime, grads.db)])
        return (dzimg + grads.dzimg, scalars + here), (grads.dztxt,)

    def merge(one: Arrays, other: Arrays) -> Arrays:
        return (one[0] + other[0],)

    (dzimg, scalars), (dztxt,) = rotation(
        visit, merge, (xp.zeros_like(wide_zimg), zeros), (ztxt,), texts, comm
    )
    scalars = comm.sum(scalars)
    return scalars[0], SigmoidLossCotangents(
        cast_like(dzimg, zimg),
        cast_like(dztxt, ztxt),
        cast_like(scalars[1], t_prime),
        cast_like(scalars[2], b),
    )
