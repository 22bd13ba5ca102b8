"""The softplus, the log-sigmoid and the sigmoid."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from derivatives import Case, run
from siglip_ref.primitives import (
    log_sigmoid_bwd,
    log_sigmoid_fwd,
    sigmoid,
    softplus_bwd,
    softplus_fwd,
)

EXTREMES = np.asarray([1e4, -1e4, 100.0, 0.0])
DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])


@given(st.floats(-30, 30))
def test_softplus_is_the_logarithm_of_one_plus_the_exponential(x):
    out, _ = softplus_fwd(np.asarray([x]))
    assert math.isclose(out[0], math.log1p(math.exp(x)), rel_tol=4e-15)


@given(st.floats(-700, 700))
def test_softplus_of_both_signs_differs_by_the_argument(x):
    right, left = softplus_fwd(np.asarray([x, -x]))[0]
    assert abs(right - left - x) <= 4e-16 * max(1, abs(x))


@given(st.floats(-700, 700))
def test_the_log_sigmoid_is_the_softplus_of_the_other_sign_negated(x):
    ours, _ = log_sigmoid_fwd(np.asarray([x]))
    assert ours[0] == -softplus_fwd(np.asarray([-x]))[0][0]


@given(st.floats(-700, 700))
def test_the_sigmoid_is_the_exponential_of_the_log_sigmoid(x):
    log, _ = log_sigmoid_fwd(np.asarray([x]))
    # exp turns the rounding of its argument into a relative error of the same size.
    assert math.isclose(sigmoid(np.asarray([x]))[0], math.exp(log[0]), rel_tol=4e-16 * (4 + abs(x)))


@DTYPES
def test_softplus_is_exact_at_ten_thousand(backend, dtype):
    case = Case(softplus_fwd, softplus_bwd, {"x": EXTREMES})
    out, gradients = run(case, np.full(4, 3.0), backend, dtype)
    np.testing.assert_allclose(out, [1e4, 0, 100, math.log(2)], rtol=1e-7, atol=0)
    np.testing.assert_allclose(gradients["x"], [3, 0, 3, 1.5], rtol=1e-7, atol=1e-37)


@DTYPES
def test_the_log_sigmoid_is_exact_at_ten_thousand(backend, dtype):
    case = Case(log_sigmoid_fwd, log_sigmoid_bwd, {"x": EXTREMES})
    out, gradients = run(case, np.full(4, 3.0), backend, dtype)
    np.testing.assert_allclose(out, [0, -1e4, -math.exp(-100), -math.log(2)], rtol=1e-6, atol=1e-37)
    np.testing.assert_allclose(gradients["x"], [0, 3, 0, 1.5], rtol=1e-7, atol=1e-37)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_sigmoid_neither_overflows_nor_leaves_the_unit_interval(dtype):
    largest = np.finfo(dtype).max
    x = np.asarray([-largest, -1e4, -1.0, 0.0, 1.0, 1e4, largest], dtype)
    y = sigmoid(x)
    assert y.dtype == dtype
    assert np.all(np.diff(y) >= 0)
    assert 0 <= y[0] <= np.finfo(dtype).tiny * 8
    assert y[3] == 0.5
    assert y[-1] == 1


@pytest.mark.parametrize("x", np.linspace(-80, 80, 33))
def test_the_sigmoid_keeps_its_relative_accuracy_in_float32(x):
    x = np.float32(x)
    want = 1 / (1 + math.exp(-float(x)))
    assert math.isclose(sigmoid(np.asarray([x]))[0], want, rel_tol=4e-7)
