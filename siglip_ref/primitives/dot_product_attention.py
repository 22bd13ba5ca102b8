"""Scaled dot-product attention, without any mask."""

import math
from typing import NamedTuple

from array_api_compat import array_namespace

from siglip_ref.fused import fusable
from siglip_ref.primitives.softmax import softmax, softmax_bwd
from siglip_ref.types import Array, Float


class DotProductAttentionResiduals(NamedTuple):
    """What `dot_product_attention_bwd` needs from `dot_product_attention_fwd`."""

    query: Float[Array, "n h l k"]
    key: Float[Array, "n h m k"]
    value: Float[Array, "n h m k"]


@fusable
def dot_product_attention_fwd(
    query: Float[Array, "n h l k"], key: Float[Array, "n h m k"], value: Float[Array, "n h m k"]
) -> tuple[Float[Array, "n h l k"], DotProductAttentionResiduals]:
    """out = weights value with weights = softmax(query keyᵀ / √k), for each image and head.

    Source: arXiv:1706.03762, eq. (1), with k the size of one head.
    """
    weights = attention_weights(query, key)
    return weights @ value, DotProductAttentionResiduals(query, key, value)


@fusable
def dot_product_attention_bwd(
    res: DotProductAttentionResiduals, dout: Float[Array, "n h l k"]
) -> tuple[Float[Array, "n h l k"], Float[Array, "n h m k"], Float[Array, "n h m k"]]:
    """Cotangents (dquery, dkey, dvalue); with dscores the softmax's,

    dquery = dscores key / √k;  dkey = dscoresᵀ query / √k;  dvalue = weightsᵀ dout.
    """
    xp = array_namespace(dout)
    scale = 1 / math.sqrt(res.query.shape[-1])
    # Computed again rather than kept: they alone grow with the square of the number of tokens.
    weights = attention_weights(res.query, res.key)
    dvalue = xp.matrix_transpose(weights) @ dout
    dscores = softmax_bwd(weights, dout @ xp.matrix_transpose(res.value))
    dquery = (dscores @ res.key) * scale
    dkey = xp.matrix_transpose(dscores) @ (res.query * scale)
    return dquery, dkey, dvalue


@fusable
def attention_weights(
    query: Float[Array, "n h l k"], key: Float[Array, "n h m k"]
) -> Float[Array, "n h l m"]:
    """softmax(query keyᵀ / √k): how much of each value a query takes."""
    xp = array_namespace(query)
    scaled = query * (1 / math.sqrt(query.shape[-1]))
    return softmax(scaled @ xp.matrix_transpose(key))
