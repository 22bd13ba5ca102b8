"""One training step: gradients in the precision of the settings, then the update."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace

import siglip_ref as sr
from siglip_ref.backend import Backend
from siglip_ref.communicator import Communicator
from siglip_ref.optim import LossScale
from siglip_ref.optim.adamw import adamw_leaf
from siglip_ref.optim.leaves import Factor
from siglip_ref.precision import as_dtype
from siglip_ref.types import Array, Map, Tree
from siglip_train.in_place import Update, in_place
from siglip_train.optimizer import make_optimizer, schedule_factor
from siglip_train.settings import Settings

SCALARS = ("t_prime", "b")
"""Parameters that are float32 in any precision."""


class TrainState(NamedTuple):
    """All that changes during a run: with it and the settings, the rest of the run is determined.

    `step` counts the optimizer steps done; `epoch` and `batch` say which batch comes next.
    """

    params: Tree
    optimizer: Tree
    ema: Tree
    step: int
    epoch: int
    batch: int
    loss_scale: LossScale = LossScale()


Step = Callable[[TrainState, Array, Array], tuple[TrainState, dict[str, Any]]]
"""State, images and tokens to the state after the step, at the same batch, and its record.

The new state may take the memory of the old one, which is not to be used again."""


def initial_state(params: Tree, settings: Settings) -> TrainState:
    """The state before the first step."""
    ema = sr.tree.tree_map(np.copy, params) if settings.ema else {}
    return TrainState(params, make_optimizer(settings).init(params), ema, 0, 0, 0)


def make_step(
    settings: Settings,
    config: sr.SiglipConfig,
    backend: Backend,
    comm: Communicator | None,
    parallel_map: Map,
) -> Step:
    """The step of a run. Parameters and their state stay in float32 in every precision.

    In float16 the loss is scaled (`siglip_ref.optim.loss_scale_update`), and an update with
    gradients that are not finite is left out: its record has no gradient norm, and `skipped` true.

    Raises ValueError if the backend has not the precision.
    """
    scaled = settings.precision == "float16"
    dtype, float32 = backend.dtype(settings.precision), backend.dtype("float32")

    def gradients(params: Tree, images: Array, tokens: Array, dloss: Array) -> tuple[Any, ...]:
        loss, grads = sr.loss_and_grads(
            in_precision(params, dtype),
            as_dtype(images, dtype),
            tokens,
            config,
            settings.loss,
            tile=settings.tile or None,
            microbatch=settings.microbatch or None,
            remat=settings.remat,
            parallel_map=parallel_map,
            block_loss=backend.sigmoid_loss,
            comm=comm,
            dloss=dloss if scaled else None,
        )
        grads = sr.tree.tree_map(lambda g: as_dtype(g, float32), grads)
        if scaled:
            grads = sr.tree.tree_map(lambda g: g / dloss, grads)
        return loss, grads, sr.optim.global_norm(grads)

    update, average = make_update(settings, backend, parallel_map)
    if comm is None:  # messages between processes cannot be compiled; a backend may do the towers
        gradients = backend.compile(gradients)

    def step(state: TrainState, images: Array, tokens: Array) -> tuple[TrainState, dict[str, Any]]:
        dloss = full_like(state.params["t_prime"], state.loss_scale.scale)
        loss, grads, norm = gradients(state.params, images, tokens, dloss)
        factor = schedule_factor(settings, state.step)
        record: dict[str, Any] = {
            "loss": float(loss),
            "t": math.exp(float(state.params["t_prime"])),
            "b": float(state.params["b"]),
            "gradient_norm": float(norm),
            "schedule": factor,
        }
        finite = math.isfinite(record["gradient_norm"])
        state = state._replace(step=state.step + 1)
        if scaled:
            loss_scale = sr.optim.loss_scale_update(state.loss_scale, finite=finite)
            record |= {"loss_scale": state.loss_scale.scale, "skipped": not finite}
            record["gradient_norm"] = record["gradient_norm"] if finite else None
            state = state._replace(loss_scale=loss_scale)
        if finite:
            factors = full_like(state.params["t_prime"], factor), clip_factor(settings, norm)
            params, optimizer = update(grads, state.optimizer, state.params, factors)
            ema = average(params, {}, state.ema, None)[0] if settings.ema else state.ema
            state = state._replace(params=params, optimizer=optimizer, ema=ema)
        return state, record

    return step


def make_update(settings: Settings, backend: Backend, parallel_map: Map) -> tuple[Update, Update]:
    """The optimizer's update, and that of the average, in the form of `in_place.Update`.

    The first takes as factors those of the schedule and of the clipping, the second the parameters
    in the place of gradients, and neither state nor factors. The first may write over all three
    trees that it is given, the second over the average.
    """
    block = backend.update_block
    leaf = backend.adamw_leaf if settings.optimizer == "adamw" else None
    in_blocks = block is not None and leaf is None
    optimizer = make_optimizer(settings, map if in_blocks else parallel_map, leaf or adamw_leaf)

    def update(
        grads: Tree, state: Tree, params: Tree, factors: tuple[Factor, Factor]
    ) -> tuple[Tree, Tree]:
        schedule, clipping = factors
        if settings.clip_norm:
            grads = sr.tree.tree_map(partial(_times, clipping), grads)
        return optimizer.update(grads, state, params, schedule)

    def average(params: Tree, state: Tree, ema: Tree, _: None) -> tuple[Tree, Tree]:
        return sr.optim.ema_update(ema, params, settings.ema), state

    if block is None:
        return backend.compile(update, donate=(1, 2)), backend.compile(average, donate=(2,))
    size = block if optimizer.elementwise else math.inf
    return (
        in_place(update, size, parallel_map) if in_blocks else update,
        in_place(average, block, parallel_map),
    )


def _times(factor: Factor, x: Array) -> Array:
    """factor · x in the memory of `x` if its library can write to arrays."""
    x *= factor
    return x


def clip_factor(settings: Settings, norm: Array) -> Array:
    """What clips gradients of this norm; 1 if the settings do not clip."""
    return sr.optim.clip_factor(norm, settings.clip_norm or math.inf)


def in_precision(params: Tree, dtype: Any) -> Tree:
    """The parameters that the towers compute with, in this dtype; t' and b stay in float32."""
    return sr.tree.tree_map_with_path(
        lambda path, p: p if path in SCALARS else as_dtype(p, dtype), params
    )


def full_like(x: Array, value: float) -> Array:
    """A 0-d array with this value, of the library, device and dtype of `x`."""
    xp = array_namespace(x)
    return xp.full_like(x, value)
