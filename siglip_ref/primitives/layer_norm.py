"""Layer normalisation of the last axis."""

from typing import NamedTuple, TypedDict

from array_api_compat import array_namespace

from siglip_ref.fused import fusable
from siglip_ref.precision import at_least_float32, cast_like
from siglip_ref.types import Array, Float


class LayerNormParams(TypedDict):
    """The affine map after the normalisation."""

    scale: Float[Array, " d"]
    bias: Float[Array, " d"]


class LayerNormResiduals(NamedTuple):
    """What `layer_norm_bwd` needs from `layer_norm_fwd`: x̂ and 1/σ of each row."""

    normalized: Float[Array, "*batch d"]
    inv_std: Float[Array, "*batch 1"]
    params: LayerNormParams


@fusable
def layer_norm_fwd(
    x: Float[Array, "*batch d"], params: LayerNormParams, eps: float
) -> tuple[Float[Array, "*batch d"], LayerNormResiduals]:
    """out = x̂ scale + bias with x̂ = (x - μ) / sqrt(σ² + eps), μ and σ² over the last axis.

    σ² is the biased variance (divided by d). Statistics are taken in at least float32.

    Source: arXiv:1607.06450, eq. (3)-(4); eps = 1e-6 as in big_vision's ViT (flax default).
    """
    xp = array_namespace(x)
    wide = at_least_float32(x)
    # Two passes: E[x²] - E[x]² cancels when the mean is large against the deviation. The mean
    # itself is rounded then, so what is left of it is taken off once more.
    centred = wide - xp.mean(wide, axis=-1, keepdims=True)
    centred = centred - xp.mean(centred, axis=-1, keepdims=True)
    variance = xp.mean(centred * centred, axis=-1, keepdims=True)
    inv_std = 1 / xp.sqrt(variance + eps)
    normalized = cast_like(centred * inv_std, x)
    res = LayerNormResiduals(normalized, inv_std, params)
    return layer_norm_out(res), res


@fusable
def layer_norm_out(res: LayerNormResiduals) -> Float[Array, "*batch d"]:
    """x̂ scale + bias: the output once more, to the last bit."""
    return res.normalized * res.params["scale"] + res.params["bias"]


@fusable
def layer_norm_bwd(
    res: LayerNormResiduals, dout: Float[Array, "*batch d"]
) -> tuple[Float[Array, "*batch d"], LayerNormParams]:
    """(dx, dparams); with dx̂ = dout scale, and means over the last axis,

    dx = (dx̂ - mean(dx̂) - x̂ mean(dx̂ x̂)) / σ;  dscale = Σ dout x̂;  dbias = Σ dout over all rows.
    """
    xp = array_namespace(dout)
    normalized, wide = at_least_float32(res.normalized), at_least_float32(dout)
    dnormalized = wide * res.params["scale"]
    dx = res.inv_std * (
        dnormalized
        - xp.mean(dnormalized, axis=-1, keepdims=True)
        - normalized * xp.mean(dnormalized * normalized, axis=-1, keepdims=True)
    )
    rows = tuple(range(dout.ndim - 1))
    dscale, dbias = xp.sum(wide * normalized, axis=rows), xp.sum(wide, axis=rows)
    dparams = LayerNormParams(scale=cast_like(dscale, dout), bias=cast_like(dbias, dout))
    return cast_like(dx, dout), dparams
