"""The model as a whole: embeddings, the loss of a batch, and the gradient of every parameter."""

import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import siglip_ref as sr
from agreement import assert_same_bits, assert_same_gradients
from backends import BACKENDS, library, map_arrays
from siglip_ref import losses, model
from siglip_ref.encoders import encoder
from siglip_ref.tree import flatten
from strategies import random_params

CONFIGS = {
    # 19 / 4: 16 patches, and 3 pixels a side are dropped, as 384 / 14 drops 6.
    "leftover": sr.SiglipConfig(
        image=sr.ImageConfig(
            image_size=19, patch_size=4, width=12, depth=2, mlp_dim=10, num_heads=3
        ),
        text=sr.TextConfig(
            vocab_size=17, context_length=5, width=8, depth=1, mlp_dim=14, num_heads=2, out_dim=12
        ),
    ),
    "headless": sr.SiglipConfig(
        image=sr.ImageConfig(image_size=9, patch_size=3, width=6, depth=1, mlp_dim=7, num_heads=2),
        text=sr.TextConfig(
            vocab_size=11, context_length=4, width=6, depth=2, mlp_dim=5, num_heads=3, out_dim=None
        ),
    ),
    "one attention head": sr.SiglipConfig(
        image=sr.ImageConfig(image_size=10, patch_size=5, width=7, depth=1, mlp_dim=9, num_heads=1),
        text=sr.TextConfig(
            vocab_size=13, context_length=6, width=8, depth=1, mlp_dim=3, num_heads=1, out_dim=7
        ),
    ),
}
CONFIG = CONFIGS["leftover"]

every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
every_loss = pytest.mark.parametrize("loss", ["sigmoid", "softmax"])


def batch(config, n=4, m=4):
    """Random parameters, images and tokens."""
    rng = np.random.default_rng(0)
    size, length = config.image.image_size, config.text.context_length
    images = rng.uniform(-1, 1, (n, size, size, 3))
    return random_params(config, rng), images, rng.integers(0, config.text.vocab_size, (m, length))


def forward(params, images, tokens, config, loss):
    """The loss by forward passes alone, for automatic differentiation."""
    zimg, _ = model.encode_image_fwd(params, images, config)
    ztxt, _ = model.encode_text_fwd(params, tokens, config)
    if loss == "sigmoid":
        return losses.sigmoid_loss_fwd(zimg, ztxt, params["t_prime"], params["b"])[0]
    return losses.softmax_loss_fwd(zimg, ztxt, params["t_prime"])[0]


@every_loss
@every_config
def test_gradients_are_those_of_torch_autograd(config, loss):
    torch = library("torch")
    params, images, tokens = batch(config)
    value, grads = sr.loss_and_grads(params, images, tokens, config, loss)

    theirs = map_arrays(lambda x: torch.tensor(x, requires_grad=True), params)
    want = forward(theirs, torch.asarray(images), torch.asarray(tokens), config, loss)
    want.backward()
    wanted = map_arrays(lambda x: np.zeros(()) if x.grad is None else x.grad.numpy(), theirs)
    assert abs(value - want.item()) <= 1e-13 * want.item()
    assert_same_gradients(grads, wanted, 1e-10)


@every_config
def test_gradients_are_those_of_jax_grad(config):
    jax = library("jax")
    params, images, tokens = batch(config)
    value, grads = sr.loss_and_grads(params, images, tokens, config)
    theirs = map_arrays(jax.numpy.asarray, (images, tokens))
    differentiate = jax.jit(
        jax.value_and_grad(lambda params: forward(params, *theirs, config, "sigmoid"))
    )
    want, wanted = differentiate(map_arrays(jax.numpy.asarray, params))
    assert abs(value - float(want)) <= 1e-13 * float(want)
    assert_same_gradients(grads, map_arrays(np.asarray, wanted), 1e-10)


def assert_computes_the_same(backend, dtype, tolerance):
    """Loss and gradients on the backend are those of NumPy in float64."""
    config = CONFIGS["one attention head"]
    params, images, tokens = batch(config)
    # The same float32 numbers for both.
    params = map_arrays(lambda x: x.astype(np.float32).astype(np.float64), params)
    images = images.astype(np.float32).astype(np.float64)
    want, wanted = sr.loss_and_grads(params, images, tokens, config)

    def run(params, images, tokens):
        return sr.loss_and_grads(params, images, tokens, config)

    value, grads = backend.call(
        run,
        map_arrays(lambda x: backend.asarray(x.astype(dtype)), params),
        backend.asarray(images.astype(dtype)),
        backend.asarray(tokens),
    )
    assert abs(float(value) - want) <= tolerance * want
    assert_same_gradients(map_arrays(backend.to_numpy, grads), wanted, tolerance)


def test_every_library_computes_the_same_gradients(backend):
    assert_computes_the_same(backend, np.float64, 1e-12)


COMPILING = [candidate for candidate in BACKENDS if candidate.name != "jax"]
"""JAX without jit compiles each operation by itself, for ten seconds: in float64 only."""


@pytest.mark.parametrize("backend", COMPILING, ids=lambda backend: backend.name)
def test_every_library_computes_the_same_gradients_in_float32(backend):
    backend.require()
    assert_computes_the_same(backend, np.float32, 3e-5)


def test_tiles_and_softmax_and_rematerialisation_compile():
    jax = library("jax")
    config = CONFIGS["one attention head"]
    params, images, tokens = batch(config)
    options = {"loss": "softmax", "tile": 3, "remat": "towers", "microbatch": 2}
    want = sr.loss_and_grads(params, images, tokens, config, "softmax")
    compiled = jax.jit(
        lambda params, images, tokens: sr.loss_and_grads(params, images, tokens, config, **options)
    )
    value, grads = compiled(params, images, tokens)
    assert abs(float(value) - want[0]) <= 1e-13 * want[0]
    assert_same_gradients(map_arrays(np.asarray, grads), want[1], 1e-11)


@every_loss
@pytest.mark.parametrize(
    ("remat", "microbatch"), [("blocks", None), ("blocks", 3), ("towers", None)]
)
def test_rematerialisation_keeps_every_bit(loss, remat, microbatch):
    inputs = batch(CONFIG)
    want = sr.loss_and_grads(*inputs, CONFIG, loss, microbatch=microbatch)
    got = sr.loss_and_grads(*inputs, CONFIG, loss, microbatch=microbatch, remat=remat)
    assert_same_bits(got, want)


@every_loss
@pytest.mark.parametrize("microbatch", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("remat", ["nothing", "towers"])
def test_microbatches_give_the_gradients_of_the_whole_batch(loss, remat, microbatch):
    inputs = batch(CONFIG)
    want, wanted = sr.loss_and_grads(*inputs, CONFIG, loss)
    value, grads = sr.loss_and_grads(*inputs, CONFIG, loss, remat=remat, microbatch=microbatch)
    assert abs(value - want) <= 1e-13 * want
    assert_same_gradients(grads, wanted, 1e-13)


@pytest.mark.parametrize("remat", ["nothing", "blocks", "towers"])
def test_threads_keep_every_bit(remat):
    inputs = batch(CONFIG)
    want = sr.loss_and_grads(*inputs, CONFIG, microbatch=2, remat=remat)
    with ThreadPoolExecutor(2) as pool:
        got = sr.loss_and_grads(*inputs, CONFIG, microbatch=2, remat=remat, parallel_map=pool.map)
    assert_same_bits(got, want)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("remat", ["nothing", "blocks", "towers"])
def test_the_residuals_of_a_block_go_before_the_gradients_of_the_next(remat, monkeypatch):
    params, *inputs = batch(CONFIG)
    earlier, alive = [], []
    backward = encoder.block_bwd

    def block_bwd(res, dout):
        alive.append(sum(hidden() is not None for hidden in earlier))
        earlier.append(weakref.ref(res.mlp.hidden))
        return backward(res, dout)

    monkeypatch.setattr(encoder, "block_bwd", block_bwd)
    sr.loss_and_grads(params, *inputs, CONFIG, remat=remat)
    assert alive == [0] * (CONFIG.image.depth + CONFIG.text.depth)


@every_loss
@pytest.mark.parametrize("tile", [1, 3, 8])
def test_tiles_give_the_gradients_of_the_whole_loss(loss, tile):
    inputs = batch(CONFIG)
    want, wanted = sr.loss_and_grads(*inputs, CONFIG, loss)
    value, grads = sr.loss_and_grads(*inputs, CONFIG, loss, tile=tile)
    assert abs(value - want) <= 1e-13 * want
    assert_same_gradients(grads, wanted, 1e-12)


@every_loss
def test_pairs_allow_more_texts_than_images(loss):
    params, images, tokens = batch(CONFIG, n=3, m=5)
    labels = np.where(np.arange(5) // 2 == np.arange(3)[:, None], 1.0, -1.0)
    pairs = losses.same_group(np.arange(3), np.arange(5) // 2)
    value, grads = sr.loss_and_grads(params, images, tokens, CONFIG, loss, pairs=pairs)
    want = sr.loss_and_grads(
        params, images, tokens, CONFIG, loss, pairs=losses.from_matrix(labels), microbatch=2
    )
    assert abs(value - want[0]) <= 1e-13 * want[0]
    assert_same_gradients(grads, want[1], 1e-12)


@every_config
def test_the_gradients_are_a_tree_like_the_parameters(config):
    params, images, tokens = batch(config)
    _, grads = sr.loss_and_grads(params, images, tokens, config)
    sr.check_params(grads, config)
    assert sorted(flatten(grads)) == sorted(flatten(params))


@pytest.mark.parametrize("path", ["img/map_head/probe", "txt/head/kernel", "t_prime", "b"])
def test_a_step_against_a_gradient_lowers_the_loss_by_its_square(path):
    params, images, tokens = batch(CONFIG)
    value, grads = sr.loss_and_grads(params, images, tokens, CONFIG)
    gradient, leaves = flatten(grads)[path], flatten(params)
    step = 1e-5 / np.sum(gradient**2)
    leaves[path] = leaves[path] - step * gradient
    lower, _ = sr.loss_and_grads(sr.tree.unflatten(leaves), images, tokens, CONFIG)
    # Second order: 1e-5 in 1e-5, times the curvature.
    assert abs((value - lower) - 1e-5) <= 1e-7


def block_probe_names(config):
    parts = ["ln_0", "attn/weights", "attn", "+attn", "ln_1", "mlp", "+mlp"]
    return [
        name
        for index in range(config.depth)
        for name in [*(f"block/{index:02d}/{part}" for part in parts), f"block/{index:02d}"]
    ]


@every_config
def test_every_intermediate_has_its_name(config):
    params, images, tokens = batch(config)
    head = [f"map_head/{part}" for part in ("attn/weights", "attn", "ln", "mlp", "+mlp")]
    assert list(sr.probe_image(params, images, config)) == [
        "patch_embed",
        "embedded",
        *block_probe_names(config.image),
        "encoder_norm",
        *head,
        "pooled",
        "zimg",
    ]
    assert list(sr.probe_text(params, tokens, config)) == [
        "embed",
        "embedded",
        *block_probe_names(config.text),
        "encoder_norm",
        "last",
        "pooled",
        "ztxt",
    ]


@every_config
def test_the_last_probe_is_the_embedding_bit_for_bit(config):
    params, images, tokens = batch(config)
    zimg, ztxt = sr.encode_image(params, images, config), sr.encode_text(params, tokens, config)
    np.testing.assert_array_equal(sr.probe_image(params, images, config)["zimg"], zimg)
    np.testing.assert_array_equal(sr.probe_text(params, tokens, config)["ztxt"], ztxt)
    for z in (zimg, ztxt):
        np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1, rtol=1e-7)


@every_config
def test_probes_hang_together_as_the_towers_do(config):
    params, images, tokens = batch(config)
    for probes, tower, sizes in (
        (sr.probe_image(params, images, config), params["img"], config.image),
        (sr.probe_text(params, tokens, config), params["txt"], config.text),
    ):
        x = probes["embedded"]
        for index in range(sizes.depth):
            name = f"block/{index:02d}"
            want, _ = sr.encoders.block_fwd(
                x, tower["block"][f"{index:02d}"], sizes.num_heads, sizes.layer_norm_eps
            )
            np.testing.assert_array_equal(probes[name], want)
            np.testing.assert_array_equal(probes[name], probes[f"{name}/+mlp"])
            np.testing.assert_array_equal(probes[f"{name}/+attn"], x + probes[f"{name}/attn"])
            x = probes[name]
        want, _ = sr.primitives.layer_norm_fwd(x, tower["encoder_norm"], sizes.layer_norm_eps)
        np.testing.assert_array_equal(probes["encoder_norm"], want)


@every_config
def test_attention_weights_are_probabilities_over_all_tokens(config):
    params, images, tokens = batch(config)
    n, patches, length = 4, config.image.num_patches, config.text.context_length
    image, text = sr.probe_image(params, images, config), sr.probe_text(params, tokens, config)
    assert image["map_head/attn/weights"].shape == (n, config.image.num_heads, 1, patches)
    assert image["block/00/attn/weights"].shape == (n, config.image.num_heads, patches, patches)
    assert text["block/00/attn/weights"].shape == (n, config.text.num_heads, length, length)
    for probes in (image, text):
        for name, value in probes.items():
            if name.endswith("weights"):
                assert np.all(value > 0), name
                np.testing.assert_allclose(np.sum(value, axis=-1), 1, rtol=1e-14, err_msg=name)


PARAMS, IMAGES, TOKENS = batch(CONFIG)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"images": IMAGES[:, :18]},
            ValueError,
            r"images must have the shape \(n, 19, 19, 3\) with n >= 1, got \(4, 18, 19, 3\)",
        ),
        ({"images": IMAGES[:0]}, ValueError, r"images must .*got \(0, 19, 19, 3\)"),
        ({"images": IMAGES[..., 0]}, ValueError, r"images must .*got \(4, 19, 19\)"),
        ({"tokens": TOKENS[:, :4]}, ValueError, r"tokens must have the shape \(n, 5\).*\(4, 4\)"),
        ({"tokens": TOKENS[0]}, ValueError, r"tokens must .*got \(5,\)"),
        ({"tokens": TOKENS.astype(float)}, TypeError, "tokens must be integers, got .*float64"),
        ({"tokens": TOKENS[:3]}, ValueError, "as many images as texts .*got 4 images and 3 texts"),
        ({"params": {**PARAMS, "c": PARAMS["b"]}}, ValueError, "params do not fit .*unknown c"),
        ({"loss": "hinge"}, ValueError, "loss must be sigmoid or softmax, got 'hinge'"),
        ({"remat": "all"}, ValueError, "remat must be nothing, blocks or towers, got 'all'"),
        ({"microbatch": 0}, ValueError, "microbatch must be a positive integer, got 0"),
        ({"microbatch": -1}, ValueError, "microbatch must be a positive integer, got -1"),
        ({"tile": 0}, ValueError, "tile must be a positive integer, got 0"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_by_name(change, error, message):
    arguments = {"params": PARAMS, "images": IMAGES, "tokens": TOKENS, "config": CONFIG}
    with pytest.raises(error, match=message):
        sr.loss_and_grads(**(arguments | change))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("encode", [sr.encode_image, sr.probe_image])
def test_encoding_refuses_images_and_parameters_of_another_size(encode):
    with pytest.raises(ValueError, match=r"images must have the shape \(n, 19, 19, 3\)"):
        encode(PARAMS, IMAGES[:, :18], CONFIG)
    with pytest.raises(ValueError, match=r"params do not fit config: missing b"):
        encode({name: PARAMS[name] for name in ("img", "txt", "t_prime")}, IMAGES, CONFIG)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("encode", [sr.encode_text, sr.probe_text])
def test_encoding_refuses_tokens_and_parameters_of_another_size(encode):
    with pytest.raises(ValueError, match=r"tokens must have the shape \(n, 5\)"):
        encode(PARAMS, TOKENS[:, :3], CONFIG)
    with pytest.raises(ValueError, match=r"params do not fit config: missing b"):
        encode({name: PARAMS[name] for name in ("img", "txt", "t_prime")}, TOKENS, CONFIG)
