"""The losses, on one device and on a ring, in plain NumPy."""

import numpy as np

from siglip_ref.types import Array
from siglip_spec.plain.primitives import scaled_cosine, softplus


def sigmoid_loss(zimg: Array, ztxt: Array, t_prime: Array, b: Array) -> Array:
    """(1/n) Σᵢⱼ softplus(-labels logits), labels = +1 on the diagonal and -1 elsewhere."""
    labels = 2 * np.eye(len(zimg)) - 1
    return np.sum(softplus(-labels * (scaled_cosine(zimg, ztxt, t_prime) + b))) / len(zimg)


def pairwise_sigmoid_loss(
    zimg: Array, ztxt: Array, t_prime: Array, b: Array, labels: Array, weights: Array
) -> Array:
    """(1/n) Σᵢⱼ weights (y softplus(-logits) + (1 - y) softplus(logits)), y = (1 + labels) / 2."""
    logits = scaled_cosine(zimg, ztxt, t_prime) + b
    match, mismatch = (1 + labels) / 2, (1 - labels) / 2
    nll = match * softplus(-logits) + mismatch * softplus(logits)
    return np.sum(weights * nll) / len(zimg)


def tiled_sigmoid_loss(zimg: Array, ztxt: Array, t_prime: Array, b: Array, tile: int) -> Array:
    """The same number as `sigmoid_loss` whatever the tile."""
    del tile
    return sigmoid_loss(zimg, ztxt, t_prime, b)


def softmax_loss(zimg: Array, ztxt: Array, t_prime: Array) -> Array:
    """Half the mean cross entropy of the rows plus half that of the columns."""
    logits = scaled_cosine(zimg, ztxt, t_prime)
    matches = np.diagonal(logits)
    of_images = np.logaddexp.reduce(logits, axis=1) - matches
    of_texts = np.logaddexp.reduce(logits, axis=0) - matches
    return (np.mean(of_images) + np.mean(of_texts)) / 2


def initial_scalars() -> tuple[Array, Array]:
    """t' and b of a new model."""
    return np.log(10.0), np.asarray(-10.0)


def ring_sigmoid_loss(zimg: list[Array], ztxt: list[Array], t_prime: Array, b: Array) -> Array:
    """The loss of the global batch, however it is cut."""
    return sigmoid_loss(np.concatenate(zimg), np.concatenate(ztxt), t_prime, b)


def ring_softmax_loss(zimg: list[Array], ztxt: list[Array], t_prime: Array) -> Array:
    """The loss of the global batch, however it is cut."""
    return softmax_loss(np.concatenate(zimg), np.concatenate(ztxt), t_prime)
