"""What the oracle answers to each operation of the kit: outputs and gradients by name."""

from collections.abc import Mapping
from typing import Any

from . import encoders, losses, primitives, training
from .numbers import exact, map_leaves, reals
from .tape import gradients

Tree = Any
"""Nested dicts and lists of numbers."""


def answer(operation: str, inputs: Tree, attrs: Mapping[str, Any], cotangents: Tree) -> Tree:
    """{"out": …, "grad": …} of an operation, nested dicts and lists of 40-digit reals.

    inputs: by name, nested dicts (trees, shards) and nested lists of floats or integers;
    attrs: by name; cotangents: by output, empty if no gradients are wanted. The gradient of an
    input x that is made of floats is under "dx".
    """
    attrs = exact(dict(attrs))
    if not cotangents:
        return {"out": OPERATIONS[operation](exact(inputs), attrs), "grad": {}}
    still = {name: exact(inputs[name]) for name in NO_GRADIENT.get(operation, ())}
    moving = {name: tree for name, tree in inputs.items() if name not in still}
    outputs, by = gradients(
        lambda **given: OPERATIONS[operation](given | still, attrs), moving, cotangents
    )
    return {"out": outputs, "grad": {f"d{name}": tree for name, tree in by.items()}}


NO_GRADIENT = {
    "pairwise_sigmoid_loss": ("labels", "weights"),
    "embed": ("tokens",),
    "encode_image": ("images",),
    "encode_text": ("tokens",),
    "siglip": ("images", "tokens"),
}
"""The inputs of an operation that have no gradient: data, and what a user chooses."""


def joined(shards):
    """All rows of a batch from the shards of its ranks, in the order of the ranks."""
    return [row for rank in range(len(shards)) for row in shards[str(rank)]]


def pick(inputs, *names):
    """The inputs of these names, in order."""
    return [inputs[name] for name in names]


def _ring(loss, names):
    def of(inputs, _):
        zimg, ztxt = joined(inputs["zimg"]), joined(inputs["ztxt"])
        return {"loss": loss(zimg, ztxt, *pick(inputs, *names))}

    return of


def _optimizer(rule, settings):
    def of(inputs, attrs):
        grads = [inputs["grads"][str(step)] for step in range(len(inputs["grads"]))]
        shared = [attrs[name] for name in ("lr", "weight_decay", "schedule", "frozen")]
        own = [attrs[name] for name in settings]
        return {"params": rule(inputs["params"], grads, *shared, *own)}

    return of


def _normalize_pixels(inputs, _):
    return {"out": map_leaves(lambda byte: reals.mpf(2 * byte) / 255 - 1, inputs["pixels"])}


def _initial_scalars(_, __):
    return {"t_prime": reals.log(10), "b": reals.mpf(-10)}


def _learning_rate(_, attrs):
    schedule = [attrs[name] for name in ("kind", "total", "warmup")]
    return {"factors": [training.learning_rate(*schedule, step) for step in attrs["steps"]]}


def _clip_mean_gradient(inputs, attrs):
    trees = [inputs["grads"][str(rank)] for rank in range(len(inputs["grads"]))]
    return {"out": training.clipped(training.mean_tree(trees), attrs["max_norm"])}


def _training_run(inputs, attrs):
    model = {name: attrs[name] for name in ("image_heads", "text_heads", "eps", "norm_eps")}
    return training.training_run(*pick(inputs, "images", "tokens", "params"), attrs, model)


OPERATIONS = {
    "sigmoid_loss": lambda i, _: {"loss": losses.sigmoid_loss(**i)},
    "pairwise_sigmoid_loss": lambda i, _: {"loss": losses.sigmoid_loss(**i)},
    "tiled_sigmoid_loss": lambda i, _: {"loss": losses.sigmoid_loss(**i)},
    "softmax_loss": lambda i, _: {"loss": losses.softmax_loss(**i)},
    "initial_scalars": _initial_scalars,
    "dense": lambda i, _: {"out": primitives.dense(**i)},
    "layer_norm": lambda i, a: {"out": primitives.layer_norm(**i, **a)},
    "gelu_tanh": lambda i, _: {"out": primitives.gelu_tanh(**i)},
    "softmax": lambda i, _: {"out": primitives.softmax(**i)},
    "softplus": lambda i, _: {"out": primitives.softplus(**i)},
    "log_sigmoid": lambda i, _: {"out": primitives.log_sigmoid(**i)},
    "l2_normalize": lambda i, a: {"out": primitives.l2_normalize(**i, **a)},
    "scaled_cosine": lambda i, _: {"out": losses.scaled_cosine(**i)},
    "patch_embed": lambda i, _: {"out": primitives.patch_embed(**i)},
    "embed": lambda i, _: {"out": primitives.embed(**i)},
    "dot_product_attention": lambda i, _: {"out": primitives.dot_product_attention(**i)},
    "multi_head_attention": lambda i, a: {"out": primitives.multi_head_attention(**i, **a)},
    "normalize_pixels": _normalize_pixels,
    "block": lambda i, a: {"out": encoders.block(**i, **a)},
    "map_head": lambda i, a: {"out": encoders.map_head(**i, **a)},
    "encode_image": lambda i, a: {"zimg": encoders.image_tower(**i, **a)},
    "encode_text": lambda i, a: {"ztxt": encoders.text_tower(**i, **a)},
    "siglip": lambda i, a: training.siglip(**i, **a),
    "ring_sigmoid_loss": _ring(losses.sigmoid_loss, ("t_prime", "b")),
    "ring_softmax_loss": _ring(losses.softmax_loss, ("t_prime",)),
    "clip_mean_gradient": _clip_mean_gradient,
    "adamw": _optimizer(training.adamw, ("beta1", "beta2", "eps")),
    "adafactor": _optimizer(training.adafactor, ("momentum", "beta2_cap", "eps")),
    "lion": _optimizer(training.lion, ("beta1", "beta2")),
    "learning_rate": _learning_rate,
    "training_run": _training_run,
}
"""Inputs and attributes to outputs by name, for every operation."""
