"""NumPy's forms in place: what the formulas of the core give, for arrays of their type only."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import siglip_ref as sr
from siglip_numpy import ThreadedNumpyBackend
from siglip_numpy.forms import BLOCK, FORMS, LARGEST_SCORE, HostArray
from siglip_ref.encoders.mlp import MlpResiduals, mlp_bwd, mlp_fwd
from siglip_ref.fused import formula_of, register_form
from siglip_ref.primitives import (
    dot_product_attention_bwd,
    dot_product_attention_fwd,
    gelu_tanh_bwd,
    layer_norm_bwd,
    layer_norm_fwd,
)
from siglip_ref.primitives.dense import DenseResiduals
from siglip_ref.primitives.gelu_tanh import gelu_tanh
from siglip_ref.tree import flatten, tree_map
from siglip_spec import check_subject
from strategies import mlp_params, random_params, seeds, tower_configs
from subjects.core import CoreSubject

BACKEND = ThreadedNumpyBackend()
sizes = st.sampled_from([1, 7, BLOCK - 1, BLOCK, BLOCK + 3])


@dataclass(frozen=True)
class HostSubject(CoreSubject):
    """`siglip_ref` on the arrays of the NumPy backend."""

    def _native(self, array):
        return np.asarray(super()._native(array)).view(HostArray)


def on_host(*arrays):
    return tuple(BACKEND.asarray(x) for x in arrays)


def hosted(x):
    return np.asarray(x).view(HostArray)


def assert_near(got, want, factor=1.0):
    tolerance = factor * 4e-15 * max(1, np.max(np.abs(want)))
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_the_vectors_of_the_kit_are_met(dtype):
    subject = HostSubject("the NumPy backend", "numpy", "numpy", dtype)
    report = check_subject(subject, ["primitives", "image", "text", "model", "accuracy"])
    failed = [record for record in report.records if record.status == "failed"]
    assert report.ok, failed[:3]
    assert any(record.status == "passed" for record in report.records)


@given(sizes, seeds)
def test_gelu_and_its_slope_are_the_formulas_whatever_the_blocks(size, seed):
    x = 4 * np.random.default_rng(seed).standard_normal(size)
    x.flags.writeable = False
    function, slope = function_and_slope(x)
    assert_near(function, formula_of(gelu_tanh)(x))
    assert_near(gelu_tanh(x.view(HostArray)), function)
    # 1 - s loses digits where s is near 1, in the formula and in the form.
    assert_near(slope, formula_of(gelu_tanh_bwd)(x, np.ones_like(x)), 4)


def function_and_slope(x):
    """GELU and its derivative, as the gradients of a perceptron with one input and output."""
    one, ones = hosted(np.ones((1, 1), dtype=x.dtype)), hosted(np.ones_like(x))
    dense_0 = DenseResiduals(one, {"kernel": ones[None], "bias": ones})
    dense_1 = {"kernel": ones[:, None], "bias": one[0]}
    _, gradients = mlp_bwd(MlpResiduals(dense_0, hosted(x)[None], dense_1), one)
    return gradients["dense_1"]["kernel"][:, 0], gradients["dense_0"]["bias"]


@given(seeds, st.integers(1, 9), st.integers(1, 9), st.integers(1, 9))
def test_the_perceptron_and_its_gradients_are_the_formulas(seed, n, d, f):
    rng = np.random.default_rng(seed)
    x, dout = rng.standard_normal((2, 2, n, d))
    params = mlp_params(rng, d, f)
    out, res = mlp_fwd(hosted(x), tree_map(hosted, params))
    want_out, want_res = mlp_fwd(x, params)
    assert_near(out, want_out, 8)
    dx, got = mlp_bwd(res, hosted(dout))
    want_dx, want = formula_of(mlp_bwd)(want_res, dout)
    assert_near(dx, want_dx, 8)
    for path, leaf in flatten(want).items():
        assert_near(flatten(got)[path], leaf, 8)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gelu_keeps_its_tails(dtype):
    x = np.asarray([-200, -30, -12, -5.3, -1e-30, 0, 1e-30, 12, 200, 1e5], dtype=dtype)
    # The formula stops at the smallest exponential, e / max, where the form goes on to 0.
    end = 1.1 * 200 * math.e / np.finfo(dtype).max
    with np.errstate(under="ignore"):
        (function, slope), want = function_and_slope(x), formula_of(gelu_tanh)(x)
        # At x = -12 the exponent is -143, and its rounding 143 times that of the exponential.
        np.testing.assert_allclose(function, want, rtol=2 * 143 * np.finfo(dtype).eps, atol=end)
        wanted = formula_of(gelu_tanh_bwd)(x, np.ones_like(x))
        steepest = 2 * math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * 200**2)
        tolerance = {"rtol": 200 * np.finfo(dtype).eps, "atol": end * steepest}
        np.testing.assert_allclose(slope, wanted, **tolerance)


@given(seeds, st.integers(1, 9), st.sampled_from([2, 7, BLOCK // 4]))
def test_layer_norm_and_its_gradients_are_the_formulas_whatever_the_blocks(seed, n, d):
    rng = np.random.default_rng(seed)
    x, dout = rng.standard_normal((2, n, d)) + 3, rng.standard_normal((2, n, d))
    params = {name: rng.standard_normal(d) for name in ("scale", "bias")}
    out, res = layer_norm_fwd(x.view(HostArray), tree_map(hosted, params), 1e-1)
    want, wanted_res = formula_of(layer_norm_fwd)(x, params, 1e-1)
    # In another order of the sums over up to 65,536 numbers.
    assert_near(out, want, 8)
    dx, dparams = layer_norm_bwd(res, dout.view(HostArray))
    wanted_dx, wanted_dparams = formula_of(layer_norm_bwd)(wanted_res, dout)
    assert_near(dx, wanted_dx, 8)
    for name in params:
        assert_near(dparams[name], wanted_dparams[name], 8)


@pytest.mark.parametrize("largest", [1.0, 30.0, 1000.0])
@given(seeds, st.integers(1, 9), st.integers(1, 9), st.integers(1, 9))
def test_attention_and_its_gradients_are_the_formulas_whatever_the_scores(
    largest, seed, n_query, n_key, k
):
    rng = np.random.default_rng(seed)
    shapes = [(2, n_query, 3, k), (2, n_key, 3, k), (2, n_key, 3, k), (2, n_query, 3, k)]
    query, key, value, dout = (rng.standard_normal(s).transpose(0, 2, 1, 3) for s in shapes)
    query *= largest / np.max(np.abs(query))
    arrays = query, key, value
    out, res = dot_product_attention_fwd(*map(hosted, arrays))
    want, wanted_res = formula_of(dot_product_attention_fwd)(*arrays)
    assert_near(out, want, 40)
    found = dot_product_attention_bwd(res, hosted(dout))
    for got, gradient in zip(
        found, formula_of(dot_product_attention_bwd)(wanted_res, dout), strict=True
    ):
        assert_near(got, gradient, 40 * largest)


def test_attention_over_more_scores_than_a_block_holds_goes_image_by_image():
    rng = np.random.default_rng(0)
    shape = (3, 2, math.isqrt(BLOCK // 2) + 5, 4)
    arrays = [rng.standard_normal(shape) for _ in range(4)]
    out, res = dot_product_attention_fwd(*map(hosted, arrays[:3]))
    want, wanted_res = formula_of(dot_product_attention_fwd)(*arrays[:3])
    assert_near(out, want, 40)
    found = dot_product_attention_bwd(res, hosted(arrays[3]))
    wanted = formula_of(dot_product_attention_bwd)(wanted_res, arrays[3])
    for got, gradient in zip(found, wanted, strict=True):
        assert_near(got, gradient, 40)


@pytest.mark.parametrize("largest", [0.99 * LARGEST_SCORE, 1.01 * LARGEST_SCORE])
def test_scores_at_the_ends_of_what_needs_no_shift_keep_their_digits_in_float32(largest):
    # One row whose scores are all at the lower end, and one with both ends.
    ends = math.sqrt(largest)
    query, key = np.asarray([[-ends], [ends]]), np.asarray([[ends], [ends - 1e-3], [0.3]])
    value, dout = np.asarray([[1.0], [-2.0], [3.0]]), np.asarray([[1.0], [1.0]])
    arrays = [x[None, None].astype(np.float32) for x in (query, key, value, dout)]
    wide = [x.astype(np.float64) for x in arrays]
    out, res = dot_product_attention_fwd(*map(hosted, arrays[:3]))
    want, wanted_res = formula_of(dot_product_attention_fwd)(*wide[:3])
    # A score of 40 in float32 is off by 2e-6.
    np.testing.assert_allclose(out, want, rtol=1e-5)
    found = dot_product_attention_bwd(res, hosted(arrays[3]))
    wanted = formula_of(dot_product_attention_bwd)(wanted_res, wide[3])
    for got, gradient in zip(found, wanted, strict=True):
        # Sums that cancel, of terms up to 10, each with the error of its score.
        np.testing.assert_allclose(got, gradient, rtol=0, atol=2e-5)


def test_a_whole_step_of_the_backend_takes_every_form_and_a_plain_one_none():
    taken = []
    for operation, form in FORMS.items():
        register_form(operation, HostArray, counting(taken, form))
    config = tower_configs()
    rng = np.random.default_rng(0)
    params = random_params(config, rng)
    size, length = config.image.image_size, config.text.context_length
    images, tokens = rng.uniform(-1, 1, (3, size, size, 3)), rng.integers(0, 11, (3, length))
    try:
        want = sr.loss_and_grads(params, images, tokens, config)
        assert taken == []
        hosted = tree_map(BACKEND.asarray, params)
        loss, grads = sr.loss_and_grads(hosted, *on_host(images, tokens), config)
    finally:
        for operation, form in FORMS.items():
            register_form(operation, HostArray, form)
    assert set(taken) == {form.__name__ for form in FORMS.values()}
    assert abs(loss - want[0]) <= 1e-14 * want[0]
    for path, leaf in flatten(want[1]).items():
        np.testing.assert_allclose(flatten(grads)[path], leaf, rtol=0, atol=1e-13, err_msg=path)


def counting(taken, form):
    def counted(*args):
        taken.append(form.__name__)
        return form(*args)

    return counted
