"""The oracle's gradients: dual numbers against central differences, the tape against duals."""

import random
from functools import partial

import pytest

from siglip_spec import oracle
from siglip_spec.oracle import directional_derivative, exact, gradient, gradients, reals


def numbers(seed, *shape):
    """Nested lists of uniform numbers in [-1, 1]."""
    generator = random.Random(seed)

    def fill(sizes):
        if not sizes:
            return reals.mpf(generator.uniform(-1, 1))
        return [fill(sizes[1:]) for _ in range(sizes[0])]

    return fill(shape)


def dense_numbers(seed, d_in, d_out):
    return {"kernel": numbers(seed, d_in, d_out), "bias": numbers(seed + 1, d_out)}


def attention_numbers(seed, width):
    names = ("query", "key", "value", "out")
    return {name: dense_numbers(seed + 2 * i, width, width) for i, name in enumerate(names)}


def mlp_numbers(seed, width, hidden):
    return {
        "dense_0": dense_numbers(seed, width, hidden),
        "dense_1": dense_numbers(seed + 2, hidden, width),
    }


def norm_numbers(seed, width):
    return {"scale": numbers(seed, width), "bias": numbers(seed + 1, width)}


def block_numbers(seed, width, hidden):
    return {
        "ln_0": norm_numbers(seed, width),
        "attn": attention_numbers(seed + 10, width),
        "ln_1": norm_numbers(seed + 20, width),
        "mlp": mlp_numbers(seed + 30, width, hidden),
    }


def map_head_numbers(seed, width, hidden):
    return {
        "probe": numbers(seed, 1, width),
        "attn": attention_numbers(seed + 10, width),
        "ln": norm_numbers(seed + 20, width),
        "mlp": mlp_numbers(seed + 30, width, hidden),
    }


LABELS = numbers(1, 2, 3)
WEIGHTS = [[0.5, 1.0, 2.0], [0.0, 0.25, 3.0]]

DIFFERENTIATED = {
    "dense": (oracle.dense, dict(x=numbers(1, 2, 3), **dense_numbers(2, 3, 4))),
    "layer_norm": (
        partial(oracle.layer_norm, eps=1e-6),
        dict(x=numbers(1, 2, 3), **norm_numbers(2, 3)),
    ),
    "gelu_tanh": (oracle.gelu_tanh, {"x": numbers(1, 5)}),
    "softmax": (oracle.softmax, {"x": numbers(1, 2, 3)}),
    "softplus": (oracle.softplus, {"x": numbers(1, 5)}),
    "sigmoid": (oracle.sigmoid, {"x": numbers(1, 5)}),
    "log_sigmoid": (oracle.log_sigmoid, {"x": numbers(1, 5)}),
    "l2_normalize": (partial(oracle.l2_normalize, eps=1e-8), {"x": numbers(1, 2, 3)}),
    "dot_product_attention": (
        oracle.dot_product_attention,
        {
            "query": numbers(1, 1, 2, 3, 2),
            "key": numbers(2, 1, 2, 4, 2),
            "value": numbers(3, 1, 2, 4, 2),
        },
    ),
    "multi_head_attention": (
        partial(oracle.multi_head_attention, num_heads=2),
        {"x": numbers(1, 1, 2, 4), "y": numbers(2, 1, 3, 4), "params": attention_numbers(3, 4)},
    ),
    "patch_embed": (
        oracle.patch_embed,
        dict(images=numbers(1, 1, 3, 5, 2), **dense_numbers(2, 8, 3)),
    ),
    "embed": (partial(oracle.embed, [[2, 0, 2]]), {"embedding": numbers(1, 3, 2)}),
    "block": (
        partial(oracle.block, num_heads=2, eps=1e-6),
        {"x": numbers(1, 1, 3, 2), "params": block_numbers(2, 2, 3)},
    ),
    "map_head": (
        partial(oracle.map_head, num_heads=2, eps=1e-6),
        {"tokens": numbers(1, 1, 3, 2), "params": map_head_numbers(2, 2, 3)},
    ),
    "image_tower": (
        partial(
            oracle.image_tower, exact([[[[0.5], [0.25]]]]), num_heads=1, eps=1e-6, norm_eps=1e-8
        ),
        {
            "params": {
                "patch_embed": dense_numbers(1, 1, 2),
                "pos_embedding": numbers(3, 2, 2),
                "block": {"00": block_numbers(4, 2, 1)},
                "encoder_norm": norm_numbers(5, 2),
                "map_head": map_head_numbers(6, 2, 1),
            }
        },
    ),
    "text_tower": (
        partial(oracle.text_tower, [[1, 0]], num_heads=1, eps=1e-6, norm_eps=1e-8),
        {
            "params": {
                "embed": {"embedding": numbers(1, 2, 2)},
                "pos_embedding": numbers(2, 2, 2),
                "block": {"00": block_numbers(3, 2, 1)},
                "encoder_norm": norm_numbers(4, 2),
                "head": dense_numbers(5, 2, 3),
            }
        },
    ),
    "scaled_cosine": (
        oracle.scaled_cosine,
        {"zimg": numbers(1, 2, 3), "ztxt": numbers(2, 4, 3), "t_prime": reals.mpf("0.7")},
    ),
    "sigmoid_loss": (
        partial(oracle.sigmoid_loss, labels=LABELS, weights=exact(WEIGHTS), total=5),
        {
            "zimg": numbers(2, 2, 4),
            "ztxt": numbers(3, 3, 4),
            "t_prime": numbers(4),
            "b": numbers(5),
        },
    ),
    "softmax_loss": (
        partial(oracle.softmax_loss, labels=LABELS, weights=exact(WEIGHTS)),
        {"zimg": numbers(2, 2, 4), "ztxt": numbers(3, 3, 4), "t_prime": numbers(4)},
    ),
}


def random_like(tree, generator):
    if isinstance(tree, dict):
        return {name: random_like(child, generator) for name, child in tree.items()}
    if isinstance(tree, list):
        return [random_like(child, generator) for child in tree]
    return reals.mpf(generator.uniform(-1, 1))


def leaves(tree):
    if isinstance(tree, dict):
        tree = list(tree.values())
    if isinstance(tree, list):
        return [leaf for child in tree for leaf in leaves(child)]
    return [tree]


def refill(tree, values):
    """The tree with its leaves taken in turn from an iterator."""
    if isinstance(tree, dict):
        return {name: refill(child, values) for name, child in tree.items()}
    if isinstance(tree, list):
        return [refill(child, values) for child in tree]
    return next(values)


def contracted(function, inputs, cotangent):
    result = leaves(function(**inputs))
    return sum(a * b for a, b in zip(leaves(cotangent), result, strict=True))


def moved(inputs, index, step):
    values = leaves(inputs)
    values[index] = values[index] + step
    return refill(inputs, iter(values))


@pytest.mark.parametrize("name", DIFFERENTIATED)
def test_gradients_equal_central_differences_at_60_digits(name):
    function, inputs = DIFFERENTIATED[name]
    cotangent = random_like(function(**inputs), random.Random(9))
    with reals.workdps(60):
        got = leaves(gradient(function, inputs, cotangent))
        step = reals.mpf(10) ** -20
        for index, partial_derivative in enumerate(got):
            above = contracted(function, moved(inputs, index, step), cotangent)
            below = contracted(function, moved(inputs, index, -step), cotangent)
            difference = (above - below) / (2 * step)
            assert abs(partial_derivative - difference) <= 1e-30 * max(1, abs(difference))


@pytest.mark.parametrize("name", DIFFERENTIATED)
def test_the_directional_derivative_is_the_gradient_along_the_direction(name):
    function, inputs = DIFFERENTIATED[name]
    generator = random.Random(10)
    cotangent = random_like(function(**inputs), generator)
    directions = random_like(inputs, generator)
    slopes = leaves(gradient(function, inputs, cotangent))
    want = sum(a * b for a, b in zip(slopes, leaves(directions), strict=True))
    got = directional_derivative(function, inputs, directions, cotangent)
    assert abs(got - want) <= 1e-33 * max(1, abs(want))


@pytest.mark.parametrize("name", DIFFERENTIATED)
def test_one_sweep_of_the_tape_gives_the_gradient_of_the_dual_numbers(name):
    function, inputs = DIFFERENTIATED[name]
    cotangent = random_like(function(**inputs), random.Random(11))
    _, swept = gradients(lambda **given: {"out": function(**given)}, inputs, {"out": cotangent})
    by_duals = leaves(gradient(function, inputs, cotangent))
    for one, other in zip(leaves(swept), by_duals, strict=True):
        assert abs(one - other) <= reals.mpf("1e-35") * max(1, abs(other))


def test_every_differentiable_operation_is_checked_against_central_differences():
    helpers = {"answer", "exact", "value", "gradient", "gradients", "reals"}
    helpers |= {"directional_derivative"}
    parts = {"mlp", "encoder"}  # run inside block and the towers
    steps = {name for name in oracle.__all__ if hasattr(oracle.optimizers, name)}
    assert set(DIFFERENTIATED) == set(oracle.__all__) - helpers - parts - steps
