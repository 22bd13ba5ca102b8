"""Multi-head attention: four linear maps around the dot-product attention."""

from typing import NamedTuple, TypedDict

from array_api_compat import array_namespace

from siglip_ref.primitives.dense import DenseParams, DenseResiduals, dense_bwd, dense_fwd
from siglip_ref.primitives.dot_product_attention import (
    DotProductAttentionResiduals,
    dot_product_attention_bwd,
    dot_product_attention_fwd,
)
from siglip_ref.types import Array, Float


class AttentionParams(TypedDict):
    """The four linear maps of a multi-head attention layer, each d to d."""

    query: DenseParams
    key: DenseParams
    value: DenseParams
    out: DenseParams


class AttentionResiduals(NamedTuple):
    """What `multi_head_attention_bwd` needs: the residuals of its parts."""

    query: DenseResiduals
    key: DenseResiduals
    value: DenseResiduals
    attention: DotProductAttentionResiduals
    out: DenseResiduals


def multi_head_attention_fwd(
    x: Float[Array, "n l d"],
    y: Float[Array, "n m d"],
    params: AttentionParams,
    num_heads: int,
) -> tuple[Float[Array, "n l d"], AttentionResiduals]:
    """Queries from `x`, keys and values from `y`; the heads are contiguous slices of the width.

    out = [head₁ … head_h] W_out + b_out with head_i = attention of the i-th slices, size k = d/h,
    of x W_query + b_query, y W_key + b_key and y W_value + b_value. All four maps have a bias.

    Source: arXiv:1706.03762, section 3.2.2; flax.linen.MultiHeadDotProductAttention, whose
    (d, h, k) kernels are these (d, d) ones with the last axis split.
    """
    query, query_res = dense_fwd(x, params["query"])
    key, key_res = dense_fwd(y, params["key"])
    value, value_res = dense_fwd(y, params["value"])
    attended, attention_res = dot_product_attention_fwd(
        _split_heads(query, num_heads), _split_heads(key, num_heads), _split_heads(value, num_heads)
    )
    out, out_res = dense_fwd(_merge_heads(attended), params["out"])
    return out, AttentionResiduals(query_res, key_res, value_res, attention_res, out_res)


def multi_head_attention_bwd(
    res: AttentionResiduals, dout: Float[Array, "n l d"]
) -> tuple[Float[Array, "n l d"], Float[Array, "n m d"], AttentionParams]:
    """Cotangents (dx, dy, dparams)."""
    dmerged, dout_params = dense_bwd(res.out, dout)
    num_heads = res.attention.query.shape[1]
    dquery, dkey, dvalue = dot_product_attention_bwd(
        res.attention, _split_heads(dmerged, num_heads)
    )
    dx, dquery_params = dense_bwd(res.query, _merge_heads(dquery))
    dy_key, dkey_params = dense_bwd(res.key, _merge_heads(dkey))
    dy_value, dvalue_params = dense_bwd(res.value, _merge_heads(dvalue))
    dparams = AttentionParams(
        query=dquery_params,
        key=dkey_params,
        value=dvalue_params,
        out=dout_params,
    )
    return dx, dy_key + dy_value, dparams


def _split_heads(x: Float[Array, "n l d"], num_heads: int) -> Float[Array, "n h l k"]:
    xp = array_namespace(x)
    n, length, d = x.shape
    return xp.permute_dims(xp.reshape(x, (n, length, num_heads, d // num_heads)), (0, 2, 1, 3))


def _merge_heads(x: Float[Array, "n h l k"]) -> Float[Array, "n l d"]:
    xp = array_namespace(x)
    n, h, length, k = x.shape
    return xp.reshape(xp.permute_dims(x, (0, 2, 1, 3)), (n, length, h * k))
