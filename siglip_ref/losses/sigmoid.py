"""The sigmoid loss of SigLIP: each image-text pair is a yes/no question of its own."""

from typing import NamedTuple

from array_api_compat import array_namespace

from siglip_ref.losses.blocks import check_embeddings, check_scalar, indices
from siglip_ref.losses.pairs import Pairs, PairTargets, diagonal
from siglip_ref.precision import cast_like
from siglip_ref.primitives import scaled_cosine_bwd, scaled_cosine_fwd, sigmoid
from siglip_ref.primitives.scaled_cosine import ScaledCosineResiduals
from siglip_ref.types import Array, Float, Int


class SigmoidLossResiduals(NamedTuple):
    """What `sigmoid_loss_bwd` needs from `sigmoid_loss_fwd`."""

    cosine: ScaledCosineResiduals
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
    scaled, cosine = scaled_cosine_fwd(zimg, ztxt, t_prime)
    logits = scaled + cast_like(b, scaled)
    nll, dlogits = pair_nll(logits, pairs(indices(zimg, rows), indices(ztxt, columns)))
    return xp.sum(nll) / total, SigmoidLossResiduals(cosine, b, dlogits / total)


def sigmoid_loss_bwd(res: SigmoidLossResiduals, dloss: Float[Array, ""]) -> SigmoidLossCotangents:
    """Cotangents (dzimg, dztxt, dt_prime, db): those of the scaled cosines, and db = Σ dlogits.

    dzimg = t dlogits ztxt;  dztxt = t dlogitsᵀ zimg;  dt' = Σ dlogits (logits - b).
    """
    xp = array_namespace(res.dlogits)
    dlogits = cast_like(dloss, res.dlogits) * res.dlogits
    db = cast_like(xp.sum(dlogits), res.b)
    return SigmoidLossCotangents(*scaled_cosine_bwd(res.cosine, dlogits), db)


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
