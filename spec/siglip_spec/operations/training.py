"""The operations of the profile `trajectory`: optimizers, schedules, and ten steps of training."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from array_api_compat import array_namespace

import siglip_ref as sr
from siglip_ref import optim
from siglip_ref.types import Array, Tree
from siglip_spec.operations.encoders import MODEL_ATTRS, model_config
from siglip_spec.operations.operation import Answer, Operation, answer

_UPDATE_ATTRS = ("lr", "weight_decay", "schedule", "frozen")
_RUN_ATTRS = ("lr", "weight_decay", "beta1", "beta2", "adam_eps", "clip_norm", "warmup", "steps")


def _updates(
    init: Callable[..., Any],
    update: Callable[..., Any],
    settings: tuple[str, ...],
    inputs: dict[str, Tree],
    attrs: Mapping[str, Any],
    _: Mapping[str, Array],
) -> Answer:
    """One update for each of the gradients, in their order; frozen paths have no factor."""
    params, frozen = inputs["params"], tuple(attrs["frozen"])

    def schedule_of(factor: float) -> Callable[[str], float | None]:
        return lambda path: None if path.startswith(frozen) else factor

    state = init(params, schedule_of(1.0))
    for step, factor in enumerate(attrs["schedule"]):
        params, state = update(
            inputs["grads"][str(step)],
            state,
            params,
            schedule=schedule_of(factor),
            **{name: attrs[name] for name in ("lr", "weight_decay", *settings)},
        )
    return answer({"params": params})


def _learning_rate(_: dict[str, Tree], attrs: Mapping[str, Any], __: Mapping[str, Array]) -> Answer:
    """The factor of the learning rate at the given steps."""
    warmup, total = attrs["warmup"], attrs["total"]
    factor = {
        "cosine": partial(optim.cosine_schedule, total=total, warmup=warmup),
        "linear": partial(optim.linear_schedule, total=total, warmup=warmup),
        "rsqrt": partial(optim.rsqrt_schedule, warmup=warmup),
    }[attrs["kind"]]
    return answer({"factors": np.asarray([factor(step) for step in attrs["steps"]])})


def _training_run(
    inputs: dict[str, Tree], attrs: Mapping[str, Any], _: Mapping[str, Array]
) -> Answer:
    """`steps` updates on one batch: gradients, clipped, AdamW on a cosine schedule with warmup."""
    images, tokens, params = (inputs[name] for name in ("images", "tokens", "params"))
    config = model_config(params, images, tokens, attrs)
    state, losses = optim.adamw_init(params), []
    for step in range(attrs["steps"]):
        loss, grads = sr.loss_and_grads(params, images, tokens, config)
        losses.append(loss)
        grads, _norm = optim.clip_by_global_norm(grads, attrs["clip_norm"])
        params, state = optim.adamw_update(
            grads,
            state,
            params,
            lr=attrs["lr"],
            schedule=optim.cosine_schedule(step, total=attrs["steps"], warmup=attrs["warmup"]),
            weight_decay=attrs["weight_decay"],
            beta1=attrs["beta1"],
            beta2=attrs["beta2"],
            eps=attrs["adam_eps"],
        )
    xp = array_namespace(*losses)
    return answer({"losses": xp.stack(losses), "params": params})


def _optimizer(
    name: str, init: Callable[..., Any], update: Callable[..., Any], settings: tuple[str, ...]
) -> Operation:
    reference = partial(_updates, init, update, settings)
    attrs = (*_UPDATE_ATTRS, *settings)
    return Operation(name, ("params", "grads"), ("params",), reference, attrs=attrs)


TRAINING_OPERATIONS = (
    _optimizer("adamw", optim.adamw_init, optim.adamw_update, ("beta1", "beta2", "eps")),
    _optimizer(
        "adafactor", optim.adafactor_init, optim.adafactor_update, ("momentum", "beta2_cap", "eps")
    ),
    _optimizer("lion", optim.lion_init, optim.lion_update, ("beta1", "beta2")),
    Operation(
        "learning_rate",
        (),
        ("factors",),
        _learning_rate,
        attrs=("kind", "total", "warmup", "steps"),
    ),
    Operation(
        "training_run",
        ("images", "tokens", "params"),
        ("losses", "params"),
        _training_run,
        attrs=(*MODEL_ATTRS, *_RUN_ATTRS),
    ),
)
