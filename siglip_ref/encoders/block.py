"""One pre-LN transformer block."""

from typing import NamedTuple, TypedDict

from siglip_ref.encoders.mlp import MlpParams, MlpResiduals, mlp_bwd, mlp_fwd, mlp_probe
from siglip_ref.fused import fusable
from siglip_ref.primitives import (
    AttentionParams,
    LayerNormParams,
    dense_fwd,
    layer_norm_bwd,
    layer_norm_fwd,
    multi_head_attention_bwd,
    multi_head_attention_fwd,
)
from siglip_ref.primitives.dot_product_attention import attention_weights
from siglip_ref.primitives.layer_norm import LayerNormResiduals, layer_norm_out
from siglip_ref.primitives.multi_head_attention import AttentionResiduals
from siglip_ref.types import Array, Float


class BlockParams(TypedDict):
    """Two normalisations, the attention and the perceptron."""

    ln_0: LayerNormParams
    attn: AttentionParams
    ln_1: LayerNormParams
    mlp: MlpParams


class BlockResiduals(NamedTuple):
    """What `block_bwd` needs from `block_fwd`."""

    ln_0: LayerNormResiduals
    attn: AttentionResiduals
    ln_1: LayerNormResiduals
    mlp: MlpResiduals


@fusable
def block_fwd(
    x: Float[Array, "n l d"], params: BlockParams, num_heads: int, eps: float
) -> tuple[Float[Array, "n l d"], BlockResiduals]:
    """y = x + attn(ln_0(x), ln_0(x));  out = y + mlp(ln_1(y)).

    Every token attends to every token: there is no mask in either tower.

    Source: arXiv:2010.11929, eq. (2)-(3); big_vision, `models/vit.py`, `Encoder1DBlock`.
    """
    normalized, ln_0 = layer_norm_fwd(x, params["ln_0"], eps)
    attended, attn = multi_head_attention_fwd(normalized, normalized, params["attn"], num_heads)
    y = x + attended
    normalized, ln_1 = layer_norm_fwd(y, params["ln_1"], eps)
    out, mlp = mlp_fwd(normalized, params["mlp"])
    return y + out, BlockResiduals(ln_0, attn, ln_1, mlp)


@fusable
def block_bwd(
    res: BlockResiduals, dout: Float[Array, "n l d"]
) -> tuple[Float[Array, "n l d"], BlockParams]:
    """Cotangents (dx, dparams)."""
    dnormalized, mlp = mlp_bwd(res.mlp, dout)
    dy, ln_1 = layer_norm_bwd(res.ln_1, dnormalized)
    dy = dout + dy
    dquery_source, dkey_source, attn = multi_head_attention_bwd(res.attn, dy)
    dx, ln_0 = layer_norm_bwd(res.ln_0, dquery_source + dkey_source)
    return dy + dx, BlockParams(ln_0=ln_0, attn=attn, ln_1=ln_1, mlp=mlp)


def block_probes(x: Float[Array, "n l d"], res: BlockResiduals) -> dict[str, Array]:
    """The intermediates of the block by name, from its input and its residuals.

    `+attn` is the sum after the attention, `+mlp` the output of the block.
    """
    attended, _ = dense_fwd(*res.attn.out)
    expanded = mlp_probe(res.mlp)
    return {
        "ln_0": layer_norm_out(res.ln_0),
        "attn/weights": attention_weights(res.attn.attention.query, res.attn.attention.key),
        "attn": attended,
        "+attn": x + attended,
        "ln_1": layer_norm_out(res.ln_1),
        "mlp": expanded,
        "+mlp": (x + attended) + expanded,
    }
