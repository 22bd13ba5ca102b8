"""Initial parameters: names, shapes and the distributions of big_vision.

The statistics are of one draw of a mid-sized model with a fixed seed, so they pass or fail for
good; limits are five standard errors, which chance exceeds once in two million.
"""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import siglip_ref as sr
from siglip_ref.tree import flatten, tree_map, unflatten

CONFIG = sr.SiglipConfig(
    image=sr.ImageConfig(image_size=62, patch_size=6, width=120, depth=2, mlp_dim=200, num_heads=6),
    text=sr.TextConfig(
        vocab_size=500, context_length=40, width=96, depth=1, mlp_dim=150, num_heads=4, out_dim=120
    ),
)
LEAVES = {
    path: leaf.astype(np.float64)
    for path, leaf in flatten(sr.init_params(CONFIG, np.random.default_rng(7))).items()
}
PATCH, HEAD = "img/patch_embed/kernel", "txt/head/kernel"
XAVIER = [path for path in LEAVES if path.endswith("kernel") and path not in (PATCH, HEAD)]
VECTORS = ["img/pos_embedding", "txt/pos_embedding", "txt/embed/embedding"]
MLP_BIASES = [path for path in LEAVES if "/dense_" in path and path.endswith("bias")]
ZEROS = [path for path in LEAVES if path.endswith("/bias") and path not in MLP_BIASES]
ONES = [path for path in LEAVES if path.endswith("/scale")]


def assert_moments(x, deviation, kurtosis):
    """Mean 0, the given deviation and fourth moment ratio, each within five standard errors."""
    size = x.size
    assert abs(np.mean(x)) <= 5 * deviation / math.sqrt(size)
    # Var(x²) = (kurtosis - 1) σ⁴
    variance_error = 5 * math.sqrt((kurtosis - 1) / size)
    assert abs(np.mean(x**2) / deviation**2 - 1) <= variance_error
    # Var(x⁴) is below 105 σ⁸, the normal's.
    assert abs(np.mean(x**4) / deviation**4 - kurtosis) <= 5 * math.sqrt(105 / size)


def assert_uniform(x, limit):
    """Uniform in ±limit: never beyond, and coming as near as that many draws do."""
    assert np.max(np.abs(x)) <= limit * (1 + 1e-7)
    # The largest of n is below limit (1 - 20/n) once in e²⁰.
    assert np.max(np.abs(x)) >= limit * (1 - 20 / x.size)
    assert_moments(x, limit / math.sqrt(3), 9 / 5)


def test_every_leaf_is_of_one_of_the_listed_distributions():
    listed = [PATCH, HEAD, *XAVIER, *VECTORS, *MLP_BIASES, *ZEROS, *ONES]
    listed += ["img/map_head/probe", "t_prime", "b"]
    assert sorted(listed) == sorted(LEAVES)


@pytest.mark.parametrize("path", [PATCH, HEAD])
def test_patch_and_head_kernels_are_lecun_normal_cut_at_two_sigma(path):
    kernel = LEAVES[path]
    deviation = math.sqrt(1 / kernel.shape[0])
    # Of a normal cut at ±2σ: variance 0.7737 σ², kurtosis 2.3657 (both by its moments).
    sigma = deviation / math.sqrt(0.7737413035)
    assert_moments(kernel, deviation, 2.365)
    assert 1.99 * sigma < np.max(np.abs(kernel)) <= 2 * sigma * (1 + 1e-6)


@pytest.mark.parametrize("path", XAVIER)
def test_attention_and_mlp_kernels_are_xavier_uniform(path):
    assert_uniform(LEAVES[path], math.sqrt(6 / sum(LEAVES[path].shape)))


def test_the_probe_is_xavier_uniform_with_one_input():
    probe = LEAVES["img/map_head/probe"]
    limit = math.sqrt(6 / (1 + 120))
    assert probe.shape == (1, 120)
    assert_uniform(probe, limit)


@pytest.mark.parametrize("path", VECTORS)
def test_positions_and_token_table_are_normal_with_variance_one_over_width(path):
    x = LEAVES[path]
    assert_moments(x, 1 / math.sqrt(x.shape[1]), 3)
    # Not cut at two or three sigma.
    assert np.max(np.abs(x)) > 3 / math.sqrt(x.shape[1])


def test_mlp_biases_are_normal_with_deviation_one_millionth():
    assert_moments(np.concatenate([LEAVES[path] for path in MLP_BIASES]), 1e-6, 3)


def test_other_biases_are_zero_and_scales_one():
    assert ZEROS
    assert ONES
    assert all(not np.any(LEAVES[path]) for path in ZEROS)
    assert all(np.all(LEAVES[path] == 1) for path in ONES)


def test_no_two_kernels_share_their_draws():
    samples = np.stack([LEAVES[path].ravel()[:500] for path in (*XAVIER, PATCH, HEAD)])
    correlations = np.corrcoef(samples) - np.eye(len(samples))
    assert np.max(np.abs(correlations)) <= 5 / math.sqrt(500)


def test_temperature_and_bias_start_at_log_ten_and_minus_ten():
    assert LEAVES["t_prime"] == np.float32(math.log(10))
    assert LEAVES["b"] == -10


def test_temperature_and_bias_can_be_chosen_and_move_no_other_draw():
    chosen = sr.init_params(CONFIG, np.random.default_rng(7), t_prime=1.0, b=sr.prior_bias(256))
    leaves = flatten(chosen)
    assert leaves["t_prime"] == 1
    assert leaves["b"] == np.float32(-math.log(255))
    for path, leaf in leaves.items():
        if path not in ("t_prime", "b"):
            np.testing.assert_array_equal(leaf, LEAVES[path], err_msg=path)


def test_parameters_are_float32_numpy_arrays_of_their_own():
    leaves = flatten(sr.init_params(CONFIG, np.random.default_rng(7)))
    assert {type(leaf) for leaf in leaves.values()} == {np.ndarray}
    assert {leaf.dtype for leaf in leaves.values()} == {np.dtype(np.float32)}
    assert len({leaf.__array_interface__["data"][0] for leaf in leaves.values()}) == len(leaves)


@given(st.integers(0, 2**32 - 2))
def test_equal_seeds_give_equal_parameters_and_other_seeds_others(seed):
    small = sr.SiglipConfig(
        image=sr.ImageConfig(image_size=2, patch_size=2, width=4, depth=1, mlp_dim=3, num_heads=1),
        text=sr.TextConfig(
            vocab_size=3, context_length=2, width=4, depth=1, mlp_dim=3, num_heads=1, out_dim=None
        ),
    )
    one, same, other = (
        flatten(sr.init_params(small, np.random.default_rng(number)))
        for number in (seed, seed, seed + 1)
    )
    for path, leaf in one.items():
        np.testing.assert_array_equal(leaf, same[path], err_msg=path)
    assert np.any(one["img/patch_embed/kernel"] != other["img/patch_embed/kernel"])


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("rng", [7, None, np.random.RandomState(7)])
def test_anything_but_a_generator_is_refused(rng):
    wanted = f"rng must be a numpy.random.Generator, got {type(rng).__name__}"
    with pytest.raises(TypeError, match=wanted):
        sr.init_params(CONFIG, rng)


@given(st.integers(2, 10**6))
def test_the_prior_bias_makes_the_sigmoid_the_share_of_matches(n):
    assert math.isclose(1 / (1 + math.exp(-sr.prior_bias(n))), 1 / n, rel_tol=1e-12)


@pytest.mark.parametrize("n", [1, 0, -5])
def test_a_batch_without_negatives_has_no_prior(n):
    with pytest.raises(ValueError, match=f"n must be at least 2 pairs, got {n}"):
        sr.prior_bias(n)


def test_names_are_those_of_the_design():
    block = [
        *(f"{norm}/{leaf}" for norm in ("ln_0", "ln_1") for leaf in ("scale", "bias")),
        *(
            f"attn/{name}/{leaf}"
            for name in ("query", "key", "value", "out")
            for leaf in ("kernel", "bias")
        ),
        *(f"mlp/{name}/{leaf}" for name in ("dense_0", "dense_1") for leaf in ("kernel", "bias")),
    ]
    head = [name.replace("ln_1", "ln") for name in block if not name.startswith("ln_0")]
    norm = ["encoder_norm/scale", "encoder_norm/bias"]
    image = ["patch_embed/kernel", "patch_embed/bias", "pos_embedding", *norm, "map_head/probe"]
    image += [f"map_head/{name}" for name in head]
    image += [f"block/{index}/{name}" for index in ("00", "01") for name in block]
    text = ["embed/embedding", "pos_embedding", *norm, "head/kernel", "head/bias"]
    text += [f"block/00/{name}" for name in block]
    wanted = [f"img/{name}" for name in image] + [f"txt/{name}" for name in text]
    assert sorted(sr.param_shapes(CONFIG)) == sorted([*wanted, "t_prime", "b"])


def test_shapes_are_those_of_the_initial_parameters():
    assert sr.param_shapes(CONFIG) == {path: leaf.shape for path, leaf in LEAVES.items()}
    assert sr.num_params(CONFIG) == sum(leaf.size for leaf in LEAVES.values())
    shapes = sr.param_shapes(CONFIG)
    assert shapes["img/patch_embed/kernel"] == (6 * 6 * 3, 120)
    assert shapes["img/pos_embedding"] == (100, 120)
    assert shapes["img/block/01/mlp/dense_0/kernel"] == (120, 200)
    assert shapes["txt/head/kernel"] == (96, 120)
    assert shapes["t_prime"] == ()


PARAMS = unflatten(LEAVES)


def test_parameters_of_the_configuration_pass_the_check():
    sr.check_params(PARAMS, CONFIG)


def test_the_check_lists_every_difference_by_its_path():
    leaves = dict(LEAVES)
    del leaves["b"]
    leaves["img/extra"] = np.zeros(3)
    leaves["txt/pos_embedding"] = np.zeros((41, 96))
    with pytest.raises(ValueError, match="params do not fit config") as caught:
        sr.check_params(unflatten(leaves), CONFIG)
    assert str(caught.value) == (
        "params do not fit config: missing b; "
        "txt/pos_embedding has the shape (41, 96), wanted (40, 96); unknown img/extra"
    )


def test_the_check_sees_a_transposed_square_free_kernel():
    transposed = tree_map(lambda x: x.T, PARAMS)
    with pytest.raises(ValueError, match=r"txt/head/kernel has the shape \(120, 96\), wanted"):
        sr.check_params(transposed, CONFIG)
