"""Lion: the sign of an interpolated momentum."""

from typing import NamedTuple

from array_api_compat import array_namespace

from siglip_ref.optim.leaves import Decays, Factor, Schedule, kernels_decay
from siglip_ref.optim.state import zero_moments
from siglip_ref.optim.update import moved, update_leaves
from siglip_ref.precision import at_least_float32
from siglip_ref.types import Array, Map, Tree


class LionState(NamedTuple):
    """The momentum, a tree like the parameters in at least float32."""

    mu: Tree


def lion_init(params: Tree, schedule: Schedule = 1.0) -> LionState:
    """A momentum of zero; none at all for what `schedule` freezes."""
    return LionState(zero_moments(params, schedule))


def lion_update(
    grads: Tree,
    state: LionState,
    params: Tree,
    *,
    lr: float,
    schedule: Schedule = 1.0,
    weight_decay: float = 1e-7,
    beta1: float = 0.9,
    beta2: float = 0.99,
    decays: Decays = kernels_decay,
    parallel_map: Map = map,
) -> tuple[Tree, LionState]:
    """p ← p - schedule · (lr · sign(β₁ μ + (1 - β₁) g) + weight_decay · p);  μ ← β₂ μ + (1 - β₂) g.

    The decay is not multiplied by the learning rate, as in `adamw_update`. The defaults are those
    of SigLiT on four chips, which has lr = 1e-4.

    Raises ValueError if `grads` has not the paths of `params`.

    Source: arXiv:2302.06675, algorithm 2; arXiv:2303.15343, section 4.2.
    """

    def rule(path: str, factor: Factor, g: Array, p: Array, mu: Array) -> tuple[Array, ...]:
        xp = array_namespace(g)
        g = at_least_float32(g)
        step = lr * xp.sign(beta1 * mu + (1 - beta1) * g)
        if decays(path):
            step = step + weight_decay * at_least_float32(p)
        mu = beta2 * mu + (1 - beta2) * g
        return moved(p, step, factor), mu

    params, (mu,) = update_leaves(rule, grads, params, (state.mu,), schedule, parallel_map)
    return params, LionState(mu)
