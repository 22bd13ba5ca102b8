"""CLIP's softmax loss with all embeddings gathered on every device, to compare the ring to."""

from array_api_compat import array_namespace

from siglip_ref.communicator import Communicator
from siglip_ref.losses.blocks import check_scalar
from siglip_ref.losses.pairs import Pairs, diagonal
from siglip_ref.losses.softmax import (
    SoftmaxLossCotangents,
    line_statistics,
    lines_loss,
    softmax_dlogits,
)
from siglip_ref.precision import at_least_float32, cast_like
from siglip_ref.primitives import scaled_cosine_fwd
from siglip_ref.ring.lines import pack, unpack_columns, unpack_rows
from siglip_ref.ring.shards import Shards, shards_of
from siglip_ref.types import Array, Float, Int


def allgather_softmax_loss(
    zimg: Float[Array, "n d"],
    ztxt: Float[Array, "m d"],
    t_prime: Float[Array, ""],
    comm: Communicator,
    *,
    pairs: Pairs = diagonal,
) -> tuple[Float[Array, ""], SoftmaxLossCotangents]:
    """The softmax loss of the global batch and the gradients of the local shards, by two gathers.

    Every rank gathers the images and the texts of all, and forms the logits of its images with
    all texts and of all images with its texts. The normalisers of these lines are complete; those
    of the others are gathered too, so that no gradient has to travel. With N pairs in the global
    batch a rank holds 2 N d numbers of embeddings and (n + m) N logits: both grow with the number
    of ranks, and that is the argument of the paper.

    Raises ValueError as `softmax_loss_fwd` does, and on all ranks if the shards do not fit
    together.

    Source: arXiv:2303.15343, section 3.3, for the gathers; arXiv:2103.00020, figure 3.
    """
    xp = array_namespace(zimg, ztxt)
    check_scalar("t_prime", t_prime)
    images, texts = shards_of(zimg, ztxt, comm)
    rows, columns = images.indices(comm.rank, zimg), texts.indices(comm.rank, ztxt)
    all_zimg, all_rows = _gathered(zimg, images, comm)
    all_ztxt, all_columns = _gathered(ztxt, texts, comm)

    image_logits, _ = scaled_cosine_fwd(zimg, all_ztxt, t_prime)
    image_targets = pairs(rows, all_columns)
    image_lines = line_statistics(image_logits, image_targets, axis=1)
    text_logits, _ = scaled_cosine_fwd(all_zimg, ztxt, t_prime)
    text_targets = pairs(all_rows, columns)
    text_lines = line_statistics(text_logits, text_targets, axis=0)
    loss = lines_loss(image_lines) / (2 * images.total)
    loss = loss + lines_loss(text_lines) / (2 * texts.total)
    all_image_lines = unpack_rows(_gathered(pack(image_lines), images, comm)[0])
    all_text_lines = unpack_columns(_gathered(pack(text_lines), texts, comm)[0])

    totals = {"image_total": images.total, "text_total": texts.total}
    dlogits = softmax_dlogits(image_logits, image_targets, image_lines, all_text_lines, **totals)
    t = xp.exp(cast_like(t_prime, image_logits))
    dzimg = t * (dlogits @ at_least_float32(all_ztxt))
    dt_prime = xp.sum(dlogits * image_logits)
    dlogits = softmax_dlogits(text_logits, text_targets, all_image_lines, text_lines, **totals)
    dztxt = t * (xp.matrix_transpose(dlogits) @ at_least_float32(all_zimg))
    scalars = comm.sum(xp.stack((loss, dt_prime)))
    return scalars[0], SoftmaxLossCotangents(
        cast_like(dzimg, zimg), cast_like(dztxt, ztxt), cast_like(scalars[1], t_prime)
    )


def _gathered(
    array: Array, shards: Shards, comm: Communicator
) -> tuple[Array, Int[Array, " rows"]]:
    """The rows of all ranks in the order in which they come by, and their global indices."""
    xp = array_namespace(array)
    parts, indices = [array], [shards.indices(comm.rank, array)]
    for step in range(comm.world_size - 1):
        owner = (comm.rank - step - 1) % comm.world_size
        (array,) = comm.start_shift((array,), rows=shards.rows(owner), step=step).wait()
        parts.append(array)
        indices.append(shards.indices(owner, array))
    return xp.concat(parts, axis=0), xp.concat(indices, axis=0)
