"""Forms of the core's elementwise operations that work in place, on what fits into a cache.

NumPy runs a formula one operation after the other over whole arrays, so each of GELU's eleven
goes through main memory. Here they all run over one block before the next block is begun. The
forms are those of `HostArray`; plain arrays keep the formulas of the core.
"""

import math
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from siglip_ref.fused import formula_of, register_form
from siglip_ref.primitives import dot_product_attention_bwd, gelu_tanh_bwd, gelu_tanh_fwd
from siglip_ref.primitives.dot_product_attention import (
    DotProductAttentionResiduals,
    attention_weights,
)
from siglip_ref.types import Array, Float

Floats = NDArray[np.floating[Any]]

BLOCK = 2**16
"""Elements worked on at a time."""

_SLOPE = 2 * math.sqrt(2 / math.pi)
_CUBIC = 0.044715


class HostArray(np.ndarray[Any, Any]):
    """An array of NumPy's whose type asks the core for the forms of this module."""

    __array_priority__ = 1.0  # what is made of it and plain arrays is of its type


def gelu_tanh_fwd_form(x: Float[Array, "*shape"]) -> tuple[Array, Array]:
    """`gelu_tanh_fwd` block by block."""
    if not _fits(x):
        return formula_of(gelu_tanh_fwd)(x)
    out = np.empty(x.shape, dtype=x.dtype)
    for given, found in _blocks(x, out):
        scratch = np.multiply(given, given)
        _one_plus_exp(given, scratch)
        np.divide(given, scratch, out=found)
    return out.view(HostArray), x


def gelu_tanh_bwd_form(res: Float[Array, "*shape"], dout: Float[Array, "*shape"]) -> Array:
    """`gelu_tanh_bwd` block by block."""
    if not _fits(res, dout):
        return formula_of(gelu_tanh_bwd)(res, dout)
    dx = np.empty(res.shape, dtype=res.dtype)
    for x, cotangent, found in _blocks(res, dout, dx):
        square = np.multiply(x, x)
        s = square.copy()
        _one_plus_exp(x, s)
        np.divide(1, s, out=s)
        slope = square
        slope *= 3 * _SLOPE * _CUBIC
        slope += _SLOPE
        slope *= x
        slope *= np.subtract(1, s, out=found)
        slope += 1
        slope *= s
        np.multiply(slope, cotangent, out=found)
    return dx.view(HostArray)


def attention_weights_form(
    query: Float[Array, "n h l k"], key: Float[Array, "n h m k"]
) -> Float[Array, "n h l m"]:
    """`attention_weights` with the softmax in place, head by head."""
    if not _fits(query, key):
        return formula_of(attention_weights)(query, key)
    scaled = np.asarray(query) * (1 / math.sqrt(query.shape[-1]))
    weights = scaled @ np.asarray(key).swapaxes(-1, -2)
    for (scores,) in _heads(weights):
        _softmax(scores)
    return weights.view(HostArray)


def dot_product_attention_bwd_form(
    res: DotProductAttentionResiduals, dout: Float[Array, "n h l k"]
) -> tuple[Array, Array, Array]:
    """`dot_product_attention_bwd` with the gradient of the softmax in place, head by head."""
    if not _fits(*res, dout):
        return formula_of(dot_product_attention_bwd)(res, dout)
    query, key, value = (np.asarray(x) for x in res)
    cotangent = np.asarray(dout)
    scale = 1 / math.sqrt(query.shape[-1])
    weights = np.asarray(attention_weights_form(query, key))
    dvalue = weights.swapaxes(-1, -2) @ cotangent
    dscores = cotangent @ value.swapaxes(-1, -2)
    for out, dout_of_head in _heads(weights, dscores):
        _softmax_bwd(out, dout_of_head)
    dquery = dscores @ key
    dquery *= scale
    dkey = dscores.swapaxes(-1, -2) @ (query * scale)
    return dquery.view(HostArray), dkey.view(HostArray), dvalue.view(HostArray)


FORMS: dict[Callable[..., Any], Callable[..., Any]] = {
    gelu_tanh_fwd: gelu_tanh_fwd_form,
    gelu_tanh_bwd: gelu_tanh_bwd_form,
    attention_weights: attention_weights_form,
    dot_product_attention_bwd: dot_product_attention_bwd_form,
}


@cache
def register_forms() -> None:
    """Let the core use these forms for arrays of this type."""
    for operation, form in FORMS.items():
        register_form(operation, HostArray, form)


def _softmax(x: Floats) -> None:
    """Put the softmax of the last axis where x is."""
    x -= np.max(x, axis=-1, keepdims=True)
    np.exp(x, out=x)
    x /= np.sum(x, axis=-1, keepdims=True)


def _softmax_bwd(out: Floats, dout: Floats) -> None:
    """Put out (dout - Σ out dout) where dout is; `out` is lost."""
    dout *= out
    out *= np.sum(dout, axis=-1, keepdims=True)
    dout -= out


def _one_plus_exp(x: Floats, square: Floats) -> None:
    """Put 1 + exp(-v), with v = 2 sqrt(2/π) (x + 0.044715 x³), where x² is."""
    square *= -_SLOPE * _CUBIC
    square -= _SLOPE
    square *= x
    # As in the core's `sigmoid`: never to infinity.
    np.minimum(square, math.log(float(np.finfo(x.dtype).max)) - 1, out=square)
    np.exp(square, out=square)
    square += 1


def _fits(*arrays: Array) -> bool:
    """Of one dtype that needs no widening; else the formula says what to do."""
    dtypes = {x.dtype for x in arrays}
    return len(dtypes) == 1 and dtypes <= {np.dtype(np.float32), np.dtype(np.float64)}


def _blocks(*arrays: Array) -> Iterator[tuple[Floats, ...]]:
    """Arrays of one shape, the last of them new, as rows of blocks of at most BLOCK elements."""
    flat = [np.ascontiguousarray(x).reshape(-1) for x in arrays]
    for start in range(0, flat[0].size, BLOCK):
        yield tuple(x[start : start + BLOCK] for x in flat)


def _heads(*arrays: Floats) -> Iterator[tuple[Floats, ...]]:
    """New arrays (n, h, l, m) as matrices (l, m) that write to them."""
    return zip(*(x.reshape(-1, *x.shape[-2:]) for x in arrays), strict=True)
