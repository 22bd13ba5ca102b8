"""The linear map."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from siglip_ref.primitives import dense_bwd, dense_fwd
from strategies import dense_params, distinct, seeds


@given(distinct("n", "m", "d_in", "d_out"), seeds)
def test_any_number_of_leading_axes_gives_the_rows_by_themselves(sizes, seed):
    n, m, d_in, d_out = sizes.values()
    rng = np.random.default_rng(seed)
    x, params = rng.standard_normal((n, m, d_in)), dense_params(rng, d_in, d_out)
    out, _ = dense_fwd(x, params)
    for i in range(n):
        for j in range(m):
            row, _ = dense_fwd(x[i, j, :], params)
            np.testing.assert_allclose(out[i, j, :], row, rtol=0, atol=1e-14 * np.max(np.abs(out)))


@given(st.integers(1, 5), seeds)
def test_the_bias_gradient_of_many_rows_is_their_sum_even_in_float16(d, seed):
    # 4,096 ones: a running sum in float16 stops at 2,048.
    x = np.random.default_rng(seed).standard_normal((4096, 2)).astype(np.float16)
    params = {"kernel": np.ones((2, d), np.float16), "bias": np.zeros(d, np.float16)}
    _, res = dense_fwd(x, params)
    _, dparams = dense_bwd(res, np.ones((4096, d), np.float16))
    assert np.all(dparams["bias"] == 4096)
