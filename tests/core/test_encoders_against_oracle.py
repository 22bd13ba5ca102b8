"""Block, MAP head, both towers and the whole model in float64 against the oracle."""

from functools import partial

import numpy as np
import pytest

import siglip_ref as sr
from agreement import as_lists, assert_within
from siglip_ref import encoders, losses, model
from siglip_ref.tree import flatten, tree_map, unflatten
from siglip_spec import oracle

COMPOSITE = 1e-13
"""Of an array's largest element, after some fifty operations in a row."""

EPS, NORM_EPS = 1e-6, 1e-8

# All sizes of a tower differ: 4 patches of 2 x 2 with a pixel left over, width 6 = 3 heads of 2.
CONFIG = sr.SiglipConfig(
    image=sr.ImageConfig(image_size=5, patch_size=2, width=6, depth=1, mlp_dim=7, num_heads=3),
    text=sr.TextConfig(
        vocab_size=9, context_length=5, width=4, depth=2, mlp_dim=3, num_heads=2, out_dim=6
    ),
)
HEADLESS = sr.SiglipConfig(
    image=CONFIG.image,
    text=sr.TextConfig(
        vocab_size=9, context_length=5, width=6, depth=1, mlp_dim=3, num_heads=2, out_dim=None
    ),
)


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


def random_params(config, seed):
    """Every parameter drawn anew: no bias is 0 and no scale is 1."""
    generator = np.random.default_rng(seed)
    leaves = {
        path: generator.standard_normal(shape) * 0.5
        for path, shape in sr.param_shapes(config).items()
    }
    return unflatten(leaves) | {"t_prime": np.asarray(1.5), "b": np.asarray(-2.5)}


PARAMS = random_params(CONFIG, 1)
IMAGES = np.random.default_rng(2).uniform(-1, 1, (2, 5, 5, 3))
TOKENS = np.asarray([[1, 4, 8, 4, 0], [4, 2, 2, 0, 0], [7, 1, 1, 1, 3]])


def assert_gradient_agrees(formula, inputs, dout, got):
    """Element by element."""
    want = oracle.gradient(formula, as_lists(inputs), as_lists(dout))
    assert_within(got, want, COMPOSITE, "gradient")


def assert_slopes_agree(formula, params, dout, got, seed):
    """Leaf by leaf, along one random direction each: <dleaf, direction> is the oracle's slope.

    The error is held to the sum of the magnitudes of the products. The gradient of a key bias
    vanishes in theory (a softmax does not see a shift), so it is held to its kernel's instead.
    """
    generator = np.random.default_rng(seed)
    still = tree_map(np.zeros_like, params)
    gradients, zeros = flatten(got), flatten(still)
    exact_params, exact_dout = as_lists(params), as_lists(dout)
    assert gradients.keys() == zeros.keys()
    for path, gradient in gradients.items():
        direction = generator.standard_normal(gradient.shape)
        slope = oracle.directional_derivative(
            lambda params: formula(params=params),
            {"params": exact_params},
            {"params": as_lists(unflatten({**zeros, path: direction}))},
            exact_dout,
        )
        size = np.sum(np.abs(gradient * direction))
        if path.endswith("key/bias"):
            size = np.max(np.abs(gradients[path.replace("bias", "kernel")]))
        error = abs(float(np.sum(gradient * direction) - float(slope)))
        assert error <= COMPOSITE * size, f"{path}: off by {error:.3g}, size {size:.3g}"


def test_the_block_agrees_with_the_oracle():
    params, x = PARAMS["txt"]["block"]["00"], normal(3, 2, 3, 4)
    formula = partial(oracle.block, num_heads=2, eps=EPS)
    out, res = encoders.block_fwd(x, params, 2, EPS)
    assert_within(out, oracle.value(formula, as_lists({"x": x, "params": params})), COMPOSITE)
    dout = normal(4, *out.shape)
    dx, dparams = encoders.block_bwd(res, dout)
    assert_gradient_agrees(
        formula, {"x": x, "params": params}, dout, {"x": dx, "params": dict(dparams)}
    )


def test_the_map_head_agrees_with_the_oracle():
    params, tokens = PARAMS["img"]["map_head"], normal(3, 2, 4, 6)
    formula = partial(oracle.map_head, num_heads=3, eps=EPS)
    inputs = {"tokens": tokens, "params": params}
    out, res = encoders.map_head_fwd(tokens, params, 3, EPS)
    assert_within(out, oracle.value(formula, as_lists(inputs)), COMPOSITE)
    dout = normal(4, *out.shape)
    dtokens, dparams = encoders.map_head_bwd(res, dout)
    assert_gradient_agrees(formula, inputs, dout, {"tokens": dtokens, "params": dict(dparams)})


def image_formula(config):
    return partial(
        oracle.image_tower,
        oracle.exact(IMAGES.tolist()),
        num_heads=config.image.num_heads,
        eps=EPS,
        norm_eps=NORM_EPS,
    )


def text_formula(config):
    return partial(
        oracle.text_tower,
        TOKENS.tolist(),
        num_heads=config.text.num_heads,
        eps=EPS,
        norm_eps=NORM_EPS,
    )


def test_the_image_tower_agrees_with_the_oracle():
    formula = image_formula(CONFIG)
    zimg, res = model.encode_image_fwd(PARAMS, IMAGES, CONFIG)
    want = oracle.value(formula, {"params": as_lists(PARAMS["img"])})
    assert_within(zimg, want, COMPOSITE)
    dzimg = normal(5, *zimg.shape)
    _, dparams = model.encode_image_bwd(res, dzimg, CONFIG)
    assert_slopes_agree(formula, PARAMS["img"], dzimg, dparams, seed=6)


@pytest.mark.parametrize("config", [CONFIG, HEADLESS], ids=["head", "headless"])
def test_the_text_tower_agrees_with_the_oracle(config):
    params, formula = random_params(config, 7), text_formula(config)
    ztxt, res = model.encode_text_fwd(params, TOKENS, config)
    assert_within(ztxt, oracle.value(formula, {"params": as_lists(params["txt"])}), COMPOSITE)
    dztxt = normal(8, *ztxt.shape)
    dparams = model.encode_text_bwd(res, dztxt, config)
    assert_slopes_agree(formula, params["txt"], dztxt, dparams, seed=9)


LABELS = np.asarray([[1.0, -1.0, 0.5], [-1.0, 1.0, -1.0]])
WEIGHTS = np.asarray([[1.0, 0.5, 2.0], [0.0, 1.0, 3.0]])


def whole_model(loss):
    """The loss of images and texts as a function of all parameters."""
    targets = oracle.exact({"labels": LABELS.tolist(), "weights": WEIGHTS.tolist()})

    def formula(params):
        zimg = image_formula(CONFIG)(params=params["img"])
        ztxt = text_formula(CONFIG)(params=params["txt"])
        if loss == "sigmoid":
            return oracle.sigmoid_loss(zimg, ztxt, params["t_prime"], params["b"], **targets)
        return oracle.softmax_loss(zimg, ztxt, params["t_prime"], **targets)

    return formula


@pytest.mark.parametrize("loss", ["sigmoid", "softmax"])
def test_the_loss_of_the_whole_model_and_its_slopes_agree_with_the_oracle(loss):
    formula = whole_model(loss)
    got, grads = sr.loss_and_grads(
        PARAMS, IMAGES, TOKENS, CONFIG, loss, pairs=losses.from_matrix(LABELS, WEIGHTS)
    )
    assert_within(got, oracle.value(formula, {"params": as_lists(PARAMS)}), COMPOSITE)
    generator = np.random.default_rng(10)
    for _ in range(3):
        directions = tree_map(
            lambda leaf: np.asarray(generator.standard_normal(leaf.shape)), PARAMS
        )
        slope = oracle.directional_derivative(
            formula, {"params": as_lists(PARAMS)}, {"params": as_lists(directions)}, 1.0
        )
        products = np.concatenate(
            [np.ravel(leaf) for leaf in flatten(tree_map(np.multiply, grads, directions)).values()]
        )
        error = abs(float(np.sum(products) - float(slope)))
        assert error <= COMPOSITE * np.sum(np.abs(products))
