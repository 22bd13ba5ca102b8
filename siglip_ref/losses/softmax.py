"""The symmetric softmax loss of CLIP, the peer against which SigLIP is measured."""

from typing import NamedTuple

from array_api_compat import array_namespace

from siglip_ref.losses.blocks import check_embeddings, check_scalar, indices
from siglip_ref.losses.pairs import Pairs, PairTargets, diagonal
from siglip_ref.precision import cast_like
from siglip_ref.primitives import scaled_cosine_bwd, scaled_cosine_fwd
from siglip_ref.primitives.scaled_cosine import ScaledCosineResiduals
from siglip_ref.types import Array, Float


class SoftmaxLossResiduals(NamedTuple):
    """What `softmax_loss_bwd` needs from `softmax_loss_fwd`."""

    cosine: ScaledCosineResiduals
    dlogits: Float[Array, "n m"]


class SoftmaxLossCotangents(NamedTuple):
    """The gradients of the loss, in the order of its arguments."""

    dzimg: Float[Array, "n d"]
    dztxt: Float[Array, "m d"]
    dt_prime: Float[Array, ""]


class LineStatistics(NamedTuple):
    """Sums over the lines of a block, its rows (n, 1) or its columns (1, m); they merge over tiles.

    With p = weights (1 + labels)/2 the positive mass of a pair: `maximum` of the logits,
    `exp_sum` = Σ weights exp(logits - maximum), `mass` = Σ p, `match` = Σ p logits.
    """

    maximum: Float[Array, "n m"]
    exp_sum: Float[Array, "n m"]
    mass: Float[Array, "n m"]
    match: Float[Array, "n m"]


def softmax_loss_fwd(
    zimg: Float[Array, "n d"],
    ztxt: Float[Array, "m d"],
    t_prime: Float[Array, ""],
    *,
    pairs: Pairs = diagonal,
) -> tuple[Float[Array, ""], SoftmaxLossResiduals]:
    """Half the cross entropy of finding the text of an image plus that of the image of a text.

        logits = exp(t') zimg ztxtᵀ
        loss   = ½ [ (1/n) Σᵢ (logsumexpⱼ logitsᵢⱼ - logitsᵢᵢ)
                   + (1/m) Σⱼ (logsumexpᵢ logitsᵢⱼ - logitsⱼⱼ) ]

    There is no bias, since a softmax does not see it. With several or soft positives an image's
    target is spread over its texts in proportion to weights (1 + labels)/2; a weight also counts
    the pair that often in the normaliser, so 0 leaves it out. A line without any positive adds
    nothing.

    The loss is computed, and returned, in at least float32.

    Raises ValueError on embeddings that are not matrices of one row size, and on a t' that is
    not 0-d.

    Source: arXiv:2103.00020, figure 3; arXiv:2303.15343, section 3.1.
    """
    check_embeddings(zimg, ztxt)
    check_scalar("t_prime", t_prime)
    targets = pairs(indices(zimg, None), indices(ztxt, None))
    logits, cosine = scaled_cosine_fwd(zimg, ztxt, t_prime)
    images, texts = (line_statistics(logits, targets, axis=axis) for axis in (1, 0))
    loss = lines_loss(images) / zimg.shape[0] + lines_loss(texts) / ztxt.shape[0]
    dlogits = softmax_dlogits(
        logits, targets, images, texts, image_total=zimg.shape[0], text_total=ztxt.shape[0]
    )
    return loss / 2, SoftmaxLossResiduals(cosine, dlogits)


def softmax_loss_bwd(res: SoftmaxLossResiduals, dloss: Float[Array, ""]) -> SoftmaxLossCotangents:
    """Cotangents (dzimg, dztxt, dt_prime), those of the scaled cosines.

    dzimg = t dlogits ztxt;  dztxt = t dlogitsᵀ zimg;  dt' = Σ dlogits logits.
    """
    dlogits = cast_like(dloss, res.dlogits) * res.dlogits
    return SoftmaxLossCotangents(*scaled_cosine_bwd(res.cosine, dlogits))


def line_statistics(
    logits: Float[Array, "n m"], targets: PairTargets, *, axis: int
) -> LineStatistics:
    """The sums over the rows (`axis=1`) or the columns (`axis=0`) of a block."""
    xp = array_namespace(logits)
    positive, weights = _masses(logits, targets)
    # A finite stand-in for -inf: a pair of weight 0 must not set the maximum.
    visible = xp.where(weights > 0, logits, xp.full_like(logits, float(xp.finfo(logits.dtype).min)))
    maximum = xp.max(visible, axis=axis, keepdims=True)
    return LineStatistics(
        maximum,
        xp.sum(weights * xp.exp(visible - maximum), axis=axis, keepdims=True),
        xp.sum(positive, axis=axis, keepdims=True),
        xp.sum(positive * logits, axis=axis, keepdims=True),
    )


def merge_statistics(one: LineStatistics, other: LineStatistics) -> LineStatistics:
    """The sums over both of two disjoint parts of the same lines."""
    xp = array_namespace(one.maximum)
    maximum = xp.maximum(one.maximum, other.maximum)
    exp_sum = one.exp_sum * xp.exp(one.maximum - maximum)
    exp_sum = exp_sum + other.exp_sum * xp.exp(other.maximum - maximum)
    return LineStatistics(maximum, exp_sum, one.mass + other.mass, one.match + other.match)


def lines_loss(lines: LineStatistics) -> Float[Array, ""]:
    """Σ over the lines of logsumexp - (Σ p logits) / Σ p, leaving out lines without positives."""
    xp = array_namespace(lines.mass)
    counts = lines.mass > 0
    ones = xp.ones_like(lines.mass)
    mass, exp_sum = (xp.where(counts, part, ones) for part in (lines.mass, lines.exp_sum))
    nll = lines.maximum + xp.log(exp_sum) - lines.match / mass
    return xp.sum(xp.where(counts, nll, xp.zeros_like(nll)))


def softmax_dlogits(
    logits: Float[Array, "n m"],
    targets: PairTargets,
    images: LineStatistics,
    texts: LineStatistics,
    *,
    image_total: int,
    text_total: int,
) -> Float[Array, "n m"]:
    """½ ((probability - target) along the rows / n + the same along the columns / m)."""
    xp = array_namespace(logits)
    positive, weights = _masses(logits, targets)
    dlogits = xp.zeros_like(logits)
    for lines, total in ((images, image_total), (texts, text_total)):
        counts = lines.mass > 0
        ones = xp.ones_like(lines.mass)
        mass, exp_sum = (xp.where(counts, part, ones) for part in (lines.mass, lines.exp_sum))
        # A masked logit above the maximum of its line would overflow before its weight 0 acts.
        exponent = xp.minimum(logits - lines.maximum, xp.zeros_like(logits))
        difference = weights * xp.exp(exponent) / exp_sum - positive / mass
        share = xp.where(counts, difference, xp.zeros_like(difference))
        dlogits = dlogits + share / (2 * total)
    return dlogits


def _masses(
    logits: Float[Array, "n m"], targets: PairTargets
) -> tuple[Float[Array, "n m"], Float[Array, "n m"]]:
    xp = array_namespace(logits)
    positive = (1 + cast_like(targets.labels, logits)) / 2
    if targets.weights is None:
        return positive, xp.ones_like(positive)
    weights = cast_like(targets.weights, logits)
    return positive * weights, weights
