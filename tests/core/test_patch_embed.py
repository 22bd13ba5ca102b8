"""Images to tokens."""

import numpy as np
import pytest
from hypothesis import given

from siglip_ref.primitives import patch_embed_bwd, patch_embed_fwd
from strategies import dense_params, distinct, seeds

SIZES = distinct("n", "rows", "columns", "d", "p", most=6)


@given(SIZES, seeds)
def test_it_is_the_strided_convolution_without_padding(sizes, seed):
    n, rows, columns, d, p = sizes.values()
    rng = np.random.default_rng(seed)
    images = rng.uniform(-1, 1, (n, rows * p, columns * p, 3))
    params = dense_params(rng, p * p * 3, d)
    tokens, _ = patch_embed_fwd(images, params)
    kernel = params["kernel"].reshape(p, p, 3, d)
    for i in range(rows):
        for j in range(columns):
            patch = images[:, i * p : (i + 1) * p, j * p : (j + 1) * p, :]
            want = np.einsum("nrsc,rscd->nd", patch, kernel) + params["bias"]
            np.testing.assert_allclose(tokens[:, i * columns + j, :], want, rtol=0, atol=1e-13)


@given(SIZES, seeds)
def test_pixels_that_fill_no_patch_are_dropped_and_have_no_gradient(sizes, seed):
    n, rows, columns, d, p = sizes.values()
    rng = np.random.default_rng(seed)
    images = rng.uniform(-1, 1, (n, rows * p + p - 1, columns * p + p // 2, 3))
    params = dense_params(rng, p * p * 3, d)
    tokens, res = patch_embed_fwd(images, params)
    kept = images[:, : rows * p, : columns * p, :]
    whole_tokens, whole_res = patch_embed_fwd(kept, params)
    np.testing.assert_array_equal(tokens, whole_tokens)

    dout = rng.standard_normal(tokens.shape)
    dimages, dparams = patch_embed_bwd(res, dout)
    dkept, whole_dparams = patch_embed_bwd(whole_res, dout)
    assert dimages.shape == images.shape
    np.testing.assert_array_equal(dimages[:, : rows * p, : columns * p, :], dkept)
    assert np.count_nonzero(dimages) == np.count_nonzero(dkept)
    for name in ("kernel", "bias"):
        np.testing.assert_array_equal(dparams[name], whole_dparams[name])


@pytest.mark.parametrize(("pixels", "tokens"), [(384, 27 * 27), (378, 27 * 27), (224, 16 * 16)])
def test_patches_of_14_pixels_leave_6_of_384_over(pixels, tokens):
    params = {"kernel": np.ones((14 * 14 * 3, 1)), "bias": np.zeros(1)}
    out, _ = patch_embed_fwd(np.ones((1, pixels, pixels, 3)), params)
    assert out.shape == (1, tokens, 1)
