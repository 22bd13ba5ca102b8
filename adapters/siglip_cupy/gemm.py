"""Matrix products in which the dtypes of factors, sum and result are chosen one by one.

CuPy's own products round 16-bit results to 16 bits, have no bfloat16 with more than two axes, and
run float16 ones with more than two axes in float32. cuBLAS has all of them.
"""

from functools import cache
from typing import Any

import cupy
import numpy as np

from siglip_ref.types import Array, Float


@cache
def cublas() -> Any:
    """The bindings of cuBLAS; they are loaded when first used, since the library may be missing.

    Raises ImportError if it is.
    """
    from cupy_backends.cuda.libs import cublas as bindings  # noqa: PLC0415

    return bindings


def gemm(
    a: Float[Array, "*batch n k"],
    b: Float[Array, "*batch k m"],
    out: Float[Array, "*batch n m"],
    *,
    alpha: float = 1.0,
    beta: float = 0.0,
    tf32: bool = False,
) -> Array:
    """out ← alpha a b + beta out, summed in float32, or in float64 if that is the dtype of `a`.

    Factors are both of one dtype and may be transposed; with a third axis, one product for each
    index of it. `out` is contiguous and of the dtype of the factors or of the sum. With `tf32`
    float32 factors may be rounded to 11 bits (the precision of float16, the range of float32).

    Raises ValueError if shapes or dtypes do not fit.
    """
    _check(a, b, out)
    blas, handle = cublas(), cupy.cuda.device.get_cublas_handle()
    wide = np.float64 if a.dtype == np.float64 else np.float32
    if wide is np.float64:
        compute = blas.CUBLAS_COMPUTE_64F
    else:
        compute = blas.CUBLAS_COMPUTE_32F_FAST_TF32 if tf32 else blas.CUBLAS_COMPUTE_32F
    scalars = np.asarray([alpha, beta], dtype=wide)
    alpha_at, beta_at = scalars.ctypes.data, scalars.ctypes.data + scalars.itemsize
    # cuBLAS has columns one after the other: outᵀ = bᵀ aᵀ, where a matrix seen so is a transpose.
    a, op_a, ld_a = _columns(a)
    b, op_b, ld_b = _columns(b)
    (n, m), k = out.shape[-2:], a.shape[-1]
    left = (b.data.ptr, _cuda_type(b), ld_b)
    right = (a.data.ptr, _cuda_type(a), ld_a)
    result = (out.data.ptr, _cuda_type(out), m)
    start = (handle, op_b, op_a, m, n, k, alpha_at)
    if out.ndim == 2:
        blas.gemmEx(*start, *left, *right, beta_at, *result, compute, blas.CUBLAS_GEMM_DEFAULT)
    else:
        blas.gemmStridedBatchedEx(
            *start,
            *(*left, _batch_stride(b)),
            *(*right, _batch_stride(a)),
            beta_at,
            *(*result, n * m),
            out.shape[0],
            compute,
            blas.CUBLAS_GEMM_DEFAULT,
        )
    return out


def _check(a: Array, b: Array, out: Array) -> None:
    wanted = (*a.shape[:-1], b.shape[-1])
    if a.ndim not in (2, 3) or a.shape[-1] != b.shape[-2] or a.shape[:-2] != b.shape[:-2]:
        raise ValueError(f"a and b must be matrices that fit, got {a.shape} and {b.shape}")
    if out.shape != wanted or not out.flags.c_contiguous:
        raise ValueError(f"out must be contiguous with the shape {wanted}, got {out.shape}")
    wide = np.dtype(np.float64 if a.dtype == np.float64 else np.float32)
    if a.dtype != b.dtype or out.dtype not in (a.dtype, wide):
        raise ValueError(
            f"a and b must have one dtype and out that or {wide}, "
            f"got {a.dtype}, {b.dtype} and {out.dtype}"
        )


def _columns(x: Array) -> tuple[Array, int, int]:
    """`x`, whether cuBLAS must transpose its transpose back, and the distance of its lines."""
    lines, within = x.strides[-2] // x.itemsize, x.strides[-1] // x.itemsize
    rows, columns = x.shape[-2:]
    if within == 1 and lines >= columns:
        return x, cublas().CUBLAS_OP_N, lines
    if lines == 1 and within >= rows:
        return x, cublas().CUBLAS_OP_T, within
    return cupy.ascontiguousarray(x), cublas().CUBLAS_OP_N, columns


def _batch_stride(x: Array) -> int:
    return int(x.strides[0] // x.itemsize)


def _cuda_type(x: Array) -> int:
    runtime = cupy.cuda.runtime
    types = {
        "float64": runtime.CUDA_R_64F,
        "float32": runtime.CUDA_R_32F,
        "float16": runtime.CUDA_R_16F,
        "bfloat16": runtime.CUDA_R_16BF,
    }
    return int(types[str(x.dtype)])
