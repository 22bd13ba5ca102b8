"""The cosines of all pairs times the temperature: the logits that both losses start from."""

from typing import NamedTuple

from array_api_compat import array_namespace

from siglip_ref.precision import at_least_float32, cast_like
from siglip_ref.types import Array, Float


class ScaledCosineResiduals(NamedTuple):
    """What `scaled_cosine_bwd` needs from `scaled_cosine_fwd`: its arguments."""

    zimg: Float[Array, "n d"]
    ztxt: Float[Array, "m d"]
    t_prime: Float[Array, ""]


def scaled_cosine_fwd(
    zimg: Float[Array, "n d"], ztxt: Float[Array, "m d"], t_prime: Float[Array, ""]
) -> tuple[Float[Array, "n m"], ScaledCosineResiduals]:
    """out = exp(t') zimg ztxtᵀ in at least float32.

    Source: arXiv:2303.15343, algorithm 1.
    """
    xp = array_namespace(zimg, ztxt)
    # Converted before the product: a logit rounded to bfloat16 is off by up to 2^-5 at b = -10.
    wide_zimg, wide_ztxt = at_least_float32(zimg), at_least_float32(ztxt)
    t = xp.exp(cast_like(t_prime, wide_zimg))
    out = t * (wide_zimg @ xp.matrix_transpose(wide_ztxt))
    return out, ScaledCosineResiduals(zimg, ztxt, t_prime)


def scaled_cosine_bwd(
    res: ScaledCosineResiduals, dout: Float[Array, "n m"]
) -> tuple[Float[Array, "n d"], Float[Array, "m d"], Float[Array, ""]]:
    """Cotangents (dzimg, dztxt, dt_prime):

        dzimg = t dout ztxt;  dztxt = t doutᵀ zimg;
        dt'   = Σ dout out = ⟨zimg, dzimg⟩ = ⟨ztxt, dztxt⟩.

    Source: the chain rule; the two identities hold because the logits see t' and an embedding
    through their product only.
    """
    xp = array_namespace(dout)
    zimg, ztxt = at_least_float32(res.zimg), at_least_float32(res.ztxt)
    dout = cast_like(dout, zimg)
    t = xp.exp(cast_like(res.t_prime, dout))
    dzimg = t * (dout @ ztxt)
    dztxt = t * (xp.matrix_transpose(dout) @ zimg)
    dt_prime = xp.sum(zimg * dzimg)
    return (
        cast_like(dzimg, res.zimg),
        cast_like(dztxt, res.ztxt),
        cast_like(dt_prime, res.t_prime),
    )
