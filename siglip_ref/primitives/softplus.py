"""The softplus and the log-sigmoid, to full relative accuracy at any argument."""

from array_api_compat import array_namespace

from siglip_ref.primitives.sigmoid import sigmoid
from siglip_ref.types import Array, Float


def softplus_fwd(
    x: Float[Array, "*shape"],
) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    """out = log(1 + exp(x)) = max(x, 0) + log1p(exp(-|x|)), elementwise; the residual is `x`.

    The second form neither overflows nor loses the left tail: softplus(-30) keeps its digits.

    Source: arXiv:2303.15343, algorithm 1, which calls -softplus(-x) `log_sigmoid`.
    """
    return softplus(x), x


def softplus_bwd(
    res: Float[Array, "*shape"], dout: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """dx = sigmoid(x) dout."""
    return sigmoid(res) * dout


def softplus(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """log(1 + exp(x)), elementwise."""
    xp = array_namespace(x)
    return xp.maximum(x, xp.zeros_like(x)) + xp.log1p(xp.exp(-xp.abs(x)))


def log_sigmoid_fwd(
    x: Float[Array, "*shape"],
) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    """out = log sigmoid(x) = -softplus(-x), elementwise; the residual is `x`."""
    return -softplus(-x), x


def log_sigmoid_bwd(
    res: Float[Array, "*shape"], dout: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """dx = sigmoid(-x) dout."""
    return sigmoid(-res) * dout
