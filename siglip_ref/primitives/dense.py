"""The linear map of the last axis, out = x kernel + bias."""

import math
from typing import NamedTuple, TypedDict

from array_api_compat import array_namespace

from siglip_ref.fused import fusable
from siglip_ref.precision import at_least_float32, cast_like
from siglip_ref.types import Array, Float


class DenseParams(TypedDict):
    """A linear map, stored (d_in, d_out) as in Flax; Torch stores the transpose."""

    kernel: Float[Array, "d_in d_out"]
    bias: Float[Array, " d_out"]


class DenseResiduals(NamedTuple):
    """What `dense_bwd` needs from `dense_fwd`."""

    x: Float[Array, "*batch d_in"]
    params: DenseParams


@fusable
def dense_fwd(
    x: Float[Array, "*batch d_in"], params: DenseParams
) -> tuple[Float[Array, "*batch d_out"], DenseResiduals]:
    """out = x kernel + bias.

    Source: flax.linen.Dense, which every projection of the towers is.
    """
    xp = array_namespace(x)
    kernel = params["kernel"]
    out = xp.reshape(_rows(x) @ kernel + params["bias"], (*x.shape[:-1], kernel.shape[1]))
    return out, DenseResiduals(x, params)


def dense_bwd(
    res: DenseResiduals, dout: Float[Array, "*batch d_out"]
) -> tuple[Float[Array, "*batch d_in"], DenseParams]:
    """(dx, dparams): dx = dout kernelᵀ, dkernel = xᵀ dout, dbias = Σ dout over all rows."""
    xp = array_namespace(dout)
    dout_rows = _rows(dout)
    dx = xp.reshape(dout_rows @ xp.matrix_transpose(res.params["kernel"]), res.x.shape)
    dkernel = xp.matrix_transpose(_rows(res.x)) @ dout_rows
    dbias = cast_like(xp.sum(at_least_float32(dout_rows), axis=0), dout)
    return dx, DenseParams(kernel=dkernel, bias=dbias)


def _rows(x: Float[Array, "*batch d"]) -> Float[Array, "rows d"]:
    # One matrix product over all rows: a batched one would run a small product per image.
    xp = array_namespace(x)
    return xp.reshape(x, (math.prod(x.shape[:-1]), x.shape[-1]))
