"""Forms of the core's operations for tensors on the host: Torch's own kernels where it has one.

Where autograd or a compiler follows the computation, and on other devices, the formulas stay.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from siglip_ref.encoders.block import BlockParams, BlockResiduals, block_bwd, block_fwd
from siglip_ref.encoders.lean_block import lean_backward, lean_forward
from siglip_ref.encoders.mlp import MlpParams, MlpResiduals, mlp_bwd
from siglip_ref.fused import formula_of, register_form
from siglip_ref.primitives import (
    DenseParams,
    LayerNormParams,
    dense_bwd,
    dense_fwd,
    dot_product_attention_bwd,
    dot_product_attention_fwd,
    embed_bwd,
    layer_norm_bwd,
    layer_norm_fwd,
)
from siglip_ref.primitives.dense import DenseResiduals
from siglip_ref.primitives.dot_product_attention import DotProductAttentionResiduals
from siglip_ref.primitives.embed import EmbedResiduals
from siglip_ref.primitives.gelu_tanh import gelu_tanh
from siglip_ref.primitives.layer_norm import LayerNormResiduals, layer_norm_out
from siglip_ref.types import Array, Float

BLOCK = 2**16
"""Elements of GELU worked on at a time, so that the steps between stay in the cache."""

WIDE = torch.float32, torch.float64

_SLOPE = 2 * math.sqrt(2 / math.pi)
_CUBIC = 0.044715

_aten = torch.ops.aten


class NativeLayerNormResiduals(NamedTuple):
    """The input less the mean of each row, and the statistics of what is left."""

    centred: Float[Tensor, "*batch d"]
    mean: Float[Tensor, "*batch 1"]
    inv_std: Float[Tensor, "*batch 1"]
    params: LayerNormParams
    eps: Float[Tensor, ""]


class FlashAttentionResiduals(NamedTuple):
    """The core's, then the output and the logarithm of each row's sum of exponentials."""

    query: Float[Tensor, "n h l k"]
    key: Float[Tensor, "n h m k"]
    value: Float[Tensor, "n h m k"]
    out: Float[Tensor, "n h l k"]
    logsumexp: Float[Tensor, "n h l"]


def dense_fwd_form(
    x: Float[Tensor, "*batch d_in"], params: DenseParams
) -> tuple[Float[Tensor, "*batch d_out"], DenseResiduals]:
    """`dense_fwd` that adds the bias in place."""
    kernel, bias = params["kernel"], params["bias"]
    if not _fits(x, kernel, bias):
        return formula_of(dense_fwd)(x, params)
    out = torch.mm(x.reshape(-1, x.shape[-1]), kernel).add_(bias)
    return out.reshape(*x.shape[:-1], kernel.shape[1]), DenseResiduals(x, params)


def layer_norm_fwd_form(
    x: Float[Tensor, "*batch d"], params: LayerNormParams, eps: float
) -> tuple[Tensor, LayerNormResiduals | NativeLayerNormResiduals]:
    """`layer_norm_fwd` in one kernel, after the means are taken off: it subtracts too late to keep
    the digits of numbers that are far from 0.
    """
    scale, bias = params["scale"], params["bias"]
    if x.dtype not in WIDE or not _fits(x, scale, bias):
        return formula_of(layer_norm_fwd)(x, params, eps)
    centred = x - x.mean(-1, keepdim=True)
    out, mean, inv_std = _aten.native_layer_norm(centred, scale.shape, scale, bias, eps)
    kept = torch.tensor(eps, dtype=torch.float64)
    return out, NativeLayerNormResiduals(centred, mean, inv_std, params, kept)


def layer_norm_out_form(res: LayerNormResiduals | NativeLayerNormResiduals) -> Tensor:
    """`layer_norm_out` by the kernel of the forward pass, to the last bit."""
    if isinstance(res, LayerNormResiduals):
        out: Tensor = formula_of(layer_norm_out)(res)
        return out
    scale, bias = res.params["scale"], res.params["bias"]
    out, *_ = _aten.native_layer_norm(res.centred, scale.shape, scale, bias, float(res.eps))
    return out


def layer_norm_bwd_form(
    res: LayerNormResiduals | NativeLayerNormResiduals, dout: Float[Tensor, "*batch d"]
) -> tuple[Tensor, LayerNormParams]:
    """`layer_norm_bwd` in one kernel."""
    if isinstance(res, LayerNormResiduals):
        return formula_of(layer_norm_bwd)(res, dout)
    centred, mean, inv_std, params, _ = res
    scale, bias = params["scale"], params["bias"]
    dx, dscale, dbias = _aten.native_layer_norm_backward(
        dout.contiguous(), centred, scale.shape, mean, inv_std, scale, bias, [True, True, True]
    )
    return dx, LayerNormParams(scale=dscale, bias=dbias)


def gelu_tanh_form(x: Float[Tensor, "*shape"]) -> Float[Array, "*shape"]:
    """`gelu_tanh` block by block: `torch.nn.functional.gelu` cancels in the left tail."""
    if not _fits(x):
        return formula_of(gelu_tanh)(x)
    out = torch.empty(x.shape, dtype=x.dtype)
    for given, found in _blocks(x, out):
        _sigmoid(given, out=found).mul_(given)
    return out


def mlp_bwd_form(res: MlpResiduals, dout: Float[Tensor, "*batch d"]) -> tuple[Tensor, MlpParams]:
    """`mlp_bwd` with one pass for GELU and its derivative, which share their sigmoid."""
    hidden, kernel = res.hidden, res.dense_1["kernel"]
    if hidden.dtype not in WIDE or not _fits(hidden, kernel, dout):
        return formula_of(mlp_bwd)(res, dout)
    dout = dout.reshape(-1, dout.shape[-1])
    activated, dhidden = torch.empty(hidden.shape, dtype=hidden.dtype), torch.mm(dout, kernel.T)
    for x, out, gradient in _blocks(hidden, activated, dhidden):
        s = _sigmoid(x, out=out)
        # s + s (1 - s) x v'
        slope = torch.addcmul(_slope(x), x, x, value=3 * _SLOPE * _CUBIC).mul_(x)
        _aten.sigmoid_backward.grad_input(slope, s, grad_input=slope)
        gradient.mul_(slope.add_(s))
        out.mul_(x)
    rows = activated.reshape(len(dout), -1)
    dense_1 = DenseParams(kernel=torch.mm(rows.T, dout), bias=dout.sum(0))
    dx, dense_0 = dense_bwd(res.dense_0, dhidden.reshape(hidden.shape))
    return dx, MlpParams(dense_0=dense_0, dense_1=dense_1)


def embed_bwd_form(res: EmbedResiduals, dout: Float[Tensor, "n l d"]) -> Float[Array, "v d"]:
    """`embed_bwd` by an addition in place, token after token."""
    if dout.dtype not in WIDE or not _fits(dout):
        return formula_of(embed_bwd)(res, dout)
    dembedding = torch.zeros(res.embedding.shape, dtype=dout.dtype)
    return dembedding.index_add_(0, res.tokens.reshape(-1), dout.reshape(-1, dout.shape[-1]))


def dot_product_attention_fwd_form(
    query: Float[Tensor, "n h l k"], key: Float[Tensor, "n h m k"], value: Float[Tensor, "n h m k"]
) -> tuple[Tensor, DotProductAttentionResiduals | FlashAttentionResiduals]:
    """`dot_product_attention_fwd` in one kernel that never holds all scores."""
    if not _fits(query, key, value):
        return formula_of(dot_product_attention_fwd)(query, key, value)
    out, logsumexp = _aten._scaled_dot_product_flash_attention_for_cpu(query, key, value)
    return out, FlashAttentionResiduals(query, key, value, out, logsumexp)


def dot_product_attention_bwd_form(
    res: DotProductAttentionResiduals | FlashAttentionResiduals, dout: Float[Tensor, "n h l k"]
) -> tuple[Tensor, Tensor, Tensor]:
    """`dot_product_attention_bwd` in one kernel."""
    if isinstance(res, DotProductAttentionResiduals):
        return formula_of(dot_product_attention_bwd)(res, dout)
    dquery, dkey, dvalue = _aten._scaled_dot_product_flash_attention_for_cpu_backward(
        dout, *res, 0.0, False
    )
    return dquery, dkey, dvalue


def block_fwd_form(
    x: Float[Tensor, "n l d"], params: BlockParams, num_heads: int, eps: float
) -> tuple[Float[Array, "n l d"], BlockResiduals]:
    """`block_fwd` that keeps no output of its normalisations."""
    form = lean_forward if _fits(x) else formula_of(block_fwd)
    return form(x, params, num_heads, eps)


FORMS: dict[Callable[..., Any], Callable[..., Any]] = {
    dense_fwd: dense_fwd_form,
    layer_norm_fwd: layer_norm_fwd_form,
    layer_norm_out: layer_norm_out_form,
    layer_norm_bwd: layer_norm_bwd_form,
    embed_bwd: embed_bwd_form,
    gelu_tanh: gelu_tanh_form,
    mlp_bwd: mlp_bwd_form,
    block_fwd: block_fwd_form,
    block_bwd: lean_backward,
    dot_product_attention_fwd: dot_product_attention_fwd_form,
    dot_product_attention_bwd: dot_product_attention_bwd_form,
}


def register_forms() -> None:
    """Let the core use these forms for tensors."""
    for operation, form in FORMS.items():
        register_form(operation, Tensor, form)


def _fits(*arrays: Tensor) -> bool:
    """Numbers of one dtype on the host that nobody follows; else the formula says what to do."""
    followed = torch.compiler.is_compiling() or (
        torch.is_grad_enabled() and any(x.requires_grad for x in arrays)
    )
    return (
        not followed
        and all(type(x) in (Tensor, torch.nn.Parameter) for x in arrays)
        and all(x.device.type == "cpu" and x.numel() > 0 for x in arrays)
        and len({x.dtype for x in arrays}) == 1
        and arrays[0].is_floating_point()
    )


def _sigmoid(x: Tensor, out: Tensor | None = None) -> Tensor:
    """sigmoid(2 sqrt(2/π) (x + 0.044715 x³))."""
    return torch.addcmul(_slope(x), x, x, value=_SLOPE * _CUBIC, out=out).mul_(x).sigmoid_()


def _slope(x: Tensor) -> Tensor:
    return torch.tensor(_SLOPE, dtype=x.dtype)


def _blocks(*arrays: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Arrays of one shape, all new but the first, as rows of blocks of at most BLOCK elements."""
    return zip(*(torch.split(x.reshape(-1), BLOCK) for x in arrays), strict=True)
