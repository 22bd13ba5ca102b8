"""The plain functions are a second writing of the reference: the same numbers."""

import ast
import inspect

import numpy as np
import pytest

from siglip_ref.tree import flatten, tree_map, unflatten
from siglip_spec.operations import OPERATIONS
from siglip_spec.plain import MODULES, PLAIN
from strategies import (
    attention_params,
    block_params,
    dense_params,
    mlp_params,
    norm_params,
    random_params,
    tower_configs,
    unit_rows,
)

SCALARS = {"t_prime": np.asarray(1.7), "b": np.asarray(-2.3)}
TOWER = {"num_heads": 2, "eps": 1e-6, "norm_eps": 1e-8}
MODEL = {"image_heads": 2, "text_heads": 2, "eps": 1e-6, "norm_eps": 1e-8}


def embeddings(rng, n=5, m=5, d=3):
    return {"zimg": unit_rows(rng, n, d), "ztxt": unit_rows(rng, m, d)}


def shards(array, *sizes):
    ends = np.cumsum(sizes)[:-1]
    return {str(rank): part for rank, part in enumerate(np.split(array, ends))}


def ring(rng):
    return {
        name: shards(rows, 1, 3, 2)
        for name, rows in zip(("zimg", "ztxt"), embeddings(rng, 6, 6).values(), strict=True)
    }


def pictures(rng):
    return rng.uniform(-1, 1, (3, 11, 11, 3))


def sentences(rng):
    return rng.integers(0, 11, (3, 5))


def optimizer(rng, **settings):
    params = {
        "big": {"kernel": rng.standard_normal((33, 32))},
        "img": {"kernel": rng.standard_normal((3, 4)), "bias": rng.standard_normal(4)},
        "b": rng.standard_normal(()),
        "ice": {"kernel": rng.standard_normal((2, 3))},
    }
    grads = {
        str(step): tree_map(lambda p: rng.standard_normal(p.shape), params) for step in range(4)
    }
    attrs = {"lr": 0.1, "weight_decay": 0.01, "schedule": [0.0, 0.5, 1.0, 0.3], "frozen": ["ice"]}
    return {"params": params, "grads": grads}, attrs | settings


def training(rng):
    params = random_params(tower_configs(), rng)
    inputs = {"images": pictures(rng), "tokens": sentences(rng), "params": params}
    rates = {"lr": 1e-3, "weight_decay": 1e-3, "beta1": 0.9, "beta2": 0.95, "adam_eps": 1e-5}
    return inputs, {**MODEL, **rates, "clip_norm": 1.0, "warmup": 2, "steps": 10}


def make(operation, rng):
    """Random inputs, and attributes, for an operation by its name."""
    x = rng.standard_normal((2, 5, 6))
    attention = {"params": attention_params(rng, 6), "x": x, "y": rng.standard_normal((2, 4, 6))}
    queries = {name: rng.standard_normal((2, 3, 4, 5)) for name in ("query", "key", "value")}
    params = random_params(tower_configs(), rng)
    head = {
        "probe": rng.standard_normal((1, 6)),
        "attn": attention_params(rng, 6),
        "ln": norm_params(rng, 6),
        "mlp": mlp_params(rng, 6, 7),
    }
    grid = np.linspace(-40, 40, 81)
    cut = {"images": pictures(rng), **dense_params(rng, 48, 5)}
    ids = {"tokens": sentences(rng), "embedding": rng.standard_normal((11, 4))}
    pairs = {"labels": rng.uniform(-1, 1, (4, 7)), "weights": rng.uniform(0, 2, (4, 7))}
    t_prime = {"t_prime": SCALARS["t_prime"]}
    ranks = {str(rank): tree_map(lambda p: rng.standard_normal(p.shape), head) for rank in range(3)}
    heads = {"num_heads": 2, "eps": 1e-6}
    return {
        "sigmoid_loss": ({**embeddings(rng), **SCALARS}, {}),
        "pairwise_sigmoid_loss": ({**embeddings(rng, 4, 7), **SCALARS, **pairs}, {}),
        "tiled_sigmoid_loss": ({**embeddings(rng), **SCALARS}, {"tile": 2}),
        "softmax_loss": ({**embeddings(rng), **t_prime}, {}),
        "initial_scalars": ({}, {}),
        "ring_sigmoid_loss": ({**ring(rng), **SCALARS}, {}),
        "ring_softmax_loss": ({**ring(rng), **t_prime}, {}),
        "dense": ({"x": x, **dense_params(rng, 6, 7)}, {}),
        "layer_norm": ({"x": x + 1e4, **norm_params(rng, 6)}, {"eps": 1e-6}),
        "gelu_tanh": ({"x": grid}, {}),
        "softmax": ({"x": 50 * x}, {}),
        "softplus": ({"x": 20 * grid}, {}),
        "log_sigmoid": ({"x": 20 * grid}, {}),
        "l2_normalize": ({"x": np.concatenate((x, 0 * x))}, {"eps": 1e-8}),
        "scaled_cosine": ({**embeddings(rng, 4, 7), **t_prime}, {}),
        "patch_embed": (cut, {}),
        "embed": (ids, {}),
        "dot_product_attention": (queries, {}),
        "multi_head_attention": (attention, {"num_heads": 3}),
        "normalize_pixels": ({"pixels": rng.integers(0, 256, (2, 3, 4, 3))}, {}),
        "block": ({"x": x, "params": block_params(rng, 6, 7)}, heads),
        "map_head": ({"tokens": x, "params": head}, heads),
        "encode_image": ({"images": pictures(rng), "params": params["img"]}, TOWER),
        "encode_text": ({"tokens": sentences(rng), "params": params["txt"]}, TOWER),
        "siglip": (
            {"images": pictures(rng), "tokens": sentences(rng), "params": params},
            MODEL,
        ),
        "clip_mean_gradient": ({"grads": ranks}, {"max_norm": 0.7}),
        "adamw": optimizer(rng, beta1=0.9, beta2=0.95, eps=1e-8),
        "adafactor": optimizer(rng, momentum=0.9, beta2_cap=0.95, eps=1e-30),
        "lion": optimizer(rng, beta1=0.9, beta2=0.99),
        "learning_rate": (
            {},
            {"kind": "cosine", "total": 20, "warmup": 4, "steps": [0, 1, 4, 9, 20, 25]},
        ),
        "training_run": training(rng),
    }[operation]


def run_plain(operation, inputs, attrs):
    """The outputs of the plain function by path."""
    given = {
        name: [value[str(rank)] for rank in range(len(value))]
        if name in OPERATIONS[operation].shards
        else value
        for name, value in inputs.items()
    }
    out = PLAIN[operation](**given, **attrs)
    outputs = out if isinstance(out, tuple) else (out,)
    return flatten(dict(zip(OPERATIONS[operation].outputs, outputs, strict=True)))


def assert_equal_to_reference(operation, inputs, attrs):
    want = OPERATIONS[operation].reference(inputs, attrs, {}).out
    got = run_plain(operation, inputs, attrs)
    assert got.keys() == want.keys()
    for path, value in want.items():
        np.testing.assert_allclose(got[path], value, rtol=1e-12, atol=1e-12, err_msg=path)


def test_every_operation_has_a_plain_function():
    assert PLAIN.keys() == OPERATIONS.keys()


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_plain_function_takes_the_inputs_and_attributes_of_its_operation(operation):
    names = (*OPERATIONS[operation].inputs, *OPERATIONS[operation].attrs)
    assert inspect.signature(PLAIN[operation]).parameters.keys() == set(names)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_plain_function_equals_the_reference(operation, seed):
    inputs, attrs = make(operation, np.random.default_rng(seed))
    assert_equal_to_reference(operation, inputs, attrs)


@pytest.mark.parametrize("kind", ["cosine", "linear", "rsqrt"])
@pytest.mark.parametrize("warmup", [0, 3])
def test_every_schedule_equals_the_reference(kind, warmup):
    attrs = {"kind": kind, "total": 12, "warmup": warmup, "steps": list(range(15))}
    assert_equal_to_reference("learning_rate", {}, attrs)


@pytest.mark.parametrize("logit", [-1e4, -10.0, 0.0, 10.0, 1e4])
@pytest.mark.parametrize("operation", ["softplus", "log_sigmoid"])
def test_the_tails_keep_their_digits(operation, logit):
    inputs = {"x": np.asarray([logit])}
    want = OPERATIONS[operation].reference(inputs, {}, {}).out["out"]
    np.testing.assert_allclose(PLAIN[operation](**inputs), want, rtol=1e-14)


def test_a_text_tower_without_a_head_equals_the_reference():
    rng = np.random.default_rng(2)
    params = random_params(tower_configs(), rng)["txt"]
    del params["head"]
    assert_equal_to_reference("encode_text", {"tokens": sentences(rng), "params": params}, TOWER)


def test_training_without_a_text_head_equals_the_reference():
    inputs, attrs = training(np.random.default_rng(3))
    flat = {
        path: leaf
        for path, leaf in flatten(inputs["params"]).items()
        if not path.startswith("txt/head")
    }
    assert_equal_to_reference("training_run", inputs | {"params": unflatten(flat)}, attrs)


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_the_plain_functions_import_numpy_and_each_other_only(module):
    allowed = {"numpy", "collections.abc", "siglip_ref.types"}
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.Import):
            assert {alias.name for alias in node.names} == {"numpy"}
        elif isinstance(node, ast.ImportFrom):
            assert node.module in allowed or node.module.startswith("siglip_spec.plain.")
