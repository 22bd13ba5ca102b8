"""The multi-head attention pooling (MAP) head of the image tower."""

from typing import NamedTuple, TypedDict

from array_api_compat import array_namespace

from siglip_ref.encoders.mlp import MlpParams, MlpResiduals, mlp_bwd, mlp_fwd, mlp_probe
from siglip_ref.precision import at_least_float32, cast_like
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
from siglip_ref.primitives.layer_norm import LayerNormResiduals
from siglip_ref.primitives.multi_head_attention import AttentionResiduals
from siglip_ref.types import Array, Float


class MapHeadParams(TypedDict):
    """The learned query and one block around it."""

    probe: Float[Array, "1 d"]
    attn: AttentionParams
    ln: LayerNormParams
    mlp: MlpParams


class MapHeadResiduals(NamedTuple):
    """What `map_head_bwd` needs from `map_head_fwd`."""

    attn: AttentionResiduals
    ln: LayerNormResiduals
    mlp: MlpResiduals


def map_head_fwd(
    tokens: Float[Array, "n l d"], params: MapHeadParams, num_heads: int, eps: float
) -> tuple[Float[Array, "n d"], MapHeadResiduals]:
    """y = attn(probe, tokens);  out = y + mlp(ln(y)).

    One learned query for all images attends to the tokens. The probe is neither normalised nor
    added to the result.

    Source: arXiv:2106.04560, section 3.4 (ScalingViT's MAP); big_vision, `models/vit.py`,
    `MAPHead`.
    """
    xp = array_namespace(tokens)
    n, _, d = tokens.shape
    probe = xp.broadcast_to(cast_like(params["probe"], tokens), (n, 1, d))
    pooled, attn = multi_head_attention_fwd(probe, tokens, params["attn"], num_heads)
    y = xp.reshape(pooled, (n, d))
    normalized, ln = layer_norm_fwd(y, params["ln"], eps)
    out, mlp = mlp_fwd(normalized, params["mlp"])
    return y + out, MapHeadResiduals(attn, ln, mlp)


def map_head_bwd(
    res: MapHeadResiduals, dout: Float[Array, "n d"]
) -> tuple[Float[Array, "n l d"], MapHeadParams]:
    """Cotangents (dtokens, dparams); the probe's is summed over the images."""
    xp = array_namespace(dout)
    n, d = dout.shape
    dnormalized, mlp = mlp_bwd(res.mlp, dout)
    dy, ln = layer_norm_bwd(res.ln, dnormalized)
    dprobes, dtokens, attn = multi_head_attention_bwd(res.attn, xp.reshape(dout + dy, (n, 1, d)))
    probe = cast_like(xp.sum(at_least_float32(dprobes), axis=0), dprobes)
    return dtokens, MapHeadParams(probe=probe, attn=attn, ln=ln, mlp=mlp)


def map_head_probes(res: MapHeadResiduals) -> dict[str, Array]:
    """The intermediates of the head by name, from its residuals; `+mlp` is its output."""
    attended, _ = dense_fwd(*res.attn.out)
    expanded = mlp_probe(res.mlp)
    pooled = attended[:, 0, :]
    return {
        "attn/weights": attention_weights(res.attn.attention.query, res.attn.attention.key),
        "attn": pooled,
        "ln": res.mlp.dense_0.x,
        "mlp": expanded,
        "+mlp": pooled + expanded,
    }
