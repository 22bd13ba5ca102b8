"""Dot-product and multi-head attention."""

import numpy as np
import pytest
from hypothesis import given

from derivatives import Case, run
from siglip_ref.primitives import (
    dot_product_attention_bwd,
    dot_product_attention_fwd,
    multi_head_attention_bwd,
    multi_head_attention_fwd,
)
from strategies import attention_params, distinct, seeds

SIZES = distinct("n", "h", "tokens", "m", "k", most=6)


def queries_keys_values(rng, n, h, tokens, m, k):
    return [rng.standard_normal((n, h, length, k)) for length in (tokens, m, m)]


@given(SIZES, seeds)
def test_it_is_the_formula_image_by_image_and_head_by_head(sizes, seed):
    query, key, value = queries_keys_values(np.random.default_rng(seed), **sizes)
    out, _ = dot_product_attention_fwd(query, key, value)
    for i in range(sizes["n"]):
        for j in range(sizes["h"]):
            scores = np.exp(query[i, j] @ key[i, j].T / np.sqrt(sizes["k"]))
            want = scores @ value[i, j] / scores.sum(axis=1, keepdims=True)
            np.testing.assert_allclose(out[i, j], want, rtol=0, atol=1e-13)


@given(SIZES, seeds)
def test_the_order_of_keys_and_values_does_not_matter(sizes, seed):
    rng = np.random.default_rng(seed)
    query, key, value = queries_keys_values(rng, **sizes)
    order = rng.permutation(sizes["m"])
    out, _ = dot_product_attention_fwd(query, key, value)
    other, _ = dot_product_attention_fwd(query, key[:, :, order, :], value[:, :, order, :])
    np.testing.assert_allclose(other, out, rtol=0, atol=1e-13)


@given(SIZES, seeds)
def test_equal_keys_average_the_values(sizes, seed):
    query, key, value = queries_keys_values(np.random.default_rng(seed), **sizes)
    out, _ = dot_product_attention_fwd(query, np.zeros_like(key), value)
    want = np.broadcast_to(value.mean(axis=2, keepdims=True), out.shape)
    np.testing.assert_allclose(out, want, rtol=0, atol=1e-14)


@given(distinct("n", "h", "tokens", "m", "k", most=6), seeds)
def test_heads_are_contiguous_slices_of_the_width(sizes, seed):
    n, h, tokens, m, k = sizes.values()
    rng = np.random.default_rng(seed)
    params = attention_params(rng, h * k)
    x, y = rng.standard_normal((n, tokens, h * k)), rng.standard_normal((n, m, h * k))
    out, _ = multi_head_attention_fwd(x, y, params, h)
    want = params["out"]["bias"]
    for head in range(h):
        cut = slice(head * k, (head + 1) * k)
        query, key, value = (
            (source @ params[name]["kernel"] + params[name]["bias"])[:, None, :, cut]
            for source, name in ((x, "query"), (y, "key"), (y, "value"))
        )
        attended, _ = dot_product_attention_fwd(query, key, value)
        want = want + attended[:, 0] @ params["out"]["kernel"][cut, :]
    np.testing.assert_allclose(out, want, rtol=0, atol=1e-12)


@given(distinct("n", "m", "h", "k", most=5), seeds)
def test_the_gradient_of_a_key_bias_vanishes_as_a_softmax_sees_no_shift(sizes, seed):
    n, m, h, k = sizes.values()
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, m, h * k))
    _, res = multi_head_attention_fwd(x, x, attention_params(rng, h * k), h)
    _, _, dparams = multi_head_attention_bwd(res, rng.standard_normal(x.shape))
    assert np.max(np.abs(dparams["key"]["bias"])) <= 1e-13 * np.max(
        np.abs(dparams["value"]["bias"])
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
def test_scores_of_ten_thousand_pick_one_value_and_stop_the_gradient(backend, dtype):
    # k = 1: the scores are the products, ±1e4.
    inputs = {
        "query": np.asarray([[[[100.0], [-100.0]]]]),
        "key": np.asarray([[[[100.0], [-100.0], [0.0]]]]),
        "value": np.asarray([[[[2.0], [3.0], [5.0]]]]),
    }
    case = Case(dot_product_attention_fwd, dot_product_attention_bwd, inputs)
    out, gradients = run(case, np.asarray([[[[1.0], [-1.0]]]]), backend, dtype)
    np.testing.assert_array_equal(out, [[[[2], [3]]]])
    np.testing.assert_array_equal(gradients["query"], np.zeros((1, 1, 2, 1)))
    np.testing.assert_array_equal(gradients["key"], np.zeros((1, 1, 3, 1)))
    np.testing.assert_array_equal(gradients["value"], [[[[1], [-1], [0]]]])
