"""The logistic function."""

from array_api_compat import array_namespace

from siglip_ref.types import Array, Float


def sigmoid(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """1 / (1 + exp(-x)), elementwise, to full relative accuracy at any argument.

    The complement 1 - sigmoid(x) is to be had as sigmoid(-x), which does not cancel.
    """
    xp = array_namespace(x)
    # exp of a negative argument cannot overflow, and 1 + e lies in (1, 2].
    e = xp.exp(-xp.abs(x))
    return xp.where(x >= 0, xp.ones_like(e), e) / (1 + e)
