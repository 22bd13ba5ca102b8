"""GELU and its gradient in place, on what fits into a cache.

NumPy runs a formula one operation after the other over whole arrays, each into a new one. Here
all of them run over one block before the next block is begun. Plain arrays keep the formulas of
the core; the forms are those of `HostArray`. (For the softmax it was tried, and gained nothing.)
"""

import math
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from siglip_ref.fused import formula_of, register_form
from siglip_ref.primitives import gelu_tanh_bwd, gelu_tanh_fwd
from siglip_ref.types import Array, Float

Floats = NDArray[np.floating[Any]]

BLOCK = 2**18
"""Elements worked on at a time: with fewer, threads wait for each other to call NumPy."""

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


FORMS: dict[Callable[..., Any], Callable[..., Any]] = {
    gelu_tanh_fwd: gelu_tanh_fwd_form,
    gelu_tanh_bwd: gelu_tanh_bwd_form,
}


@cache
def register_forms() -> None:
    """Let the core use these forms for arrays of this type."""
    for operation, form in FORMS.items():
        register_form(operation, HostArray, form)


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
