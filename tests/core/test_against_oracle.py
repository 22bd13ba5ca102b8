"""Primitives and losses in float64 against the oracle: values and every gradient."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest

from agreement import as_lists, assert_each_within, assert_within
from siglip_ref import losses, primitives
from siglip_spec import oracle

ROUNDING = 1e-14
"""Of an array's largest element: about 45 units in the last place of float64."""

EACH = 1e-13
"""Of each element, where no sum cancels."""


class Operation(NamedTuple):
    """Our forward and backward pass, the oracle's formula, and arguments named as the oracle's."""

    forward: Callable[..., Any]
    backward: Callable[..., Any]
    formula: Callable[..., Any]
    inputs: dict[str, Any]


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


def dense_params(seed, d_in, d_out):
    return {"kernel": normal(seed, d_in, d_out), "bias": normal(seed + 1, d_out)}


def attention_params(seed, width):
    names = ("query", "key", "value", "out")
    return {name: dense_params(seed + 2 * i, width, width) for i, name in enumerate(names)}


TOKENS = np.asarray([[6, 0, 3, 6, 1], [3, 3, 0, 6, 5]])

OPERATIONS = {
    "dense": Operation(
        primitives.dense_fwd,
        primitives.dense_bwd,
        lambda x, params: oracle.dense(x, **params),
        {"x": normal(1, 2, 3, 5), "params": dense_params(2, 5, 7)},
    ),
    "layer_norm": Operation(
        partial(primitives.layer_norm_fwd, eps=1e-6),
        primitives.layer_norm_bwd,
        lambda x, params: oracle.layer_norm(x, **params, eps=1e-6),
        {
            "x": normal(1, 2, 3, 5),
            "params": {"scale": normal(2, 5), "bias": normal(3, 5)},
        },
    ),
    "gelu_tanh": Operation(
        primitives.gelu_tanh_fwd,
        primitives.gelu_tanh_bwd,
        oracle.gelu_tanh,
        {"x": 3 * normal(1, 5, 7)},
    ),
    "softmax": Operation(
        primitives.softmax_fwd,
        primitives.softmax_bwd,
        oracle.softmax,
        {"x": 3 * normal(1, 2, 3, 5)},
    ),
    "softplus": Operation(
        primitives.softplus_fwd,
        primitives.softplus_bwd,
        oracle.softplus,
        {"x": 3 * normal(1, 5, 7)},
    ),
    "log_sigmoid": Operation(
        primitives.log_sigmoid_fwd,
        primitives.log_sigmoid_bwd,
        oracle.log_sigmoid,
        {"x": 3 * normal(1, 5, 7)},
    ),
    "l2_normalize": Operation(
        partial(primitives.l2_normalize_fwd, eps=1e-8),
        primitives.l2_normalize_bwd,
        partial(oracle.l2_normalize, eps=1e-8),
        {"x": normal(1, 2, 3, 5)},
    ),
    "dot_product_attention": Operation(
        primitives.dot_product_attention_fwd,
        primitives.dot_product_attention_bwd,
        oracle.dot_product_attention,
        {
            "query": normal(1, 1, 2, 4, 5),
            "key": normal(2, 1, 2, 3, 5),
            "value": normal(3, 1, 2, 3, 5),
        },
    ),
    "multi_head_attention": Operation(
        partial(primitives.multi_head_attention_fwd, num_heads=3),
        primitives.multi_head_attention_bwd,
        partial(oracle.multi_head_attention, num_heads=3),
        {"x": normal(1, 2, 1, 6), "y": normal(2, 2, 4, 6), "params": attention_params(3, 6)},
    ),
    "patch_embed": Operation(
        primitives.patch_embed_fwd,
        primitives.patch_embed_bwd,
        lambda images, params: oracle.patch_embed(images, **params),
        {"images": normal(1, 2, 5, 7, 3), "params": dense_params(2, 12, 4)},
    ),
    "scaled_cosine": Operation(
        primitives.scaled_cosine_fwd,
        primitives.scaled_cosine_bwd,
        oracle.scaled_cosine,
        {"zimg": normal(1, 4, 3), "ztxt": normal(2, 5, 3), "t_prime": np.asarray(0.7)},
    ),
    "embed": Operation(
        partial(primitives.embed_fwd, TOKENS),
        primitives.embed_bwd,
        partial(oracle.embed, TOKENS.tolist()),
        {"embedding": normal(1, 7, 3)},
    ),
}


def cotangents(result):
    """The backward pass's answer as a tuple, also where it is a single array."""
    return result if isinstance(result, tuple) else (result,)


def assert_agrees(operation, tolerance=ROUNDING):
    """The value and the gradients for a random cotangent are the oracle's."""
    forward, backward, formula, inputs = operation
    exact_inputs = as_lists(inputs)
    out, res = forward(*inputs.values())
    assert_within(out, oracle.value(formula, exact_inputs), tolerance, "out")
    dout = normal(99, *out.shape)
    got = dict(zip(inputs, cotangents(backward(res, dout)), strict=True))
    want = oracle.gradient(formula, exact_inputs, as_lists(dout))
    assert_within(got, want, tolerance, "gradient")


@pytest.mark.parametrize("name", OPERATIONS)
def test_primitives_agree_with_the_oracle(name):
    assert_agrees(OPERATIONS[name])


def test_every_primitive_is_held_to_the_oracle():
    ours = {name.removesuffix("_fwd") for name in primitives.__all__ if name.endswith("_fwd")}
    assert ours == OPERATIONS.keys()


MAGNITUDES = np.asarray([0.0, 1e-300, 1e-8, 0.5, 1.0, 10.0, 40.0, 100.0, 700.0])
BOTH_SIGNS = np.concatenate([MAGNITUDES, -MAGNITUDES])


@pytest.mark.parametrize("name", ["softplus", "log_sigmoid"])
def test_softplus_and_its_slope_keep_every_digit_in_both_tails(name):
    forward, backward, formula, _ = OPERATIONS[name]
    inputs = {"x": BOTH_SIGNS.tolist()}
    out, res = forward(BOTH_SIGNS)
    assert_each_within(out, oracle.value(formula, inputs), ROUNDING)
    ones = np.ones_like(BOTH_SIGNS)
    want = oracle.gradient(formula, inputs, ones.tolist())
    assert_each_within(backward(res, ones), want["x"], ROUNDING)


def test_the_sigmoid_keeps_every_digit_in_both_tails():
    want = oracle.value(oracle.sigmoid, {"x": BOTH_SIGNS.tolist()})
    assert_each_within(primitives.sigmoid(BOTH_SIGNS), want, ROUNDING)


@pytest.mark.parametrize("name", ["softplus", "log_sigmoid", "gelu_tanh"])
def test_elementwise_primitives_agree_at_ten_thousand(name):
    for x in (np.asarray([1e4]), np.asarray([-1e4])):
        assert_agrees(OPERATIONS[name]._replace(inputs={"x": x}))


def test_the_softmax_agrees_at_logits_of_ten_thousand():
    x = np.asarray([[1e4, -1e4, 0.0], [1e4, 1e4 - 2, 1e4 - 0.5], [-1e4, 1 - 1e4, -1e4]])
    assert_agrees(OPERATIONS["softmax"]._replace(inputs={"x": x}))


def test_attention_agrees_at_scores_of_ten_thousand():
    # Head size 4 halves the products, so the scores are 1e4 times the keys' first elements.
    inputs = {
        "query": np.asarray([[[[2e4, 0, 0, 0], [-2e4, 0, 0, 0]]]]),
        "key": np.asarray([[[[1, 1, 0, 0], [1 - 2.0**-14, 0, 2, 0.5], [-1, 0, 0, 3]]]]),
        "value": normal(3, 1, 1, 3, 4),
    }
    assert_agrees(OPERATIONS["dot_product_attention"]._replace(inputs=inputs))


def layer_norm_of(rows):
    size = rows.shape[-1]
    inputs = {"x": rows, "params": {"scale": normal(2, size), "bias": normal(3, size)}}
    return OPERATIONS["layer_norm"]._replace(inputs=inputs)


def test_layer_norm_agrees_on_rows_that_are_nearly_constant():
    # Deviations of 2^-30 to 2^-20 about 1024 that sum to 0, so the mean is a float64.
    deviations = np.asarray([[3.0, -1.0, -2.0, 0.0], [512.0, -1024.0, 256.0, 256.0]]) * 2.0**-30
    assert_agrees(layer_norm_of(1024 + deviations))


def test_layer_norm_agrees_on_constant_rows():
    assert_agrees(layer_norm_of(np.asarray([[0.0] * 4, [-7.0] * 4, [1e4] * 4])))


def test_l2_normalize_of_zero_vectors_agrees_and_has_slope_one_over_eps():
    operation = OPERATIONS["l2_normalize"]._replace(inputs={"x": np.zeros((2, 3))})
    assert_agrees(operation)
    _, res = operation.forward(np.zeros((2, 3)))
    dout = normal(5, 2, 3)
    assert_each_within(operation.backward(res, dout), dout / 1e-8, ROUNDING)


@pytest.mark.parametrize("length", [1e-12, 1e-8, 1e-4, 1e6])
def test_l2_normalize_agrees_on_vectors_of_any_length(length):
    inputs = {"x": length * normal(1, 2, 3)}
    assert_agrees(OPERATIONS["l2_normalize"]._replace(inputs=inputs))


# Losses. Three images, four texts, five dimensions.


def unit_rows(seed, *shape):
    rows = normal(seed, *shape)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def scalar(value):
    return np.asarray(value, dtype=np.float64)


SQUARE = {
    "zimg": unit_rows(1, 4, 5),
    "ztxt": unit_rows(2, 4, 5),
    "t_prime": scalar(math.log(10)),
    "b": scalar(-10.0),
}
BLOCK = {**SQUARE, "zimg": unit_rows(1, 3, 5)}
SOFT_LABELS = np.random.default_rng(3).uniform(-1, 1, (3, 4))
HARD_LABELS = np.asarray([[1.0, -1, 1, -1], [-1, -1, -1, -1], [-1, -1, 1, -1]])
WEIGHTS = np.asarray([[0.5, 0, 2, 1], [1, 3, 0.25, 0.75], [1, 1, 1, 0]])


def whole_sigmoid(inputs, dloss, **options):
    loss, res = losses.sigmoid_loss_fwd(*inputs.values(), **options)
    return loss, losses.sigmoid_loss_bwd(res, scalar(dloss))


def tiled_sigmoid(inputs, dloss, **options):
    loss, got = losses.tiled_sigmoid_loss(*inputs.values(), tile=2, **options)
    return loss, [dloss * gradient for gradient in got]


def whole_softmax(inputs, dloss, **options):
    loss, res = losses.softmax_loss_fwd(*inputs.values(), **options)
    return loss, losses.softmax_loss_bwd(res, scalar(dloss))


def tiled_softmax(inputs, dloss, **options):
    loss, got = losses.tiled_softmax_loss(*inputs.values(), tile=2, **options)
    return loss, [dloss * gradient for gradient in got]


def assert_loss_agrees(ours, formula, inputs, compare, tolerance, **options):
    """The loss and its gradients, times -1.5, are the oracle's."""
    exact_inputs = as_lists(inputs)
    loss, gradients = ours(inputs, -1.5, **options)
    compare(loss, oracle.value(formula, exact_inputs), tolerance, "loss")
    want = oracle.gradient(formula, exact_inputs, -1.5)
    for name, gradient in zip(inputs, gradients, strict=True):
        compare(gradient, want[name], tolerance, f"d{name}")


def without_b(inputs):
    return {name: value for name, value in inputs.items() if name != "b"}


def targets(labels, weights):
    """The same targets for us and for the oracle."""
    lists = {"labels": labels.tolist()} | ({} if weights is None else {"weights": weights.tolist()})
    return losses.from_matrix(labels, weights), oracle.exact(lists)


@pytest.mark.parametrize("ours", [whole_sigmoid, tiled_sigmoid])
@pytest.mark.parametrize("b", [0.0, -10.0])
def test_the_sigmoid_loss_agrees_with_the_oracle(ours, b):
    inputs = {**SQUARE, "b": scalar(b)}
    assert_loss_agrees(ours, oracle.sigmoid_loss, inputs, assert_within, ROUNDING)


@pytest.mark.parametrize("ours", [whole_sigmoid, tiled_sigmoid])
@pytest.mark.parametrize("labels", [SOFT_LABELS, HARD_LABELS])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_the_sigmoid_loss_of_a_block_with_targets_agrees_with_the_oracle(ours, labels, weights):
    pairs, lists = targets(labels, weights)
    formula = partial(oracle.sigmoid_loss, **lists, total=7)
    assert_loss_agrees(ours, formula, BLOCK, assert_within, ROUNDING, pairs=pairs, total=7)


@pytest.mark.parametrize("ours", [whole_sigmoid, tiled_sigmoid])
def test_a_block_off_the_diagonal_agrees_with_the_oracle(ours):
    labels = [[-1.0] * 4, [-1.0] * 4, [1.0, -1.0, -1.0, -1.0]]  # image 12 is text 12
    formula = partial(oracle.sigmoid_loss, labels=oracle.exact(labels), total=16)
    options = {"rows": np.arange(10, 13), "columns": np.arange(12, 16), "total": 16}
    assert_loss_agrees(ours, formula, BLOCK, assert_within, ROUNDING, **options)


@pytest.mark.parametrize("ours", [whole_sigmoid, tiled_sigmoid])
def test_at_the_initial_bias_every_gradient_of_a_foreign_block_keeps_its_digits(ours):
    # All pairs negative and all coordinates positive: slopes near 4.5e-5, and no sum cancels.
    inputs = {**BLOCK, "zimg": np.abs(BLOCK["zimg"]), "ztxt": np.abs(BLOCK["ztxt"]) / 8}
    pairs, lists = targets(-np.ones((3, 4)), None)
    formula = partial(oracle.sigmoid_loss, **lists)
    assert_loss_agrees(ours, formula, inputs, assert_each_within, EACH, pairs=pairs)


@pytest.mark.parametrize("ours", [whole_sigmoid, tiled_sigmoid])
@pytest.mark.parametrize("b", [-10.0, 0.0, 10.0])
def test_every_slope_of_a_logit_keeps_its_digits(ours, b):
    # The texts are the unit vectors, so each element of dzimg is t times the slope of one logit.
    inputs = {"zimg": unit_rows(1, 4, 4), "ztxt": np.eye(4), "t_prime": scalar(2.0), "b": scalar(b)}
    _, (dzimg, *_) = ours(inputs, 1.0)
    want = oracle.gradient(oracle.sigmoid_loss, as_lists(inputs), 1.0)
    assert_each_within(dzimg, want["zimg"], EACH)


@pytest.mark.parametrize("label", [1.0, -1.0])
@pytest.mark.parametrize("b", [-40.0, -10.0, -1.0, 0.0, 1.0, 10.0, 40.0])
def test_the_loss_of_one_pair_and_all_its_slopes_keep_every_digit(b, label):
    # t = 1 and the cosine 1/4, so the logit b + 1/4 is exact.
    inputs = {"zimg": [[0.5, 0.25]], "ztxt": [[0.25, 0.5]], "t_prime": 0.0, "b": b}
    inputs = {name: np.asarray(value) for name, value in inputs.items()}
    pairs, lists = targets(np.asarray([[label]]), None)
    formula = partial(oracle.sigmoid_loss, **lists)
    assert_loss_agrees(whole_sigmoid, formula, inputs, assert_each_within, ROUNDING, pairs=pairs)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("ours", [whole_sigmoid, tiled_sigmoid])
def test_the_sigmoid_loss_agrees_at_logits_of_ten_thousand(ours, sign):
    inputs = {**SQUARE, "t_prime": scalar(math.log(1e4)), "b": scalar(-10.0)}
    inputs |= {"zimg": sign * unit_rows(1, 4, 5), "ztxt": unit_rows(1, 4, 5)}
    assert_loss_agrees(ours, oracle.sigmoid_loss, inputs, assert_within, ROUNDING)


@pytest.mark.parametrize("ours", [whole_softmax, tiled_softmax])
def test_the_softmax_loss_agrees_with_the_oracle(ours):
    assert_loss_agrees(ours, oracle.softmax_loss, without_b(SQUARE), assert_within, ROUNDING)


@pytest.mark.parametrize("ours", [whole_softmax, tiled_softmax])
@pytest.mark.parametrize("labels", [SOFT_LABELS, HARD_LABELS])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_the_softmax_loss_of_a_block_with_targets_agrees_with_the_oracle(ours, labels, weights):
    pairs, lists = targets(labels, weights)
    formula = partial(oracle.softmax_loss, **lists)
    assert_loss_agrees(ours, formula, without_b(BLOCK), assert_within, ROUNDING, pairs=pairs)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("ours", [whole_softmax, tiled_softmax])
def test_the_softmax_loss_agrees_at_logits_of_ten_thousand(ours, sign):
    inputs = {**without_b(SQUARE), "t_prime": scalar(math.log(1e4))}
    inputs |= {"zimg": sign * unit_rows(1, 4, 5), "ztxt": unit_rows(1, 4, 5)}
    assert_loss_agrees(ours, oracle.softmax_loss, inputs, assert_within, ROUNDING)


@pytest.mark.parametrize("ours", [whole_softmax, tiled_softmax])
def test_a_masked_pair_of_any_logit_is_invisible_to_the_softmax_loss(ours):
    far = np.asarray([[1.0], [1e4], [1.0], [1.0]])  # logits of text 1 reach thousands
    inputs = {**without_b(BLOCK), "ztxt": far * BLOCK["ztxt"]}
    pairs, lists = targets(SOFT_LABELS, WEIGHTS * [1, 0, 1, 1])
    formula = partial(oracle.softmax_loss, **lists)
    assert_loss_agrees(ours, formula, inputs, assert_within, ROUNDING, pairs=pairs)
