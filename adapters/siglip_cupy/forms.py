"""Fused forms of the core's operations for CuPy arrays: one kernel where the formula has many."""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import cupy

from siglip_cupy.gemm import gemm
from siglip_cupy.kernels import BLOCK, C_TYPES, WARP, WIDE, blocks, contiguous, launch
from siglip_ref.fused import formula_of, register_form
from siglip_ref.precision import cast_like
from siglip_ref.primitives import (
    LayerNormParams,
    dot_product_attention_bwd,
    dot_product_attention_fwd,
    gelu_tanh_bwd,
    layer_norm_bwd,
    layer_norm_fwd,
)
from siglip_ref.primitives.dot_product_attention import (
    DotProductAttentionResiduals,
    attention_weights,
)
from siglip_ref.primitives.gelu_tanh import gelu_tanh
from siglip_ref.primitives.layer_norm import LayerNormResiduals
from siglip_ref.types import Array, Float

R = TypeVar("R")

ROWS_A_CHUNK = 64
"""Rows that one thread adds up for the gradients of scale and bias; the rest is a sum of CuPy's."""


def register_forms() -> None:
    """Let the core use these forms for CuPy arrays."""
    for operation, form in FORMS.items():
        register_form(operation, cupy.ndarray, form)


def gelu_tanh_form(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """`gelu_tanh` in one kernel."""
    if not _kernels_fit(x):
        return formula_of(gelu_tanh)(x)
    out = cupy.empty(x.shape, dtype=x.dtype)
    _launch("gelu_tanh_fwd", x, blocks(x.size, BLOCK), (contiguous(x), out, x.size))
    return out


def gelu_tanh_bwd_form(res: Float[Array, "*shape"], dout: Float[Array, "*shape"]) -> Array:
    """`gelu_tanh_bwd` in one kernel."""
    if not _kernels_fit(res, dout):
        return formula_of(gelu_tanh_bwd)(res, dout)
    dx = cupy.empty(res.shape, dtype=res.dtype)
    args = (contiguous(res), contiguous(dout), dx, res.size)
    _launch("gelu_tanh_bwd", res, blocks(res.size, BLOCK), args)
    return dx


def layer_norm_fwd_form(
    x: Float[Array, "*batch d"], params: LayerNormParams, eps: float
) -> tuple[Array, LayerNormResiduals]:
    """`layer_norm_fwd` in one kernel, a warp for each row."""
    scale, bias = params["scale"], params["bias"]
    if not _kernels_fit(x, scale, bias):
        return formula_of(layer_norm_fwd)(x, params, eps)
    d = x.shape[-1]
    out, normalized = (cupy.empty(x.shape, dtype=x.dtype) for _ in range(2))
    inv_std = cupy.empty((*x.shape[:-1], 1), dtype=WIDE[str(x.dtype)])
    ends = (out, normalized, inv_std, x.size // d, d)
    args = (contiguous(x), contiguous(scale), contiguous(bias), float(eps), *ends)
    _launch("layer_norm_fwd", x, _row_blocks(x), args)
    return out, LayerNormResiduals(normalized, inv_std, params)


def layer_norm_bwd_form(
    res: LayerNormResiduals, dout: Float[Array, "*batch d"]
) -> tuple[Array, LayerNormParams]:
    """`layer_norm_bwd` in two kernels, for the rows and for the columns, and a sum over chunks."""
    normalized, inv_std, scale = res.normalized, res.inv_std, res.params["scale"]
    if not _kernels_fit(normalized, scale, dout):
        return formula_of(layer_norm_bwd)(res, dout)
    d, wide = dout.shape[-1], WIDE[str(dout.dtype)]
    rows = dout.size // d
    normalized, scale, dout = contiguous(normalized), contiguous(scale), contiguous(dout)
    dx = cupy.empty(dout.shape, dtype=dout.dtype)
    _launch(
        "layer_norm_bwd",
        dout,
        _row_blocks(dout),
        (normalized, contiguous(inv_std), scale, dout, dx, rows, d),
    )
    # A grid has at most 65,535 blocks in its second direction.
    chunk = max(ROWS_A_CHUNK, -(-rows // 65_535))
    chunks = -(-rows // chunk)
    dscale, dbias = (cupy.empty((chunks, d), dtype=wide) for _ in range(2))
    args = (normalized, dout, dscale, dbias, rows, d, chunk)
    _launch("layer_norm_columns", dout, (-(-d // BLOCK), chunks), args)
    return dx, LayerNormParams(
        scale=cast_like(cupy.sum(dscale, axis=0), dout),
        bias=cast_like(cupy.sum(dbias, axis=0), dout),
    )


def dot_product_attention_fwd_form(
    query: Float[Array, "n h l k"], key: Float[Array, "n h m k"], value: Float[Array, "n h m k"]
) -> tuple[Array, DotProductAttentionResiduals]:
    """`dot_product_attention_fwd` in two batched products and a kernel; scores are not rounded."""
    if not _kernels_fit(query, key, value):
        return formula_of(dot_product_attention_fwd)(query, key, value)
    query, key, value = contiguous(query), contiguous(key), contiguous(value)
    out = _product(attention_weights_form(query, key), value)
    return out, DotProductAttentionResiduals(query, key, value)


def dot_product_attention_bwd_form(
    res: DotProductAttentionResiduals, dout: Float[Array, "n h l k"]
) -> tuple[Array, Array, Array]:
    """`dot_product_attention_bwd` in five batched products and two kernels."""
    if not _kernels_fit(*res, dout):
        return formula_of(dot_product_attention_bwd)(res, dout)
    query, key, value = (contiguous(x) for x in res)
    dout = contiguous(dout)
    weights = attention_weights_form(query, key)
    scale = 1 / math.sqrt(query.shape[-1])
    dvalue = _product(_swapped(weights), dout)
    dweights = _product(dout, _swapped(value), wide=True)
    dscores = cupy.empty(weights.shape, dtype=weights.dtype)
    length = weights.shape[-1]
    args = (weights, dweights, dscores, weights.size // length, length)
    _launch("softmax_bwd", weights, _row_blocks(weights), args)
    dquery = _product(dscores, key, alpha=scale)
    dkey = _product(_swapped(dscores), query, alpha=scale)
    return dquery, dkey, dvalue


def attention_weights_form(
    query: Float[Array, "n h l k"], key: Float[Array, "n h m k"]
) -> Float[Array, "n h l m"]:
    """`attention_weights` in one batched product and a kernel."""
    if not _kernels_fit(query, key):
        return formula_of(attention_weights)(query, key)
    query, key = contiguous(query), contiguous(key)
    scores = _product(query, _swapped(key), wide=True, alpha=1 / math.sqrt(query.shape[-1]))
    weights = cupy.empty(scores.shape, dtype=query.dtype)
    length = weights.shape[-1]
    args = (scores, weights, weights.size // length, length)
    _launch("softmax_fwd", weights, _row_blocks(weights), args)
    return weights


FORMS: dict[Callable[..., Any], Callable[..., Any]] = {
    gelu_tanh: gelu_tanh_form,
    gelu_tanh_bwd: gelu_tanh_bwd_form,
    layer_norm_fwd: layer_norm_fwd_form,
    layer_norm_bwd: layer_norm_bwd_form,
    attention_weights: attention_weights_form,
    dot_product_attention_fwd: dot_product_attention_fwd_form,
    dot_product_attention_bwd: dot_product_attention_bwd_form,
}


def _kernels_fit(*arrays: Array) -> bool:
    """All of one dtype that the kernels have, and none empty; else the formula says what to do."""
    dtypes = {str(x.dtype) for x in arrays}
    return len(dtypes) == 1 and dtypes <= C_TYPES.keys() and all(x.size for x in arrays)


def _launch(name: str, like: Array, grid: tuple[int, ...], args: tuple[Any, ...]) -> None:
    launch(name, str(like.dtype), grid=grid, args=args)


def _row_blocks(x: Array) -> tuple[int]:
    return blocks(x.size // x.shape[-1], BLOCK // WARP)


def _swapped(x: Float[Array, "n h l k"]) -> Float[Array, "n h k l"]:
    return x.swapaxes(-1, -2)


def _product(
    a: Float[Array, "n h l k"],
    b: Float[Array, "n h k m"],
    *,
    alpha: float = 1.0,
    wide: bool = False,
) -> Float[Array, "n h l m"]:
    """alpha a b for each image and head, in the dtype of `a` or in at least float32."""
    batch = a.shape[:-2]
    shape = (*batch, a.shape[-2], b.shape[-1])
    out = cupy.empty(shape, dtype=WIDE[str(a.dtype)] if wide else a.dtype)
    gemm(*(x.reshape(-1, *x.shape[-2:]) for x in (a, b, out)), alpha=alpha)
    return out
