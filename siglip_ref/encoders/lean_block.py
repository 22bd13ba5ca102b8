"""Forms of a transformer block that keep less of it for the backward pass.

For adapters to register: the maps after a normalisation keep its output, beside the normalised
input that it is made of. These forms form it again, to the last bit, and keep a sixth less.
"""

from siglip_ref.encoders.block import BlockParams, BlockResiduals, block_bwd, block_fwd
from siglip_ref.fused import formula_of
from siglip_ref.primitives.layer_norm import layer_norm_out
from siglip_ref.types import Array, Float

INPUTS = "query", "key", "value"
"""The maps of the attention that take the output of the first normalisation."""


def lean_forward(
    x: Float[Array, "n l d"], params: BlockParams, num_heads: int, eps: float
) -> tuple[Float[Array, "n l d"], BlockResiduals]:
    """`block_fwd`; the residuals have no inputs of the maps after either normalisation."""
    out, res = formula_of(block_fwd)(x, params, num_heads, eps)
    return out, _with_inputs(res, None, None)


def lean_backward(
    res: BlockResiduals, dout: Float[Array, "n l d"]
) -> tuple[Float[Array, "n l d"], BlockParams]:
    """`block_bwd` from the residuals of either `block_fwd` or `lean_forward`."""
    if res.mlp.dense_0.x is None:
        res = _with_inputs(res, layer_norm_out(res.ln_0), layer_norm_out(res.ln_1))
    return formula_of(block_bwd)(res, dout)


def _with_inputs(
    res: BlockResiduals,
    normalized_0: Float[Array, "n l d"] | None,
    normalized_1: Float[Array, "n l d"] | None,
) -> BlockResiduals:
    """The residuals with these inputs of the attention and of the perceptron."""
    attn, mlp = res.attn, res.mlp
    query, key, value = (
        part._replace(x=normalized_0) for part in (attn.query, attn.key, attn.value)
    )
    return res._replace(
        attn=attn._replace(query=query, key=key, value=value),
        mlp=mlp._replace(dense_0=mlp.dense_0._replace(x=normalized_1)),
    )
