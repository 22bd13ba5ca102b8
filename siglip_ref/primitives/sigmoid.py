"""The logistic function."""

import math

from array_api_compat import array_namespace, device

from siglip_ref.precision import at_least_float32, cast_like
from siglip_ref.types import Array, Float


def sigmoid(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """1 / (1 + exp(-x)), elementwise, to full relative accuracy until it underflows.

    The complement 1 - sigmoid(x) is to be had as sigmoid(-x), which does not cancel.
    """
    xp = array_namespace(x)
    # In float16 exp(-x) would overflow at x = -11.1, where the result is not yet subnormal.
    wide = at_least_float32(x)
    # exp(-x) is kept just below the largest finite number: it never overflows to infinity.
    limit = math.log(float(xp.finfo(wide.dtype).max)) - 1
    capped = xp.minimum(-wide, xp.full((), limit, dtype=wide.dtype, device=device(x)))
    return cast_like(1 / (1 + xp.exp(capped)), x)
