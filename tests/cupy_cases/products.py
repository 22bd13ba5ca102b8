"""Matrix products in chosen dtypes, and arrays that go to the device and come back."""

import sys

import numpy as np
import pytest

from cupy_cases.numbers import DTYPES, UNIT, of_every_dtype


@of_every_dtype
@pytest.mark.parametrize("batch", [(), (3,)], ids=["one", "batch"])
@pytest.mark.parametrize("swapped", ["none", "a", "b", "both"])
def test_a_product_takes_transposed_and_cut_out_factors(
    dtype, batch, swapped, adapter, cupy_backend
):
    gemm = sys.modules["siglip_cupy.gemm"].gemm
    rng = np.random.default_rng(5)

    def factor(rows, columns, turned):
        shape = (*batch, columns, rows) if turned else (*batch, rows, columns)
        host = rng.standard_normal((*shape[:-1], shape[-1] + 2)).astype(DTYPES[dtype])
        there = cupy_backend.asarray(host)[..., : shape[-1]]
        host = host[..., : shape[-1]]
        return (host.swapaxes(-1, -2), there.swapaxes(-1, -2)) if turned else (host, there)

    a, a_there = factor(4, 5, swapped in ("a", "both"))
    b, b_there = factor(5, 6, swapped in ("b", "both"))
    wide = np.float64 if dtype == "float64" else np.float32
    start = rng.standard_normal((*batch, 4, 6)).astype(wide)
    out = cupy_backend.asarray(start)
    gemm(a_there, b_there, out, alpha=0.5, beta=2.0)
    want = 0.5 * (a.astype(np.float64) @ b.astype(np.float64)) + 2.0 * start
    np.testing.assert_allclose(
        cupy_backend.to_numpy(out),
        want,
        rtol=0,
        atol=8 * 5 * UNIT["float64" if wide is np.float64 else "float32"],
    )


def test_a_product_that_does_not_fit_is_refused(adapter, cupy_backend):
    gemm = sys.modules["siglip_cupy.gemm"].gemm
    a, b, out = (cupy_backend.asarray(np.zeros(shape)) for shape in ((2, 3), (3, 4), (2, 4)))
    with pytest.raises(ValueError, match=r"must be matrices that fit, got \(2, 3\) and \(2, 4\)"):
        gemm(a, out, out)
    with pytest.raises(ValueError, match=r"the shape \(2, 4\), got \(3, 4\)"):
        gemm(a, b, b)
    with pytest.raises(ValueError, match="got float64, float32 and float64"):
        gemm(a, b.astype(np.float32), out)


def test_arrays_come_back_as_they_went(cupy_backend):
    for dtype in (*DTYPES.values(), np.dtype(np.int32), np.dtype(bool)):
        for shape in ((), (3,), (2, 0), (2, 3)):
            x = np.ones(shape, dtype=dtype)
            back = cupy_backend.to_numpy(cupy_backend.asarray(x))
            assert back.dtype == x.dtype
            assert back.shape == x.shape
            assert back.tobytes() == x.tobytes()
