"""Forms of the core's operations in place, on what fits into a cache.

NumPy runs a formula one operation after the other over whole arrays, each into a new one. Here
all of them run over one block before the next block is begun. Plain arrays keep the formulas of
the core; the forms are those of `HostArray`.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from siglip_ref.encoders.block import block_bwd, block_fwd
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
    layer_norm_bwd,
    layer_norm_fwd,
)
from siglip_ref.primitives.dense import DenseResiduals
from siglip_ref.primitives.dot_product_attention import DotProductAttentionResiduals
from siglip_ref.primitives.gelu_tanh import gelu_tanh
from siglip_ref.primitives.layer_norm import LayerNormResiduals, layer_norm_out
from siglip_ref.types import Array, Float

Floats = NDArray[np.floating[Any]]

BLOCK = 2**18
"""Elements worked on at a time: with fewer, threads wait for each other to call NumPy."""

LARGEST_SCORE = 40.0
"""Up to here exp needs no shift: sums of exponentials stay far from both ends of float32."""

_SLOPE = 2 * math.sqrt(2 / math.pi)
_CUBIC = 0.044715


class HostArray(np.ndarray[Any, Any]):
    """An array of NumPy's whose type asks the core for the forms of this module."""

    __array_priority__ = 1.0  # what is made of it and plain arrays is of its type


class SummedAttentionResiduals(NamedTuple):
    """The core's, then the output and the sums of each row's exponentials."""

    query: Float[Array, "n h l k"]
    key: Float[Array, "n h m k"]
    value: Float[Array, "n h m k"]
    out: Float[Array, "n h l k"]
    sums: Float[Array, "n h l 1"]


def dense_fwd_form(
    x: Float[Array, "*batch d_in"], params: DenseParams
) -> tuple[Array, DenseResiduals]:
    """`dense_fwd` that adds the bias in place."""
    kernel, bias = params["kernel"], params["bias"]
    if not _fits(x, kernel, bias):
        return formula_of(dense_fwd)(x, params)
    out = x.reshape(-1, x.shape[-1]) @ kernel
    out += bias
    return out.reshape(*x.shape[:-1], kernel.shape[1]), DenseResiduals(x, params)


def gelu_tanh_form(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """`gelu_tanh` block by block."""
    if not _fits(x):
        return formula_of(gelu_tanh)(x)
    out = np.empty(x.shape, dtype=x.dtype)
    for given, found in _blocks(x, out):
        np.divide(given, _one_plus_exp(given, np.multiply(given, given)), out=found)
    return out.view(HostArray)


def mlp_bwd_form(res: MlpResiduals, dout: Float[Array, "*batch d"]) -> tuple[Array, MlpParams]:
    """`mlp_bwd` with one pass for GELU and its derivative, which share their sigmoid."""
    hidden, kernel = res.hidden, res.dense_1["kernel"]
    if not _fits(hidden, kernel, dout):
        return formula_of(mlp_bwd)(res, dout)
    dout = dout.reshape(-1, dout.shape[-1])
    activated, dhidden = np.empty(hidden.shape, dtype=hidden.dtype), dout @ kernel.T
    for x, out, gradient in _blocks(hidden, activated, dhidden):
        slope = np.multiply(x, x)
        s = _one_plus_exp(x, slope.copy())
        np.divide(1, s, out=s)
        # s (1 + x (1 - s) v')
        slope *= 3 * _SLOPE * _CUBIC
        slope += _SLOPE
        slope *= np.subtract(1, s, out=out)
        slope *= x
        slope += 1
        slope *= s
        np.multiply(gradient, slope, out=gradient)
        np.multiply(x, s, out=out)
    dense_1 = DenseParams(
        kernel=activated.reshape(len(dout), -1).T @ dout, bias=np.sum(dout, axis=0)
    )
    dx, dense_0 = dense_bwd(res.dense_0, dhidden.reshape(hidden.shape))
    return dx, MlpParams(dense_0=dense_0, dense_1=dense_1)


def layer_norm_fwd_form(
    x: Float[Array, "*batch d"], params: LayerNormParams, eps: float
) -> tuple[Array, LayerNormResiduals]:
    """`layer_norm_fwd`, some rows at a time."""
    scale, bias = (np.asarray(params[name]) for name in ("scale", "bias"))
    if not _fits(x, scale, bias):
        return formula_of(layer_norm_fwd)(x, params, eps)
    normalized, out = (np.empty(x.shape, dtype=x.dtype) for _ in range(2))
    inv_std = np.empty((*x.shape[:-1], 1), dtype=x.dtype)
    averaging = _averaging(x)
    for given, centred, found, inverse in _row_blocks(x, normalized, out, inv_std):
        np.subtract(given, (given @ averaging)[:, None], out=centred)
        np.subtract(centred, (centred @ averaging)[:, None], out=centred)
        variance = np.einsum("nd,nd->n", centred, centred) / len(scale)
        inverse[:, 0] = 1 / np.sqrt(variance + eps)
        np.multiply(centred, inverse, out=centred)
        np.multiply(centred, scale, out=found)
        np.add(found, bias, out=found)
    res = LayerNormResiduals(normalized.view(HostArray), inv_std.view(HostArray), params)
    return out.view(HostArray), res


def layer_norm_out_form(res: LayerNormResiduals) -> Array:
    """`layer_norm_out`, some rows at a time."""
    scale, bias = (np.asarray(res.params[name]) for name in ("scale", "bias"))
    if not _fits(res.normalized, scale, bias):
        return formula_of(layer_norm_out)(res)
    out = np.empty(res.normalized.shape, dtype=res.normalized.dtype)
    for normalized, found in _row_blocks(res.normalized, out):
        np.multiply(normalized, scale, out=found)
        np.add(found, bias, out=found)
    return out.view(HostArray)


def layer_norm_bwd_form(
    res: LayerNormResiduals, dout: Float[Array, "*batch d"]
) -> tuple[Array, LayerNormParams]:
    """`layer_norm_bwd`, some rows at a time."""
    normalized, inv_std, scale = res.normalized, res.inv_std, res.params["scale"]
    if not _fits(normalized, scale, dout):
        return formula_of(layer_norm_bwd)(res, dout)
    scale = np.asarray(scale)
    dx = np.empty(dout.shape, dtype=dout.dtype)
    dscale, dbias = (np.zeros(scale.shape, dtype=dout.dtype) for _ in range(2))
    averaging = _averaging(dout)
    for x, inverse, cotangent, found in _row_blocks(normalized, inv_std, dout, dx):
        every_row = np.ones(len(x), dtype=dout.dtype)
        product = np.multiply(cotangent, x)
        dscale += every_row @ product
        dbias += every_row @ cotangent
        np.multiply(cotangent, scale, out=found)
        # Means over dx̂ and dx̂ x̂, before the first is written over.
        mean, slope = found @ averaging, product @ (scale * averaging)
        np.subtract(found, mean[:, None], out=found)
        np.subtract(found, np.multiply(x, slope[:, None], out=product), out=found)
        np.multiply(found, inverse, out=found)
    dparams = LayerNormParams(scale=dscale.view(HostArray), bias=dbias.view(HostArray))
    return dx.view(HostArray), dparams


def dot_product_attention_fwd_form(
    query: Float[Array, "n h l k"], key: Float[Array, "n h m k"], value: Float[Array, "n h m k"]
) -> tuple[Array, DotProductAttentionResiduals | SummedAttentionResiduals]:
    """`dot_product_attention_fwd`, some images at a time.

    Exponentials are summed by the product with the values, to which a column of ones is added, and
    it is the product that is divided by the sums.
    """
    if not _fits(query, key, value):
        return formula_of(dot_product_attention_fwd)(query, key, value)
    out, sums = _empty_heads(query), np.empty((*query.shape[:-1], 1), dtype=query.dtype)
    shifted = _needs_shift(query, key)
    for q, k, v, found, total in _image_blocks(query, key, value, out, sums):
        summed = _exponentials(q, k, shifted=shifted) @ _with_column(v, 1)
        total[...] = summed[..., -1:]
        np.divide(summed[..., :-1], total, out=found)
    res = SummedAttentionResiduals(query, key, value, out.view(HostArray), sums.view(HostArray))
    return res.out, res


def dot_product_attention_bwd_form(
    res: DotProductAttentionResiduals | SummedAttentionResiduals, dout: Float[Array, "n h l k"]
) -> tuple[Array, Array, Array]:
    """`dot_product_attention_bwd`, some images at a time.

    With E the exponentials, S their sums and δ = Σ dout out over the last axis, which is
    Σ weights dweights: dscores = E (dout valueᵀ - δ) / S. The difference is part of the product,
    and queries are divided by S in the place of scores.
    """
    if isinstance(res, DotProductAttentionResiduals) or not _fits(*res, dout):
        core = DotProductAttentionResiduals(*res[:3])
        return formula_of(dot_product_attention_bwd)(core, dout)
    query, key, value, out, sums = res
    dquery, dkey, dvalue = _empty_heads(query), _empty_heads(key), _empty_heads(value)
    shifted = _needs_shift(query, key)
    scale = 1 / math.sqrt(query.shape[-1])
    for q, k, v, o, total, cotangent, dq, dk, dv in _image_blocks(
        query, key, value, out, sums, dout, dquery, dkey, dvalue
    ):
        e = _exponentials(q, k, shifted=shifted)
        np.matmul(_transposed(e), cotangent / total, out=dv)
        delta = np.einsum("nhlk,nhlk->nhl", cotangent, o)[..., None]
        dscores = _with_column(cotangent, -delta) @ _transposed(_with_column(v, 1))
        dscores *= e
        factor = scale / total
        np.multiply(np.matmul(dscores, k, out=dq), factor, out=dq)
        np.matmul(_transposed(dscores), q * factor, out=dk)
    return dquery.view(HostArray), dkey.view(HostArray), dvalue.view(HostArray)


FORMS: dict[Callable[..., Any], Callable[..., Any]] = {
    dense_fwd: dense_fwd_form,
    gelu_tanh: gelu_tanh_form,
    mlp_bwd: mlp_bwd_form,
    block_fwd: lean_forward,
    block_bwd: lean_backward,
    layer_norm_fwd: layer_norm_fwd_form,
    layer_norm_out: layer_norm_out_form,
    layer_norm_bwd: layer_norm_bwd_form,
    dot_product_attention_fwd: dot_product_attention_fwd_form,
    dot_product_attention_bwd: dot_product_attention_bwd_form,
}


def register_forms() -> None:
    """Let the core use these forms for arrays of this type."""
    for operation, form in FORMS.items():
        register_form(operation, HostArray, form)


def _one_plus_exp(x: Floats, square: Floats) -> Floats:
    """1 + exp(-v), with v = 2 sqrt(2/π) (x + 0.044715 x³), in the memory of x²."""
    square *= -_SLOPE * _CUBIC
    square -= _SLOPE
    square *= x
    # Infinite in the far left tail, where the reciprocal is 0.
    with np.errstate(over="ignore"):
        np.exp(square, out=square)
    square += 1
    return square


def _averaging(x: Float[Array, "*batch d"]) -> Floats:
    """What the rows of `x` are multiplied by for their means: a product is faster than a sum."""
    return np.full(x.shape[-1], 1 / x.shape[-1], dtype=x.dtype)


def _exponentials(q: Floats, k: Floats, *, shifted: bool) -> Floats:
    """exp(q kᵀ / √d), divided by the largest of each row if `shifted`."""
    scores = (q * (1 / math.sqrt(q.shape[-1]))) @ _transposed(k)
    if shifted:
        scores -= np.max(scores, axis=-1, keepdims=True)
    return np.exp(scores, out=scores)


def _needs_shift(query: Floats, key: Floats) -> bool:
    """Whether a score may be beyond LARGEST_SCORE, by the Cauchy-Schwarz inequality."""
    largest = [float(np.max(np.einsum("nhlk,nhlk->nhl", x, x))) for x in (query, key)]
    return not math.sqrt(largest[0] * largest[1] / query.shape[-1]) <= LARGEST_SCORE


def _with_column(x: Floats, column: Floats | float) -> Floats:
    """`x` with one more column."""
    wider = np.empty((*x.shape[:-1], x.shape[-1] + 1), dtype=x.dtype)
    wider[..., :-1] = x
    wider[..., -1:] = column
    return wider


def _transposed(x: Floats) -> Floats:
    return np.swapaxes(x, -1, -2)


def _empty_heads(x: Float[Array, "n h l k"]) -> Floats:
    """An array like `x` whose heads lie side by side, so that joining them copies nothing."""
    n, h, length, k = x.shape
    return np.empty((n, length, h, k), dtype=x.dtype).transpose(0, 2, 1, 3)


def _fits(*arrays: Array) -> bool:
    """Of one dtype that needs no widening, and none empty; else the formula says what to do."""
    dtypes = {x.dtype for x in arrays}
    return (
        len(dtypes) == 1
        and dtypes <= {np.dtype(np.float32), np.dtype(np.float64)}
        and all(x.size for x in arrays)
    )


def _blocks(*arrays: Array) -> Iterator[tuple[Floats, ...]]:
    """Arrays of one shape, all new but the first, as rows of blocks of at most BLOCK elements."""
    flat = [np.ascontiguousarray(x).reshape(-1) for x in arrays]
    for start in range(0, flat[0].size, BLOCK):
        yield tuple(x[start : start + BLOCK] for x in flat)


def _row_blocks(*arrays: Array) -> Iterator[tuple[Floats, ...]]:
    """Arrays with the same rows, as matrices of at most BLOCK elements."""
    flat = [np.ascontiguousarray(x).reshape(-1, x.shape[-1]) for x in arrays]
    yield from _parts(flat, max(1, BLOCK // flat[0].shape[-1]))


def _image_blocks(*arrays: Array) -> Iterator[tuple[Floats, ...]]:
    """Queries, keys and what else there is of some images, with BLOCK scores or a little less."""
    query, key = arrays[:2]
    scores = math.prod(query.shape[1:3]) * key.shape[2]
    yield from _parts([np.asarray(x) for x in arrays], max(1, BLOCK // scores))


def _parts(arrays: list[Floats], size: int) -> Iterator[tuple[Floats, ...]]:
    for start in range(0, len(arrays[0]), size):
        yield tuple(x[start : start + size] for x in arrays)
