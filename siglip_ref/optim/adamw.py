"""AdamW in its two conventions, which differ by a factor of the learning rate in the decay."""

from collections.abc import Callable
from typing import NamedTuple

from siglip_ref.optim.leaves import Decays, Factor, Schedule, kernels_decay
from siglip_ref.optim.moments import AdamState, adam_leaf
from siglip_ref.optim.update import moved, update_leaves
from siglip_ref.precision import at_least_float32
from siglip_ref.types import Array, Count, Float, Map, Tree


class AdamwRates(NamedTuple):
    """What AdamW is told of one parameter; the decay is None where it has none."""

    lr: float
    weight_decay: float | None
    beta1: float
    beta2: float
    eps: float


def adamw_leaf(
    p: Float[Array, "*shape"],
    g: Float[Array, "*shape"],
    mu: Float[Array, "*shape"],
    nu: Float[Array, "*shape"],
    count: Count,
    factor: Factor,
    rates: AdamwRates,
) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"], Float[Array, "*shape"]]:
    """(p, μ, ν) of one parameter after update number `count` = 1, 2, …, as in `adamw_update`."""
    leaf = adam_leaf(g, mu, nu, count, beta1=rates.beta1, beta2=rates.beta2, eps=rates.eps)
    lr, weight_decay = rates.lr, rates.weight_decay
    step = lr * leaf.direction
    if weight_decay is not None:
        step = step + weight_decay * at_least_float32(p)
    return moved(p, step, factor), leaf.mu, leaf.nu


AdamwLeaf = Callable[..., tuple[Array, Array, Array]]
"""`adamw_leaf`, or what does the same to rounding, perhaps in the memory of p, μ and ν."""


def adamw_update(
    grads: Tree,
    state: AdamState,
    params: Tree,
    *,
    lr: float,
    schedule: Schedule = 1.0,
    weight_decay: float = 1e-4,
    beta1: float = 0.9,
    beta2: float = 0.95,
    eps: float = 1e-8,
    decays: Decays = kernels_decay,
    leaf: AdamwLeaf = adamw_leaf,
    parallel_map: Map = map,
) -> tuple[Tree, AdamState]:
    """p ← p - schedule · (lr · adam + weight_decay · p): the new parameters and state.

    The decay is *not* multiplied by the learning rate, only by the schedule: 1e-4 here at
    lr = 1e-3 is 0.1 in Torch's convention. Only leaves with `decays(path)` decay, by default the
    kernels. β₂ = 0.95 is the paper's. `leaf` does one parameter.

    Raises ValueError if `grads` has not the paths of `params`.

    Source: big_vision, `optax.py` (its chain of transformations); arXiv:2303.15343, section 4.
    """
    count = state.step + 1

    def rule(
        path: str, factor: Factor, g: Array, p: Array, mu: Array, nu: Array
    ) -> tuple[Array, ...]:
        rates = AdamwRates(lr, weight_decay if decays(path) else None, beta1, beta2, eps)
        return leaf(p, g, mu, nu, count, factor, rates)

    params, (mu, nu) = update_leaves(
        rule, grads, params, (state.mu, state.nu), schedule, parallel_map
    )
    return params, AdamState(count, mu, nu)


def adamw_torch_update(
    grads: Tree,
    state: AdamState,
    params: Tree,
    *,
    lr: float,
    schedule: Schedule = 1.0,
    weight_decay: float = 1e-2,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    decays: Decays = lambda _: True,
    parallel_map: Map = map,
) -> tuple[Tree, AdamState]:
    """p ← p - schedule · lr · (adam + weight_decay · p), with Torch's defaults.

    Source: torch.optim.AdamW; arXiv:1711.05101, algorithm 2, with the rate as the multiplier.
    """
    return adamw_update(
        grads,
        state,
        params,
        lr=lr,
        schedule=schedule,
        weight_decay=lr * weight_decay,
        beta1=beta1,
        beta2=beta2,
        eps=eps,
        decays=decays,
        parallel_map=parallel_map,
    )
