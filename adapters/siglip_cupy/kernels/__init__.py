"""The CUDA kernels: their source, the instances of their templates, and how they are launched."""

from functools import cache
from importlib import resources
from typing import Any

import cupy
import numpy as np

from siglip_ref.types import Array

FILES = ("elements.cuh", "sigmoid_tile.cu", "gelu_tanh.cu", "layer_norm.cu", "softmax.cu")
OPTIONS = ("-std=c++17", "--fmad=false")
"""Without fused multiply-adds every operation rounds as in the core; the kernels wait for memory,
not for arithmetic."""

WARP, BLOCK = 32, 256
"""Threads of a warp and of a block, as in elements.cuh."""

MOST_BLOCKS = 1024
"""As many blocks as fill a large device several times over; each then takes several rows."""

C_TYPES = {"float64": "double", "float32": "float", "float16": "Float16", "bfloat16": "BFloat16"}
WIDE = {name: np.dtype("float64" if name == "float64" else "float32") for name in C_TYPES}
"""The dtype in which the kernels compute, by the name of the dtype that they are given."""

ROUNDED = {"float64": "float64", "float32": "float32", "bfloat16": "bfloat16", "float16": "float32"}
"""The dtype of the logits' gradient, by that of the embeddings. As float16 most would be 0."""

_ONE_TYPE = (
    *("gelu_tanh_fwd", "gelu_tanh_bwd"),
    *("layer_norm_fwd", "layer_norm_bwd", "layer_norm_columns"),
    *("softmax_fwd", "softmax_bwd"),
)


def instance(name: str, *dtypes: str) -> str:
    """The C++ name of a kernel for some dtypes: `gelu_tanh_fwd<float>`."""
    if not dtypes:
        return name
    return f"{name}<{', '.join(C_TYPES[dtype] for dtype in dtypes)}>"


INSTANCES = (
    *(instance(name, dtype) for name in _ONE_TYPE for dtype in C_TYPES),
    *(
        instance(name, str(WIDE[dtype]), rounded)
        for name in ("sigmoid_tile", "sigmoid_tile_targets")
        for dtype, rounded in ROUNDED.items()
        if dtype != "float16"
    ),
    "add_partials",
)


def source() -> str:
    """The CUDA source of all kernels."""
    return "\n".join((resources.files(__package__) / name).read_text("utf-8") for name in FILES)


def launch(name: str, *dtypes: str, grid: tuple[int, ...], args: tuple[Any, ...]) -> None:
    """Run a kernel with `BLOCK` threads in each block of the grid, on the current stream.

    Arrays go as pointers and must be contiguous, integers as `long long`, floats as `double`.
    """
    _kernel(instance(name, *dtypes))(grid, (BLOCK,), args)


def blocks(count: int, each: int) -> tuple[int]:
    """The grid for `count` rows or elements of which a block takes `each` at a time."""
    return (min(-(-count // each), MOST_BLOCKS),)


def contiguous(x: Array) -> Array:
    """`x` with its elements one after the other, as the kernels want it."""
    return cupy.ascontiguousarray(x)


@cache
def _kernel(name: str) -> Any:
    return _module().get_function(name)


@cache
def _module() -> Any:
    return cupy.RawModule(code=source(), options=OPTIONS, name_expressions=INSTANCES)
