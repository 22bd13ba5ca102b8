"""The two-layer perceptron of a transformer block."""

from typing import NamedTuple, TypedDict

from siglip_ref.fused import fusable
from siglip_ref.primitives import (
    DenseParams,
    dense_bwd,
    dense_fwd,
    gelu_tanh_bwd,
    gelu_tanh_fwd,
)
from siglip_ref.primitives.dense import DenseResiduals
from siglip_ref.primitives.gelu_tanh import gelu_tanh
from siglip_ref.types import Array, Float


class MlpParams(TypedDict):
    """Width d to f, and f to d."""

    dense_0: DenseParams
    dense_1: DenseParams


class MlpResiduals(NamedTuple):
    """What `mlp_bwd` needs from `mlp_fwd`."""

    dense_0: DenseResiduals
    hidden: Float[Array, "*batch f"]
    dense_1: DenseParams


def mlp_fwd(
    x: Float[Array, "*batch d"], params: MlpParams
) -> tuple[Float[Array, "*batch d"], MlpResiduals]:
    """out = dense_1(gelu_tanh(dense_0(x))).

    Source: arXiv:2010.11929, section 3.1; big_vision, `models/vit.py`, `MlpBlock`.
    """
    hidden, dense_0 = dense_fwd(x, params["dense_0"])
    out, _ = dense_fwd(gelu_tanh(hidden), params["dense_1"])
    return out, MlpResiduals(dense_0, hidden, params["dense_1"])


@fusable
def mlp_bwd(
    res: MlpResiduals, dout: Float[Array, "*batch d"]
) -> tuple[Float[Array, "*batch d"], MlpParams]:
    """Cotangents (dx, dparams)."""
    # Computed again rather than kept: it is four times as wide as the tokens, and one pass.
    activated, gelu = gelu_tanh_fwd(res.hidden)
    dactivated, dense_1 = dense_bwd(DenseResiduals(activated, res.dense_1), dout)
    dhidden = gelu_tanh_bwd(gelu, dactivated)
    dx, dense_0 = dense_bwd(res.dense_0, dhidden)
    return dx, MlpParams(dense_0=dense_0, dense_1=dense_1)


def mlp_probe(res: MlpResiduals) -> Float[Array, "*batch d"]:
    """The output of the perceptron, from its residuals."""
    return dense_fwd(gelu_tanh(res.hidden), res.dense_1)[0]
