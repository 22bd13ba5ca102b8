"""The losses on embeddings, whole and in tiles, with analytic gradients."""

from siglip_ref.losses.pairs import (
    Pairs,
    PairTargets,
    diagonal,
    from_matrix,
    reweighted,
    same_group,
)
from siglip_ref.losses.sigmoid import sigmoid_loss_bwd, sigmoid_loss_fwd
from siglip_ref.losses.softmax import softmax_loss_bwd, softmax_loss_fwd
from siglip_ref.losses.tiled_sigmoid import TiledSigmoidLoss, tiled_sigmoid_loss
from siglip_ref.losses.tiled_softmax import tiled_softmax_loss

__all__ = [
    "PairTargets",
    "Pairs",
    "TiledSigmoidLoss",
    "diagonal",
    "from_matrix",
    "reweighted",
    "same_group",
    "sigmoid_loss_bwd",
    "sigmoid_loss_fwd",
    "softmax_loss_bwd",
    "softmax_loss_fwd",
    "tiled_sigmoid_loss",
    "tiled_softmax_loss",
]
