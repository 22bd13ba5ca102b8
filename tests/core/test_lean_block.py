"""The forms of a block that keep less: the bits of the formula, from fewer arrays."""

import numpy as np
import pytest
from hypothesis import given

from siglip_ref.encoders.block import block_bwd, block_fwd, block_probes
from siglip_ref.encoders.lean_block import lean_backward, lean_forward
from siglip_ref.tree import flatten
from strategies import EPS, block_params, distinct, seeds


def arrays(residuals):
    """The arrays in residuals, each once."""
    if isinstance(residuals, tuple):
        return {key: leaf for part in residuals for key, leaf in arrays(part).items()}
    return {id(residuals): residuals} if isinstance(residuals, np.ndarray) else {}


@given(distinct("n", "m", "d", most=6), seeds)
def test_the_output_and_every_gradient_keep_their_bits(sizes, seed):
    n, length, d = sizes["n"], sizes["m"], 2 * sizes["d"]
    rng = np.random.default_rng(seed)
    params, x, dout = block_params(rng, d, 3), *rng.standard_normal((2, n, length, d))
    want, res = block_fwd(x, params, 2, EPS)
    got, lean = lean_forward(x, params, 2, EPS)
    np.testing.assert_array_equal(got, want)
    wanted = block_bwd(res, dout)
    for residuals in (lean, res):
        dx, dparams = lean_backward(residuals, dout)
        np.testing.assert_array_equal(dx, wanted[0])
        for path, leaf in flatten(wanted[1]).items():
            np.testing.assert_array_equal(flatten(dparams)[path], leaf, err_msg=path)


def test_two_arrays_of_the_size_of_the_tokens_are_not_kept():
    rng = np.random.default_rng(0)
    params, x = block_params(rng, 6, 7), rng.standard_normal((2, 5, 6))
    kept, of_lean = (
        sum(leaf.shape == x.shape for leaf in arrays(forward(x, params, 2, EPS)[1]).values())
        for forward in (block_fwd, lean_forward)
    )
    assert of_lean == kept - 2


@pytest.mark.parametrize("forward", [block_fwd, lean_forward])
def test_the_intermediates_of_a_block_are_found_from_either(forward):
    rng = np.random.default_rng(0)
    params, x = block_params(rng, 6, 7), rng.standard_normal((2, 5, 6))
    want = block_probes(x, block_fwd(x, params, 2, EPS)[1])
    for name, value in block_probes(x, forward(x, params, 2, EPS)[1]).items():
        np.testing.assert_array_equal(value, want[name], err_msg=name)
