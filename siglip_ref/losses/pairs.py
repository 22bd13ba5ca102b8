"""Which image-text pairs match: labels and weights as a function of the pair's indices.

A loss asks for them block by block, so nothing of size n x m need ever exist. One mechanism
serves plain SigLIP, several positives per image, soft labels, class weights and masks:

| case | function |
| --- | --- |
| pair i, i matches (the paper) | `diagonal` |
| equal group ids match: several captions, class labels | `same_group(ids, ids)` |
| labels and weights at will: multi-label, soft, masked | `from_matrix(labels, weights)` |
| positives and negatives weighted differently | `reweighted(pairs, positive, negative)` |
"""

from collections.abc import Callable
from typing import NamedTuple

from array_api_compat import array_namespace

from siglip_ref.types import Array, Float, Int


class PairTargets(NamedTuple):
    """Targets of a block of n images and m texts.

    labels
        +1 for a match, -1 for a mismatch; a soft label with probability y of a match is 2 y - 1.
    weights
        Factor ≥ 0 of each pair's loss, 0 leaving the pair out; None stands for ones.
    """

    labels: Float[Array, "n m"]
    weights: Float[Array, "n m"] | None = None


Pairs = Callable[[Int[Array, " n"], Int[Array, " m"]], PairTargets]
"""Image indices and text indices, both in the global batch, to the targets of their block."""


def diagonal(rows: Int[Array, " n"], columns: Int[Array, " m"]) -> PairTargets:
    """Image i matches text i and no other.

    Source: arXiv:2303.15343, eq. (1).
    """
    return PairTargets(_signs(rows, columns))


def same_group(image_groups: Int[Array, " n"], text_groups: Int[Array, " m"]) -> Pairs:
    """An image matches every text of its own group; one group id for each image and text.

    Source: the multi-positive loss of siglip-kernel's SigLIP+ (hard labels, unit weights).
    """

    def pairs(rows: Int[Array, " n"], columns: Int[Array, " m"]) -> PairTargets:
        xp = array_namespace(image_groups, text_groups)
        return PairTargets(_signs(xp.take(image_groups, rows), xp.take(text_groups, columns)))

    return pairs


def from_matrix(labels: Float[Array, "n m"], weights: Float[Array, "n m"] | None = None) -> Pairs:
    """Labels in [-1, 1], and weights if wanted, for all images (rows) and texts (columns).

    Raises ValueError if the two shapes differ.
    """
    if weights is not None and tuple(weights.shape) != tuple(labels.shape):
        raise ValueError(
            f"weights must have the shape of labels, {tuple(labels.shape)}, "
            f"got {tuple(weights.shape)}"
        )

    def pairs(rows: Int[Array, " n"], columns: Int[Array, " m"]) -> PairTargets:
        xp = array_namespace(labels)

        def block(matrix: Float[Array, "..."]) -> Float[Array, "n m"]:
            return xp.take(xp.take(matrix, rows, axis=0), columns, axis=1)

        return PairTargets(block(labels), None if weights is None else block(weights))

    return pairs


def reweighted(pairs: Pairs, positive: float, negative: float) -> Pairs:
    """The same pairs, with a match weighted by `positive` and a mismatch by `negative`.

    A soft label is weighted in parts: w⁺ y softplus(-ℓ) + w⁻ (1 - y) softplus(ℓ).

    Raises ValueError unless both weights are positive.
    """
    for name, value in (("positive", positive), ("negative", negative)):
        if not value > 0:
            raise ValueError(f"{name} must be a weight above 0, got {value!r}")

    def weighted(rows: Int[Array, " n"], columns: Int[Array, " m"]) -> PairTargets:
        labels, weights = pairs(rows, columns)
        match = (1 + labels) / 2 * positive
        mismatch = (1 - labels) / 2 * negative
        factor = match + mismatch
        return PairTargets(
            (match - mismatch) / factor, factor if weights is None else factor * weights
        )

    return weighted


def check_counts(pairs: Pairs, images: Array, texts: Array) -> None:
    """Raise ValueError unless there are as many images as texts, or `pairs` says what matches.

    For losses of a whole batch; in a block of one, image i may well be without a text i.
    """
    if pairs is diagonal and images.shape[0] != texts.shape[0]:
        raise ValueError(
            "there must be as many images as texts unless pairs is given, "
            f"got {images.shape[0]} images and {texts.shape[0]} texts"
        )


def _signs(row_ids: Int[Array, " n"], column_ids: Int[Array, " m"]) -> Float[Array, "n m"]:
    xp = array_namespace(row_ids, column_ids)
    match = xp.expand_dims(row_ids, axis=1) == xp.expand_dims(column_ids, axis=0)
    return xp.astype(match, xp.float32) * 2 - 1
