"""Perceptron, block, stack, MAP head and towers: how they are put together."""

import numpy as np
import pytest
from hypothesis import given

from siglip_ref import encoders, primitives
from siglip_ref.encoders.encoder import encoder_probes
from siglip_ref.encoders.execution import Execution
from siglip_ref.tree import flatten
from strategies import EPS, block_params, distinct, mlp_params, random_params, seeds, tower_configs

CONFIG = tower_configs()
PARAMS = random_params(CONFIG, np.random.default_rng(0))
TOKENS = np.random.default_rng(1).integers(0, 11, (3, 5))
REMAT = Execution(remat=True)
IMAGES = np.random.default_rng(2).uniform(-1, 1, (3, 11, 11, 3))


@given(distinct("n", "m", "d", "f"), seeds)
def test_the_perceptron_treats_every_token_alike(sizes, seed):
    n, m, d, f = sizes.values()
    rng = np.random.default_rng(seed)
    params, x = mlp_params(rng, d, f), rng.standard_normal((n, m, d))
    out, _ = encoders.mlp_fwd(x, params)
    one, _ = encoders.mlp_fwd(x[0, 0, :], params)
    np.testing.assert_allclose(out[0, 0, :], one, rtol=0, atol=1e-13)


@given(distinct("n", "m", "h", "k", most=5, k=2), seeds)
def test_a_permutation_of_the_tokens_permutes_the_output_of_a_block(sizes, seed):
    n, m, h, k = sizes.values()
    rng = np.random.default_rng(seed)
    params, x = block_params(rng, h * k, 7), rng.standard_normal((n, m, h * k))
    order = rng.permutation(m)
    out, _ = encoders.block_fwd(x, params, h, EPS)
    permuted, _ = encoders.block_fwd(x[:, order, :], params, h, EPS)
    np.testing.assert_allclose(permuted, out[:, order, :], rtol=0, atol=1e-11)


def test_a_block_whose_branches_end_in_zero_is_the_identity():
    params = block_params(np.random.default_rng(3), 6, 7)
    for last in (params["attn"]["out"], params["mlp"]["dense_1"]):
        last["kernel"], last["bias"] = np.zeros_like(last["kernel"]), np.zeros_like(last["bias"])
    x = np.random.default_rng(4).standard_normal((2, 5, 6))
    out, res = encoders.block_fwd(x, params, 2, EPS)
    np.testing.assert_array_equal(out, x)
    dx, _ = encoders.block_bwd(res, x)
    np.testing.assert_array_equal(dx, x)


def test_the_stack_is_its_blocks_one_after_the_other_and_a_norm():
    x = np.random.default_rng(5).standard_normal((2, 5, 6))
    out, _ = encoders.encoder_fwd(x, PARAMS["txt"], CONFIG.text)
    for name in ("00", "01"):
        x, _ = encoders.block_fwd(x, PARAMS["txt"]["block"][name], 2, EPS)
    want, _ = primitives.layer_norm_fwd(x, PARAMS["txt"]["encoder_norm"], EPS)
    np.testing.assert_array_equal(out, want)


def test_a_rematerialised_stack_has_the_same_bits_and_keeps_one_input_a_block():
    x = np.random.default_rng(6).standard_normal((2, 5, 6))
    out, res = encoders.encoder_fwd(x, PARAMS["txt"], CONFIG.text)
    remat_out, remat_res = encoders.encoder_fwd(x, PARAMS["txt"], CONFIG.text, REMAT)
    np.testing.assert_array_equal(remat_out, out)
    assert [block._fields for (block,) in remat_res.blocks] == [("x", "params")] * 2
    dout = np.random.default_rng(7).standard_normal(x.shape)
    dx, blocks, norm = encoders.encoder_bwd(res, dout, CONFIG.text)
    remat_dx, remat_blocks, remat_norm = encoders.encoder_bwd(remat_res, dout, CONFIG.text)
    np.testing.assert_array_equal(remat_dx, dx)
    want = flatten({"blocks": blocks, "norm": norm})
    got = flatten({"blocks": remat_blocks, "norm": remat_norm})
    assert list(got) == list(want)
    for path, gradient in got.items():
        np.testing.assert_array_equal(gradient, want[path], err_msg=path)


def test_residuals_serve_again_unless_they_are_used_up():
    x = np.random.default_rng(6).standard_normal((2, 5, 6))
    dout = np.random.default_rng(7).standard_normal(x.shape)
    _, res = encoders.encoder_fwd(x, PARAMS["txt"], CONFIG.text)
    runs = [
        encoders.encoder_bwd(res, dout, CONFIG.text, Execution(use_up=use_up))
        for use_up in (False, False, True)
    ]
    assert res.blocks == []
    for dx, blocks, norm in runs[1:]:
        np.testing.assert_array_equal(dx, runs[0][0])
        for path, gradient in flatten({"blocks": blocks, "norm": norm}).items():
            want = flatten({"blocks": runs[0][1], "norm": runs[0][2]})[path]
            np.testing.assert_array_equal(gradient, want, err_msg=path)


def test_probes_of_a_rematerialised_stack_are_refused():
    x = np.zeros((1, 5, 6))
    _, res = encoders.encoder_fwd(x, PARAMS["txt"], CONFIG.text, REMAT)
    with pytest.raises(ValueError, match=r"res must come .* remat=False, got remat=True"):
        encoder_probes(x, res)


def test_the_map_head_does_not_see_the_order_of_the_tokens():
    tokens = np.random.default_rng(8).standard_normal((2, 5, 6))
    params = PARAMS["img"]["map_head"]
    out, _ = encoders.map_head_fwd(tokens, params, 2, EPS)
    other, _ = encoders.map_head_fwd(tokens[:, ::-1, :], params, 2, EPS)
    np.testing.assert_allclose(other, out, rtol=0, atol=1e-12)


def test_the_image_tower_does_see_where_a_patch_is():
    out, _ = encoders.image_fwd(IMAGES, PARAMS["img"], CONFIG.image)
    moved = np.concatenate([IMAGES[:, 4:8], IMAGES[:, :4], IMAGES[:, 8:]], axis=1)
    other, _ = encoders.image_fwd(moved, PARAMS["img"], CONFIG.image)
    assert np.max(np.abs(other - out)) > 1e-3


def test_the_image_tower_does_not_see_leftover_pixels_and_gives_them_no_gradient():
    out, res = encoders.image_fwd(IMAGES, PARAMS["img"], CONFIG.image)
    changed = IMAGES.copy()
    changed[:, 8:], changed[:, :, 8:] = 7.0, -7.0
    np.testing.assert_array_equal(encoders.image_fwd(changed, PARAMS["img"], CONFIG.image)[0], out)
    dimages, _ = encoders.image_bwd(res, np.ones_like(out), CONFIG.image)
    assert np.all(dimages[:, :8, :8] != 0)
    assert not np.any(dimages[:, 8:])
    assert not np.any(dimages[:, :, 8:])


@pytest.mark.parametrize("position", range(5))
def test_every_position_of_a_text_is_attended_padding_or_not(position):
    out, _ = encoders.text_fwd(TOKENS, PARAMS["txt"], CONFIG.text)
    changed = TOKENS.copy()
    changed[:, position] = (changed[:, position] + 1) % 11
    other, _ = encoders.text_fwd(changed, PARAMS["txt"], CONFIG.text)
    assert np.all(np.max(np.abs(other - out), axis=1) > 1e-3)


def test_the_last_position_of_a_text_is_pooled():
    _, res = encoders.text_fwd(TOKENS, PARAMS["txt"], CONFIG.text)
    probes = encoders.text_probes(TOKENS, PARAMS["txt"], CONFIG.text)
    np.testing.assert_array_equal(res.head.x, probes["encoder_norm"][:, -1, :])
    want, _ = primitives.dense_fwd(probes["last"], PARAMS["txt"]["head"])
    np.testing.assert_array_equal(probes["pooled"], want)


def test_a_token_that_occurs_nowhere_has_no_gradient():
    tokens = np.full((2, 5), 4)
    out, res = encoders.text_fwd(tokens, PARAMS["txt"], CONFIG.text)
    dparams = encoders.text_bwd(res, np.ones_like(out), CONFIG.text)
    rows = np.any(dparams["embed"]["embedding"] != 0, axis=1)
    assert np.flatnonzero(rows).tolist() == [4]
