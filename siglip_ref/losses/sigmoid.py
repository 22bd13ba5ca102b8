"""The sigmoid loss of SigLIP: each image-text pair is a yes/no question of its own."""

from typing import NamedTuple

from array_api_compat import array_namespace

from siglip_ref.losses.blocks import check_embeddings, check_scalar, indices
from siglip_ref.losses.pairs import Pairs, PairTargets, diagonal
from siglip_ref.precision import at_least_float32, cast_like
from siglip_ref.primitives import sigmoid
from siglip_ref.types import Array, Float, Int


class SigmoidLossResiduals(NamedTuple):
    """What `sigmoid_loss_bwd` needs from `sigmoid_loss_fwd`."""

    zimg: Float[Array, "n d"]
    ztxt: Float[Array, "m d"]
    t_prime: Float[Array, ""]
    b: Float[Array, ""]
    dlogits: Float[Array, "n m"]


class SigmoidLossCotangents(NamedTuple):
    """The gradients of the loss, in the order of its arguments."""

    dzimg: Float[Array, "n d"]
    dztxt: Float[Array, "m d"]
    dt_prime: Float[Array, ""]
    db: Float[Array, ""]


def sigmoid_loss_fwd(
    zimg: Float[Array, "n d"],
    ztxt: Float[Array, "m d"],
    t_prime: Float[Array, ""],
    b: Float[Array, ""],
    *,
    pairs: Pairs = diagonal,
    rows: Int[Array, " n"] | None = None,
    columns: Int[Array, " m"] | None = None,
    total: int | None = None,
) -> tuple[Float[Array, ""], SigmoidLossResiduals]:
    """Negative log-likelihood of the pair labels, summed over texts, averaged over images.

        logits = exp(t') zimg ztxtᵀ + b
        loss   = (1/total) Σᵢⱼ softplus(-labelsᵢⱼ logitsᵢⱼ)

    The rows of `zimg` and `ztxt` have unit norm. `pairs` says which pairs match (and for soft or
    weighted ones see `pairs.py`). For a block out of a larger batch, `rows` and `columns` are the
    global indices of its images and texts, and `total` is the number of images in the global
    batch; by default the block is the batch. It may have any shape n x m.

    The loss is computed, and returned, in at least float32.

    Raises ValueError on embeddings that are not matrices of one row size, and on a t' or b that
    is not 0-d.

    Source: arXiv:2303.15343, eq. (1) and algorithm 1. Eq. (1) prints the logit as t⟨x, y⟩ - b;
    the algorithm, the text (b = -10 starts near the prior) and all code have + b, as here.
    """
    xp = array_namespace(zimg, ztxt)
    check_embeddings(zimg, ztxt)
    check_scalar("t_prime", t_prime)
    check_scalar("b", b)
    total = zimg.shape[0] if total is None else total
    # Converted before the product: a logit rounded to bfloat16 is off by up to 2^-5 at b = -10.
    wide_zimg, wide_ztxt = at_least_float32(zimg), at_least_float32(ztxt)
    t = xp.exp(cast_like(t_prime, wide_zimg))
    logits = t * (wide_zimg @ xp.matrix_transpose(wide_ztxt)) + cast_like(b, wide_zimg)
    nll, dlogits = pair_nll(logits, pairs(indices(zimg, rows), indices(ztxt, columns)))
    residuals = SigmoidLossResiduals(zimg, ztxt, t_prime, b, dlogits / total)
    return xp.sum(nll) / total, residuals


def sigmoid_loss_bwd(res: SigmoidLossResiduals, dloss: Float[Array, ""]) -> SigmoidLossCotangents:
    """Cotangents (dzimg, dztxt, dt_prime, db); with dlogits those of the logits,

        dzimg = t dlogits ztxt;  dztxt = t dlogitsᵀ zimg;  db = Σ dlogits;
        dt'   = Σ dlogits (logits - b) = ⟨zimg, dzimg⟩ = ⟨ztxt, dztxt⟩.

    Source: the chain rule; the two identities hold because the logits see t' and an embedding
    through their product only.
    """
    xp = array_namespace(res.zimg, res.ztxt)
    zimg, ztxt = at_least_float32(res.zimg), at_least_float32(res.ztxt)
    dlogits = cast_like(dloss, res.dlogits) * res.dlogits
    t = xp.exp(cast_like(res.t_prime, dlogits))
    dzimg = t * (dlogits @ ztxt)
    dztxt = t * (xp.matrix_transpose(dlogits) @ zimg)
    return SigmoidLossCotangents(
        cast_like(dzimg, res.zimg),
        cast_like(dztxt, res.ztxt),
        cast_like(xp.sum(zimg * dzimg), res.t_prime),
        cast_like(xp.sum(dlogits), res.b),
    )


def pair_nll(
    logits: Float[Array, "n m"], targets: PairTargets
) -> tuple[Float[Array, "n m"], Float[Array, "n m"]]:
    """The loss of each pair by itself, and its derivative by the logit.

        nll      = weights (log1p(exp(-|logits|)) + (|logits| - labels logits) / 2)
        dnll     = weights ((1 - labels)/2 sigmoid(logits) - (1 + labels)/2 sigmoid(-logits))

    For labels ±1 that is softplus(-labels logits), and for soft labels the binary cross entropy.
    """
    xp = array_namespace(logits)
    labels = cast_like(targets.labels, logits)
    magnitude = xp.abs(logits)
    # Not softplus(logits) - y logits: at logits = -10 that cancels, and most pairs sit there.
    nll = xp.log1p(xp.exp(-magnitude)) + (magnitude - labels * logits) / 2
    # Not sigmoid(logits) - y either, for the same reason.
    mismatch, match = (1 - labels) / 2, (1 + labels) / 2
    dnll = mismatch * sigmoid(logits) - match * sigmoid(-logits)
    if targets.weights is None:
        return nll, dnll
    weights = cast_like(targets.weights, logits)
    return weights * nll, weights * dnll
