"""The dtypes, and how near numbers of each must be."""

import ml_dtypes
import numpy as np
import pytest

from backends import map_arrays

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = {
    "float64": np.dtype(np.float64),
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": BFLOAT16,
}
UNIT = {name: float(ml_dtypes.finfo(dtype).eps) / 2 for name, dtype in DTYPES.items()}
ULPS = 64
"""Of the largest element, as on every other backend (tests/core/test_every_backend.py)."""

of_every_dtype = pytest.mark.parametrize("dtype", DTYPES)


def assert_near(got, want, dtype, path, scale=None):
    """Within units of rounding of `dtype`, of the largest element wanted."""
    got, want = got.astype(np.float64), np.asarray(want, dtype=np.float64)
    assert got.shape == want.shape, path
    scale = np.max(np.abs(want)) if scale is None else scale
    error = np.max(np.abs(got - want)) / (UNIT[dtype] * scale)
    assert error <= ULPS, f"{path}: off by {error:.3g} units of rounding"


def rounded(tree, dtype):
    """The nearest numbers of `dtype`, in float64."""
    return map_arrays(lambda x: x.astype(DTYPES[dtype]).astype(np.float64), tree)
