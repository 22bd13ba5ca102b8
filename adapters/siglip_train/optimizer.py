"""The optimizer and schedule that the settings name, behind one pair of functions."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import siglip_ref as sr
from siglip_ref.optim.adamw import AdamwLeaf, adamw_leaf
from siglip_ref.optim.leaves import Factor
from siglip_ref.types import Map, Tree
from siglip_train.settings import Settings


class Optimizer(NamedTuple):
    """State as a dict of trees, so that checkpoints can hold it."""

    init: Callable[[Tree], Tree]
    """Parameters to the first state."""

    update: Callable[[Tree, Tree, Tree, Factor], tuple[Tree, Tree]]
    """(grads, state, params, factor of the schedule) to (params, state)."""

    elementwise: bool
    """Whether what becomes of an element depends on nothing but that element."""


def make_optimizer(
    settings: Settings, parallel_map: Map = map, leaf: AdamwLeaf = adamw_leaf
) -> Optimizer:
    """AdamW with this `leaf`, Adafactor or Lion; frozen paths stay as they are."""
    state_type, init, rule = _rules(settings, leaf)

    def update(grads: Tree, state: Tree, params: Tree, factor: Factor) -> tuple[Tree, Tree]:
        params, new_state = rule(
            grads,
            state_type(**state),
            params,
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            schedule=lambda path: None if path.startswith(settings.freeze) else factor,
            parallel_map=parallel_map,
        )
        return params, new_state._asdict()

    elementwise = settings.optimizer != "adafactor"
    return Optimizer(lambda params: init(params)._asdict(), update, elementwise)


def schedule_factor(settings: Settings, step: int) -> float:
    """The factor of the next update, after `step` of them: 0 for the first if there is a warmup."""
    warmup = settings.warmup_steps
    if settings.schedule == "rsqrt":
        return sr.optim.rsqrt_schedule(step, warmup=warmup)
    shape = {"cosine": sr.optim.cosine_schedule, "linear": sr.optim.linear_schedule}
    return shape[settings.schedule](step, total=settings.steps, warmup=warmup)


def _rules(
    settings: Settings, leaf: AdamwLeaf
) -> tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]:
    """The type of the state, its first value, and the update rule."""
    optim = sr.optim
    if settings.optimizer == "lion":
        return optim.LionState, optim.lion_init, optim.lion_update
    if settings.optimizer == "adafactor":
        adafactor = partial(optim.adafactor_update, beta2_cap=settings.beta2)
        return optim.AdafactorState, optim.adafactor_init, adafactor
    adamw = partial(optim.adamw_update, beta2=settings.beta2, leaf=leaf)
    return optim.AdamState, optim.adamw_init, adamw
