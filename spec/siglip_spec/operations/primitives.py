"""The operations of the profile `primitives`: the parts that the towers are made of.

Each has one output, `out`.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from array_api_compat import array_namespace

from siglip_ref import primitives
from siglip_ref.types import Array, Tree
from siglip_spec.operations.operation import Answer, Operation, answer

Gradients = Callable[[Any, Array], dict[str, Tree]]
"""(residuals, dout) to the gradients by the name of the input."""


def _run(
    forward: Callable[[dict[str, Tree], Mapping[str, Any]], tuple[Array, Any]],
    backward: Gradients,
    inputs: dict[str, Tree],
    attrs: Mapping[str, Any],
    cotangents: Mapping[str, Array],
) -> Answer:
    out, res = forward(inputs, attrs)
    return answer({"out": out}, backward(res, cotangents["out"]) if cotangents else None)


def _of_one(backward: Callable[[Any, Array], Array], res: Any, dout: Array) -> dict[str, Tree]:
    return {"dx": backward(res, dout)}


def _of_x_and_params(
    backward: Callable[[Any, Array], tuple[Array, Tree]], names: dict[str, str], res: Any, dout: Any
) -> dict[str, Tree]:
    dx, dparams = backward(res, dout)
    first, *_ = (name for name, key in names.items() if not key)
    return {first: dx, **{name: dparams[key] for name, key in names.items() if key}}


def _dense_forward(inputs: dict[str, Tree], _: Mapping[str, Any]) -> tuple[Array, Any]:
    return primitives.dense_fwd(inputs["x"], {"kernel": inputs["kernel"], "bias": inputs["bias"]})


def _layer_norm_forward(inputs: dict[str, Tree], attrs: Mapping[str, Any]) -> tuple[Array, Any]:
    params: Any = {"scale": inputs["scale"], "bias": inputs["bias"]}
    return primitives.layer_norm_fwd(inputs["x"], params, attrs["eps"])


def _patch_embed_forward(inputs: dict[str, Tree], _: Mapping[str, Any]) -> tuple[Array, Any]:
    params: Any = {"kernel": inputs["kernel"], "bias": inputs["bias"]}
    return primitives.patch_embed_fwd(inputs["images"], params)


def _elementwise(
    forward: Callable[[Array], tuple[Array, Any]], inputs: dict[str, Tree], _: Mapping[str, Any]
) -> tuple[Array, Any]:
    return forward(inputs["x"])


def _attention_forward(inputs: dict[str, Tree], _: Mapping[str, Any]) -> tuple[Array, Any]:
    return primitives.dot_product_attention_fwd(inputs["query"], inputs["key"], inputs["value"])


def _multi_head_forward(inputs: dict[str, Tree], attrs: Mapping[str, Any]) -> tuple[Array, Any]:
    return primitives.multi_head_attention_fwd(
        inputs["x"], inputs["y"], inputs["params"], attrs["num_heads"]
    )


def _normalize_pixels(
    inputs: dict[str, Tree], _: Mapping[str, Any], __: Mapping[str, Array]
) -> Answer:
    """out = pixels / 127.5 - 1, for bytes in the order red, green, blue."""
    xp = array_namespace(inputs["pixels"])
    return answer({"out": xp.astype(inputs["pixels"], xp.float64) / 127.5 - 1})


def _named(names: tuple[str, ...], backward: Callable[..., Any], res: Any, dout: Array) -> Any:
    return dict(zip(names, backward(res, dout), strict=True))


def _differentiable(
    name: str,
    forward: Callable[[dict[str, Tree], Mapping[str, Any]], tuple[Array, Any]],
    backward: Gradients,
    inputs: tuple[str, ...],
    attrs: tuple[str, ...] = (),
    integers: tuple[str, ...] = (),
) -> Operation:
    reference = partial(_run, forward, backward)
    floats = tuple(x for x in inputs if x not in integers)
    return Operation(name, inputs, ("out",), reference, floats, attrs)


def _unary(name: str, forward: Any, backward: Any) -> Operation:
    return _differentiable(name, partial(_elementwise, forward), partial(_of_one, backward), ("x",))


_DENSE = {"dx": "", "dkernel": "kernel", "dbias": "bias"}

PRIMITIVE_OPERATIONS = (
    _differentiable(
        "dense",
        _dense_forward,
        partial(_of_x_and_params, primitives.dense_bwd, _DENSE),
        ("x", "kernel", "bias"),
    ),
    _differentiable(
        "layer_norm",
        _layer_norm_forward,
        partial(
            _of_x_and_params,
            primitives.layer_norm_bwd,
            {"dx": "", "dscale": "scale", "dbias": "bias"},
        ),
        ("x", "scale", "bias"),
        ("eps",),
    ),
    _unary("gelu_tanh", primitives.gelu_tanh_fwd, primitives.gelu_tanh_bwd),
    _unary("softmax", primitives.softmax_fwd, primitives.softmax_bwd),
    _unary("softplus", primitives.softplus_fwd, primitives.softplus_bwd),
    _unary("log_sigmoid", primitives.log_sigmoid_fwd, primitives.log_sigmoid_bwd),
    _differentiable(
        "l2_normalize",
        lambda inputs, attrs: primitives.l2_normalize_fwd(inputs["x"], attrs["eps"]),
        partial(_of_one, primitives.l2_normalize_bwd),
        ("x",),
        ("eps",),
    ),
    _differentiable(
        "scaled_cosine",
        lambda inputs, _: primitives.scaled_cosine_fwd(
            inputs["zimg"], inputs["ztxt"], inputs["t_prime"]
        ),
        partial(_named, ("dzimg", "dztxt", "dt_prime"), primitives.scaled_cosine_bwd),
        ("zimg", "ztxt", "t_prime"),
    ),
    _differentiable(
        "patch_embed",
        _patch_embed_forward,
        partial(
            _of_x_and_params,
            primitives.patch_embed_bwd,
            {"dimages": "", "dkernel": "kernel", "dbias": "bias"},
        ),
        ("images", "kernel", "bias"),
    ),
    _differentiable(
        "embed",
        lambda inputs, _: primitives.embed_fwd(inputs["tokens"], inputs["embedding"]),
        lambda res, dout: {"dembedding": primitives.embed_bwd(res, dout)},
        ("tokens", "embedding"),
        integers=("tokens",),
    ),
    _differentiable(
        "dot_product_attention",
        _attention_forward,
        partial(_named, ("dquery", "dkey", "dvalue"), primitives.dot_product_attention_bwd),
        ("query", "key", "value"),
    ),
    _differentiable(
        "multi_head_attention",
        _multi_head_forward,
        partial(_named, ("dx", "dy", "dparams"), primitives.multi_head_attention_bwd),
        ("x", "y", "params"),
        ("num_heads",),
    ),
    Operation("normalize_pixels", ("pixels",), ("out",), _normalize_pixels),
)
