"""Images to tokens: one linear map of each patch."""

import math
from typing import NamedTuple

from array_api_compat import array_namespace, device

from siglip_ref.primitives.dense import DenseParams, DenseResiduals, dense_bwd, dense_fwd
from siglip_ref.types import Array, Float


class PatchEmbedResiduals(NamedTuple):
    """What `patch_embed_bwd` needs; the patches are cut again there, which costs one copy."""

    images: Float[Array, "n height width c"]
    params: DenseParams


def patch_embed_fwd(
    images: Float[Array, "n height width c"], params: DenseParams
) -> tuple[Float[Array, "n l d"], PatchEmbedResiduals]:
    """Each p x p patch, flattened in (row, column, channel) order, times the kernel, plus bias.

    Patches do not overlap and are taken in row-major order; rows and columns of pixels that do
    not fill a patch are dropped. This is the strided VALID convolution of the paper's ViT as a
    reshape and one matrix product, with kernel (p·p·c, d) for the convolution's (p, p, c, d);
    p follows from that shape.

    Source: arXiv:2010.11929, eq. (1); big_vision, `models/vit.py`.
    """
    tokens, _ = dense_fwd(_patches(images, _patch_size(images, params)), params)
    return tokens, PatchEmbedResiduals(images, params)


def patch_embed_bwd(
    res: PatchEmbedResiduals, dout: Float[Array, "n l d"]
) -> tuple[Float[Array, "n height width c"], DenseParams]:
    """(dimages, dparams); dropped pixels have the gradient 0."""
    xp = array_namespace(dout)
    n, height, width, c = res.images.shape
    p = _patch_size(res.images, res.params)
    rows, columns = height // p, width // p
    dpatches, dparams = dense_bwd(DenseResiduals(_patches(res.images, p), res.params), dout)
    dimages = xp.reshape(dpatches, (n, rows, columns, p, p, c))
    dimages = xp.reshape(
        xp.permute_dims(dimages, (0, 1, 3, 2, 4, 5)), (n, rows * p, columns * p, c)
    )
    for axis, size in ((1, height), (2, width)):
        missing = (*dimages.shape[:axis], size - dimages.shape[axis], *dimages.shape[axis + 1 :])
        dropped = xp.zeros(missing, dtype=dimages.dtype, device=device(dimages))
        dimages = xp.concat((dimages, dropped), axis=axis)
    return dimages, dparams


def _patch_size(images: Float[Array, "n height width c"], params: DenseParams) -> int:
    return math.isqrt(params["kernel"].shape[0] // images.shape[-1])


def _patches(images: Float[Array, "n height width c"], p: int) -> Float[Array, "n l ppc"]:
    xp = array_namespace(images)
    n, height, width, c = images.shape
    rows, columns = height // p, width // p
    cut = xp.reshape(images[:, : rows * p, : columns * p, :], (n, rows, p, columns, p, c))
    return xp.reshape(xp.permute_dims(cut, (0, 1, 3, 2, 4, 5)), (n, rows * columns, p * p * c))
