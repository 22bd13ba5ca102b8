"""The softmax."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from derivatives import Case, run
from siglip_ref.primitives import softmax_bwd, softmax_fwd
from strategies import distinct, seeds


@given(distinct("n", "m", "d"), seeds)
def test_rows_are_probabilities_in_the_order_of_their_logits(sizes, seed):
    x = 5 * np.random.default_rng(seed).standard_normal(tuple(sizes.values()))
    out, _ = softmax_fwd(x)
    assert np.all(out > 0)
    np.testing.assert_allclose(np.sum(out, axis=-1), 1, rtol=1e-15 * 4)
    np.testing.assert_array_equal(np.argsort(out, axis=-1), np.argsort(x, axis=-1))


@given(st.integers(-1000, 1000), seeds)
def test_a_shift_of_a_row_changes_nothing(shift, seed):
    # Eighths: the shifted logits are exact.
    x = np.random.default_rng(seed).integers(-40, 40, (3, 5)) / 8
    np.testing.assert_array_equal(softmax_fwd(x + shift)[0], softmax_fwd(x)[0])


@given(distinct("n", "d", d=2), seeds)
def test_the_gradient_of_a_row_sums_to_zero(sizes, seed):
    rng = np.random.default_rng(seed)
    shape = tuple(sizes.values())
    _, res = softmax_fwd(rng.standard_normal(shape))
    dx = softmax_bwd(res, rng.standard_normal(shape))
    np.testing.assert_allclose(np.sum(dx, axis=-1), 0, atol=1e-15)


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
def test_logits_of_ten_thousand_give_exact_shares(backend, dtype):
    x = np.asarray([[1e4, -1e4, 0.0], [1e4, 1e4, -1e4], [-1e4, -1e4, -1e4]])
    out, gradients = run(
        Case(softmax_fwd, softmax_bwd, {"x": x}), np.asarray([[1.0, 2, 3]] * 3), backend, dtype
    )
    third = 1 / 3
    np.testing.assert_allclose(out, [[1, 0, 0], [0.5, 0.5, 0], [third] * 3], rtol=2e-7)
    want = [[0, 0, 0], [-0.25, 0.25, 0], [-third, 0, third]]
    np.testing.assert_allclose(gradients["x"], want, rtol=0, atol=2e-7)
