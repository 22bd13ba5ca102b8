"""The softmax of the last axis."""

from array_api_compat import array_namespace

from siglip_ref.precision import at_least_float32, cast_like
from siglip_ref.types import Array, Float


def softmax_fwd(
    x: Float[Array, "*batch d"],
) -> tuple[Float[Array, "*batch d"], Float[Array, "*batch d"]]:
    """outᵢ = exp(xᵢ) / Σⱼ exp(xⱼ), in at least float32; the residual is `out`."""
    out = softmax(x)
    return out, out


def softmax_bwd(
    res: Float[Array, "*batch d"], dout: Float[Array, "*batch d"]
) -> Float[Array, "*batch d"]:
    """dx = out (dout - Σ out dout)."""
    xp = array_namespace(res)
    out, wide = at_least_float32(res), at_least_float32(dout)
    weighted = out * wide
    return cast_like(weighted - out * xp.sum(weighted, axis=-1, keepdims=True), dout)


def softmax(x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
    """exp(xᵢ) / Σⱼ exp(xⱼ)."""
    xp = array_namespace(x)
    wide = at_least_float32(x)
    # Shifted by the row maximum: the largest exponential is 1, so nothing overflows.
    e = xp.exp(wide - xp.max(wide, axis=-1, keepdims=True))
    return cast_like(e / xp.sum(e, axis=-1, keepdims=True), x)
