"""In which precision a formula runs: the dtype of its inputs, or float32 if that is narrower."""

from typing import Any

from array_api_compat import array_namespace

from siglip_ref.types import Array


def at_least_float32(x: Array) -> Array:
    """`x` itself, or in float32 if it is a float16 or bfloat16 array.

    Statistics, normalisers and losses are computed on this, since a mean over a thousand
    16-bit numbers in 16 bits loses what it is meant to measure.
    """
    xp = array_namespace(x)
    return x if x.dtype in (xp.float32, xp.float64) else xp.astype(x, xp.float32)


def as_dtype(x: Array, dtype: Any) -> Array:
    """`x` in a dtype of its library."""
    return x if x.dtype == dtype else array_namespace(x).astype(x, dtype)


def cast_like(x: Array, like: Array) -> Array:
    """`x` in the dtype of `like`."""
    return as_dtype(x, like.dtype)
