"""Layer normalisation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from derivatives import Case, run
from siglip_ref.primitives import layer_norm_bwd, layer_norm_fwd
from strategies import EPS, distinct, norm_params, seeds, spread_rows


def normalise(x, d):
    params = {"scale": np.ones(d), "bias": np.zeros(d)}
    return layer_norm_fwd(x, params, EPS)[0]


@given(distinct("n", "m", "d", most=9, d=3), seeds)
def test_rows_leave_with_mean_zero_and_unit_variance_but_for_eps(sizes, seed):
    n, m, d = sizes.values()
    x = spread_rows(np.random.default_rng(seed), n, m, d)
    out = normalise(x, d)
    variance = np.var(x, axis=-1)
    np.testing.assert_allclose(np.mean(out, axis=-1), 0, atol=1e-14)
    np.testing.assert_allclose(np.var(out, axis=-1), variance / (variance + EPS), rtol=1e-13)


@given(st.floats(-100, 100), st.floats(0.5, 100), seeds)
def test_a_shift_of_the_rows_changes_nothing_and_a_factor_only_the_share_of_eps(
    shift, factor, seed
):
    x = spread_rows(np.random.default_rng(seed), 2, 5)
    out = normalise(x, 5)
    np.testing.assert_allclose(normalise(x + shift, 5), out, rtol=0, atol=1e-12)
    # |d out / d eps| <= out / (2 σ²) with out <= 2 and σ >= 1/4.
    np.testing.assert_allclose(normalise(factor * x, 5), out, rtol=0, atol=16 * EPS)


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("constant", [0.0, -7.0, 0.1, 1e4, -1e4])
def test_a_constant_row_becomes_the_bias_and_its_gradient_is_finite(backend, dtype, constant):
    rng = np.random.default_rng(0)
    params, dout = norm_params(rng, 5), rng.standard_normal((2, 5)).astype(np.float32)
    case = Case(
        lambda x, params: layer_norm_fwd(x, params, EPS),
        layer_norm_bwd,
        {"x": np.full((2, 5), constant, dtype).astype(np.float64), "params": params},
    )
    out, gradients = run(case, dout, backend, dtype)
    np.testing.assert_array_equal(out, np.broadcast_to(params["bias"].astype(dtype), (2, 5)))
    # Where x̂ = 0: dx = (dx̂ - mean(dx̂)) / sqrt(eps).
    dnormalized = dout.astype(np.float64) * params["scale"]
    want = (dnormalized - dnormalized.mean(axis=-1, keepdims=True)) / np.sqrt(EPS)
    tolerance = 16 * np.finfo(dtype).eps * np.max(np.abs(want))
    np.testing.assert_allclose(gradients["x"], want, rtol=0, atol=tolerance)


@given(seeds)
def test_a_large_mean_costs_float32_no_more_than_the_rounding_of_the_inputs(seed):
    # Deviations of 1 about 4,096 in float32: E[x²] - E[x]² would be wrong in the first digit.
    rng = np.random.default_rng(seed)
    x = (4096 + rng.standard_normal((3, 64))).astype(np.float32)
    ones, zeros = np.ones(64, np.float32), np.zeros(64, np.float32)
    got, _ = layer_norm_fwd(x, {"scale": ones, "bias": zeros}, EPS)
    want = normalise(x.astype(np.float64), 64)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)


def test_the_variance_of_many_float16_numbers_does_not_overflow():
    x = np.tile(np.asarray([300.0, -300.0], np.float16), 512)[None, :]
    out, res = layer_norm_fwd(
        x, {"scale": np.ones(1024, np.float16), "bias": np.zeros(1024, np.float16)}, EPS
    )
    np.testing.assert_array_equal(out, np.sign(x))
    dx, _ = layer_norm_bwd(res, np.ones_like(x))
    np.testing.assert_array_equal(dx, np.zeros_like(x))
