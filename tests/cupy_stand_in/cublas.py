"""The two products of cuBLAS that the adapter calls, on addresses in the memory of the host.

Names, numbers and signatures are those of `cupy_backends.cuda.libs.cublas` in CuPy 14.2, which
cannot be imported without the library itself. tests/adapters/test_cupy_stand_in.py looks for the
signatures in the file of that module, tests/gpu/test_libraries.py asks the module.
"""

import ctypes
from typing import NamedTuple

import ml_dtypes
import numpy as np

from cupy_stand_in.signatures import by_name, like

__all__ = [
    "CUBLAS_COMPUTE_32F",
    "CUBLAS_COMPUTE_32F_FAST_TF32",
    "CUBLAS_COMPUTE_64F",
    "CUBLAS_GEMM_DEFAULT",
    "CUBLAS_OP_N",
    "CUBLAS_OP_T",
    "gemmEx",
    "gemmStridedBatchedEx",
]

SIGNATURES = by_name(
    "gemmEx(intptr_t handle, int transa, int transb, int m, int n, int k, size_t alpha, "
    "size_t A, int Atype, int lda, size_t B, int Btype, int ldb, size_t beta, "
    "size_t C, int Ctype, int ldc, int computeType, int algo)",
    "gemmStridedBatchedEx(intptr_t handle, int transa, int transb, int m, int n, int k, "
    "size_t alpha, size_t A, int Atype, int lda, long long strideA, "
    "size_t B, int Btype, int ldb, long long strideB, size_t beta, "
    "size_t C, int Ctype, int ldc, long long strideC, int batchCount, int computeType, int algo)",
)
CUBLAS_OP_N, CUBLAS_OP_T = 0, 1
CUBLAS_COMPUTE_32F, CUBLAS_COMPUTE_64F, CUBLAS_COMPUTE_32F_FAST_TF32 = 68, 70, 77
CUBLAS_GEMM_DEFAULT = -1
CUDA_TYPES = {
    "CUDA_R_32F": 0,
    "CUDA_R_64F": 1,
    "CUDA_R_16F": 2,
    "CUDA_R_16BF": 14,
}

_DTYPES = {
    0: np.dtype(np.float32),
    1: np.dtype(np.float64),
    2: np.dtype(np.float16),
    14: np.dtype(ml_dtypes.bfloat16),
}
_COMBINATIONS = {
    CUBLAS_COMPUTE_32F: {(0, 0), (2, 2), (2, 0), (14, 14), (14, 0)},
    CUBLAS_COMPUTE_32F_FAST_TF32: {(0, 0)},
    CUBLAS_COMPUTE_64F: {(1, 1)},
}
"""Types of factors and of the result that go with a compute type, as far as they are used here.

Source: the table of cublasGemmEx in the cuBLAS documentation."""

used = []
"""(type of factors, type of result, compute type) of every product since it was cleared."""


class Matrix(NamedTuple):
    """A matrix in columns, as cuBLAS has them."""

    address: int
    type: int
    leading: int

    def view(self, rows, columns, offset=0):
        dtype = _DTYPES[self.type]
        assert self.leading >= rows, f"leading dimension {self.leading} of {rows} rows"
        count = self.leading * (columns - 1) + rows
        size = count * dtype.itemsize
        memory = (ctypes.c_char * size).from_address(self.address + offset * dtype.itemsize)
        flat = np.frombuffer(memory, dtype=dtype)
        strides = (dtype.itemsize, self.leading * dtype.itemsize)
        return np.lib.stride_tricks.as_strided(flat, (rows, columns), strides)


@like(SIGNATURES)
def gemmEx(
    handle,
    transa,
    transb,
    m,
    n,
    k,
    alpha,
    A,
    Atype,
    lda,
    B,
    Btype,
    ldb,
    beta,
    C,
    Ctype,
    ldc,
    computeType,
    algo,
):
    gemmStridedBatchedEx(
        *(handle, transa, transb, m, n, k, alpha),
        *(A, Atype, lda, 0),
        *(B, Btype, ldb, 0),
        *(beta, C, Ctype, ldc, 0),
        *(1, computeType, algo),
    )


@like(SIGNATURES)
def gemmStridedBatchedEx(
    handle,
    transa,
    transb,
    m,
    n,
    k,
    alpha,
    A,
    Atype,
    lda,
    strideA,
    B,
    Btype,
    ldb,
    strideB,
    beta,
    C,
    Ctype,
    ldc,
    strideC,
    batchCount,
    computeType,
    algo,
):
    assert handle == HANDLE
    assert algo == CUBLAS_GEMM_DEFAULT
    assert Atype == Btype, "both factors must have one type"
    assert (Atype, Ctype) in _COMBINATIONS[computeType], f"no product {Atype} to {Ctype}"
    used.append((Atype, Ctype, computeType))
    wide = np.float64 if computeType == CUBLAS_COMPUTE_64F else np.float32
    alpha, beta = (_scalar(address, wide) for address in (alpha, beta))
    for index in range(batchCount):
        a = _factor(Matrix(A, Atype, lda), m, k, transa, index * strideA).astype(wide)
        b = _factor(Matrix(B, Btype, ldb), k, n, transb, index * strideB).astype(wide)
        if computeType == CUBLAS_COMPUTE_32F_FAST_TF32:
            a, b = _tf32(a), _tf32(b)
        c = Matrix(C, Ctype, ldc).view(m, n, index * strideC)
        product = alpha * (a @ b)
        # With beta = 0 the result is not read: it may be NaN.
        c[...] = (product if beta == 0 else product + beta * c.astype(wide)).astype(c.dtype)


HANDLE = 4711
"""What `cupy.cuda.device.get_cublas_handle` gives."""


def _factor(matrix, rows, columns, transposed, offset):
    assert transposed in (CUBLAS_OP_N, CUBLAS_OP_T)
    if transposed == CUBLAS_OP_T:
        return matrix.view(columns, rows, offset).T
    return matrix.view(rows, columns, offset)


def _scalar(address, dtype):
    kind = ctypes.c_double if dtype is np.float64 else ctypes.c_float
    return dtype(kind.from_address(address).value)


def _tf32(x):
    """Rounded to 10 bits after the point, as the tensor cores take float32."""
    bits = x.astype(np.float32).view(np.uint32)
    return ((bits + np.uint32(0x0FFF) + ((bits >> 13) & 1)) & np.uint32(0xFFFFE000)).view(
        np.float32
    )
