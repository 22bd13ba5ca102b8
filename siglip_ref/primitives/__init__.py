"""The operations of the towers, each as `op_fwd(...) -> (out, res)` and `op_bwd(res, dout)`.

`res` holds what the backward pass needs: arrays only, so it crosses jit and messages. The
backward pass returns the cotangents of the differentiable arguments in their order.
"""

from siglip_ref.primitives.dense import DenseParams, dense_bwd, dense_fwd
from siglip_ref.primitives.dot_product_attention import (
    dot_product_attention_bwd,
    dot_product_attention_fwd,
)
from siglip_ref.primitives.embed import embed_bwd, embed_fwd
from siglip_ref.primitives.gelu_tanh import gelu_tanh_bwd, gelu_tanh_fwd
from siglip_ref.primitives.l2_normalize import l2_normalize_bwd, l2_normalize_fwd
from siglip_ref.primitives.layer_norm import LayerNormParams, layer_norm_bwd, layer_norm_fwd
from siglip_ref.primitives.multi_head_attention import (
    AttentionParams,
    multi_head_attention_bwd,
    multi_head_attention_fwd,
)
from siglip_ref.primitives.patch_embed import patch_embed_bwd, patch_embed_fwd
from siglip_ref.primitives.scaled_cosine import scaled_cosine_bwd, scaled_cosine_fwd
from siglip_ref.primitives.sigmoid import sigmoid
from siglip_ref.primitives.softmax import softmax_bwd, softmax_fwd
from siglip_ref.primitives.softplus import (
    log_sigmoid_bwd,
    log_sigmoid_fwd,
    softplus_bwd,
    softplus_fwd,
)

__all__ = [
    "AttentionParams",
    "DenseParams",
    "LayerNormParams",
    "dense_bwd",
    "dense_fwd",
    "dot_product_attention_bwd",
    "dot_product_attention_fwd",
    "embed_bwd",
    "embed_fwd",
    "gelu_tanh_bwd",
    "gelu_tanh_fwd",
    "l2_normalize_bwd",
    "l2_normalize_fwd",
    "layer_norm_bwd",
    "layer_norm_fwd",
    "log_sigmoid_bwd",
    "log_sigmoid_fwd",
    "multi_head_attention_bwd",
    "multi_head_attention_fwd",
    "patch_embed_bwd",
    "patch_embed_fwd",
    "scaled_cosine_bwd",
    "scaled_cosine_fwd",
    "sigmoid",
    "softmax_bwd",
    "softmax_fwd",
    "softplus_bwd",
    "softplus_fwd",
]
