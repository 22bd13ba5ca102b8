"""Adam's direction: the running mean of the gradient over that of its square, both unbiased."""

from typing import NamedTuple

from array_api_compat import array_namespace

from siglip_ref.optim.leaves import Schedule
from siglip_ref.optim.state import count_like, zero_moments
from siglip_ref.precision import at_least_float32
from siglip_ref.types import Array, Count, Float, Tree


class AdamState(NamedTuple):
    """Updates done, and the moments, trees like the parameters in at least float32."""

    step: Count
    mu: Tree
    nu: Tree


class AdamLeaf(NamedTuple):
    """One parameter's direction and its new moments."""

    direction: Float[Array, "*shape"]
    mu: Float[Array, "*shape"]
    nu: Float[Array, "*shape"]


def adam_init(params: Tree, schedule: Schedule = 1.0) -> AdamState:
    """No update done, all moments zero; none at all for what `schedule` freezes."""
    return AdamState(0, zero_moments(params, schedule), zero_moments(params, schedule))


def adam_leaf(
    g: Float[Array, "*shape"],
    mu: Float[Array, "*shape"],
    nu: Float[Array, "*shape"],
    count: Count,
    *,
    beta1: float,
    beta2: float,
    eps: float,
) -> AdamLeaf:
    """direction = m̂ / (sqrt(v̂) + eps) for update number `count` = 1, 2, …

        μ ← β₁ μ + (1 - β₁) g;   m̂ = μ / (1 - β₁ᶜ)
        ν ← β₂ ν + (1 - β₂) g²;  v̂ = ν / (1 - β₂ᶜ)

    Source: arXiv:1412.6980, algorithm 1.
    """
    xp = array_namespace(g)
    g = at_least_float32(g)
    count = count_like(count, g)
    mu = beta1 * mu + (1 - beta1) * g
    nu = beta2 * nu + (1 - beta2) * (g * g)
    step = mu / (1 - beta1**count)
    return AdamLeaf(step / (xp.sqrt(nu / (1 - beta2**count)) + eps), mu, nu)
