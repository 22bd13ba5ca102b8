"""Division of each row by its Euclidean norm."""

from typing import NamedTuple

from array_api_compat import array_namespace

from siglip_ref.precision import at_least_float32, cast_like
from siglip_ref.types import Array, Float


class L2NormalizeResiduals(NamedTuple):
    """What `l2_normalize_bwd` needs: the rows, their norms, and the norms plus eps."""

    x: Float[Array, "*batch d"]
    norm: Float[Array, "*batch 1"]
    divisor: Float[Array, "*batch 1"]


def l2_normalize_fwd(
    x: Float[Array, "*batch d"], eps: float
) -> tuple[Float[Array, "*batch d"], L2NormalizeResiduals]:
    """out = x / (‖x‖ + eps), the norm over the last axis in at least float32.

    Three forms are in use: this one (big_vision, eps = 1e-8), x / max(‖x‖, eps) (Torch's
    `normalize`) and x / ‖x‖ (Hugging Face; here eps = 0, undefined for a zero row). Values agree
    to rounding for ordinary rows; the gradients part for short ones.

    Source: big_vision, `models/proj/image_text/two_towers.py`.
    """
    xp = array_namespace(x)
    wide = at_least_float32(x)
    norm = xp.sqrt(xp.sum(wide * wide, axis=-1, keepdims=True))
    divisor = norm + eps
    return cast_like(wide / divisor, x), L2NormalizeResiduals(x, norm, divisor)


def l2_normalize_bwd(
    res: L2NormalizeResiduals, dout: Float[Array, "*batch d"]
) -> Float[Array, "*batch d"]:
    """dx = (dout - x ⟨x, dout⟩ / (‖x‖ (‖x‖ + eps))) / (‖x‖ + eps); dout / eps for a zero row."""
    xp = array_namespace(dout)
    x, wide = at_least_float32(res.x), at_least_float32(dout)
    # A zero row has x ⟨x, dout⟩ = 0 whatever it is divided by.
    norm = xp.where(res.norm > 0, res.norm, xp.ones_like(res.norm))
    radial = xp.sum(x * wide, axis=-1, keepdims=True) / (norm * res.divisor)
    return cast_like((wide - x * radial) / res.divisor, dout)
