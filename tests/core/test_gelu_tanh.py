"""The Gaussian error linear unit in its tanh form."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from derivatives import Case, run
from siglip_ref.primitives import gelu_tanh_bwd, gelu_tanh_fwd


@given(st.floats(-8, 8))
def test_it_is_the_tanh_formula(x):
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    out, _ = gelu_tanh_fwd(np.asarray([x]))
    # 1 + tanh cancels in the left tail of the formula as printed: absolute there.
    assert abs(out[0] - 0.5 * x * (1 + math.tanh(inner))) <= 1e-15 * max(1, abs(x))


@given(st.floats(0, 30))
def test_the_sides_differ_by_the_argument(x):
    right, left = gelu_tanh_fwd(np.asarray([x, -x]))[0]
    assert math.isclose(right - left, x, rel_tol=1e-15, abs_tol=1e-300)


def test_it_is_not_the_erf_form():
    x = np.linspace(-6, 6, 4001)
    erf_form = np.asarray([v / 2 * (1 + math.erf(v / math.sqrt(2))) for v in x])
    largest = np.max(np.abs(gelu_tanh_fwd(x)[0] - erf_form))
    assert 4.7e-4 < largest < 4.8e-4


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
def test_far_out_it_is_the_identity_or_zero_with_slope_one_or_zero(backend, dtype):
    x = np.asarray([1e4, -1e4, 50.0, -50.0, 0.0])
    out, gradients = run(Case(gelu_tanh_fwd, gelu_tanh_bwd, {"x": x}), np.ones(5), backend, dtype)
    # The smallest float32 sigmoid, 1e-38, times the slope of its argument, up to 1e11.
    np.testing.assert_allclose(out, [1e4, 0, 50, 0, 0], rtol=0, atol=1e-26)
    np.testing.assert_allclose(gradients["x"], [1, 0, 1, 0, 0.5], rtol=0, atol=1e-26)
