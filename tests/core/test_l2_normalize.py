"""Division by the norm."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from derivatives import Case, run
from siglip_ref.primitives import l2_normalize_bwd, l2_normalize_fwd
from strategies import distinct, seeds

EPS = 1e-8


@given(distinct("n", "m", "d"), seeds, st.floats(1e-3, 1e3))
def test_rows_have_the_norm_of_one_but_for_eps(sizes, seed, length):
    x = length * np.random.default_rng(seed).standard_normal(tuple(sizes.values()))
    norm = np.linalg.norm(x, axis=-1)
    out, _ = l2_normalize_fwd(x, EPS)
    np.testing.assert_allclose(np.linalg.norm(out, axis=-1), norm / (norm + EPS), rtol=1e-15 * 4)


@given(distinct("n", "d", d=2), seeds)
def test_without_eps_the_gradient_is_perpendicular_to_the_row(sizes, seed):
    rng = np.random.default_rng(seed)
    x, dout = (rng.standard_normal(tuple(sizes.values())) for _ in range(2))
    _, res = l2_normalize_fwd(x, 0.0)
    dx = l2_normalize_bwd(res, dout)
    scale = np.linalg.norm(dout, axis=-1)
    assert np.all(np.abs(np.sum(x * dx, axis=-1)) <= 1e-14 * scale)


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
def test_a_zero_row_stays_zero_and_has_the_slope_of_one_over_eps(backend, dtype):
    x, dout = np.asarray([[0.0, 0, 0], [3, 0, 4]]), np.asarray([[1.0, -2, 0.5], [0, 1, 0]])
    case = Case(lambda x: l2_normalize_fwd(x, EPS), l2_normalize_bwd, {"x": x})
    out, gradients = run(case, dout, backend, dtype)
    np.testing.assert_allclose(out, [[0, 0, 0], [0.6, 0, 0.8]], rtol=2e-7)
    want = [[1e8, -2e8, 5e7], [0, 0.2, 0]]
    np.testing.assert_allclose(gradients["x"], want, rtol=2e-7, atol=0)


def test_the_norm_of_large_float16_numbers_does_not_overflow():
    out, res = l2_normalize_fwd(np.full((1, 4), 30_000, np.float16), EPS)
    np.testing.assert_array_equal(out, np.full((1, 4), 0.5, np.float16))
    assert np.all(np.isfinite(l2_normalize_bwd(res, np.ones((1, 4), np.float16))))
