"""The token table and its scatter-add."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from derivatives import Case, run
from siglip_ref.primitives import embed_bwd, embed_fwd
from strategies import distinct, seeds

SIZES = distinct("n", "m", "d", "v", most=12)


@given(SIZES, seeds)
def test_each_position_is_the_row_of_its_token(sizes, seed):
    n, m, d, v = sizes.values()
    rng = np.random.default_rng(seed)
    tokens, table = rng.integers(0, v, (n, m)), rng.standard_normal((v, d))
    out, _ = embed_fwd(tokens, table)
    np.testing.assert_array_equal(out, table[tokens])


@given(SIZES, seeds)
def test_the_gradient_is_the_scatter_add(sizes, seed):
    n, m, d, v = sizes.values()
    rng = np.random.default_rng(seed)
    tokens, table = rng.integers(0, v, (n, m)), rng.standard_normal((v, d))
    _, res = embed_fwd(tokens, table)
    # Integers: every order of the sums gives the same bits.
    dout = rng.integers(-9, 9, (n, m, d)).astype(np.float64)
    want = np.zeros_like(table)
    np.add.at(want, tokens, dout)
    np.testing.assert_array_equal(embed_bwd(res, dout), want)


@given(st.integers(1, 300), st.sampled_from([0, 3, 6]))
def test_one_token_everywhere_collects_everything(count, token):
    _, res = embed_fwd(np.full((1, count), token), np.zeros((7, 2)))
    got = embed_bwd(res, np.ones((1, count, 2)))
    want = np.zeros((7, 2))
    want[token] = count
    np.testing.assert_array_equal(got, want)


def test_many_float32_positions_of_one_token_sum_without_drift():
    # A running float32 sum of 2^16 tenths is off by 2e-4 relative; the pairwise one by rounding.
    _, res = embed_fwd(np.zeros((1, 2**16), np.int64), np.zeros((1, 1), np.float32))
    got = embed_bwd(res, np.full((1, 2**16, 1), 0.1, np.float32))
    np.testing.assert_allclose(got, 2**16 * float(np.float32(0.1)), rtol=1e-6)


@pytest.mark.parametrize("integer", [np.int32, np.int64])
def test_the_scatter_add_is_the_same_everywhere(backend, integer):
    tokens = backend.asarray(np.asarray([[6, 0, 3, 6, 1], [3, 3, 0, 6, 5]], integer))
    rng = np.random.default_rng(0)
    table, dout = rng.standard_normal((7, 3)), rng.integers(-9, 9, (2, 5, 3))
    out, gradients = run(
        Case(lambda table: embed_fwd(tokens, table), embed_bwd, {"embedding": table}), dout, backend
    )
    np.testing.assert_array_equal(out, table[backend.to_numpy(tokens)])
    want = np.zeros_like(table)
    np.add.at(want, backend.to_numpy(tokens), dout)
    np.testing.assert_array_equal(gradients["embedding"], want)
