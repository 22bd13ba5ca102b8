"""Adafactor as big_vision has it: factored second moments, and a first moment on top."""

from typing import Any, NamedTuple

from array_api_compat import array_namespace

from siglip_ref.optim.leaves import Decays, Factor, Schedule, kernels_decay
from siglip_ref.optim.state import Shape, count_like, same_shape, zero_moments
from siglip_ref.optim.update import moved, update_leaves
from siglip_ref.precision import at_least_float32, cast_like
from siglip_ref.tree import tree_map
from siglip_ref.types import Array, Count, Float, Map, Tree

DType = Any
"""A dtype of an array namespace, such as `torch.bfloat16`."""

_SMALLEST_FACTORED = 32
_DECAY_EXPONENT = 0.8


class AdafactorState(NamedTuple):
    """Updates done; the second moments of rows and columns, or whole; the momentum.

    A factored leaf of shape (r, c) has `rows` (r,) and `columns` (c,) and an empty `whole`; any
    other leaf has `whole` of its own shape, and the two others empty.
    """

    step: Count
    rows: Tree
    columns: Tree
    whole: Tree
    mu: Tree


def adafactor_init(
    params: Tree, schedule: Schedule = 1.0, *, momentum_dtype: DType | None = None
) -> AdafactorState:
    """No update done, all moments zero; none at all for what `schedule` freezes.

    The momentum is kept in `momentum_dtype`, a dtype of the namespace of the parameters
    (big_vision: bfloat16); None means at least float32.
    """

    def moments(part: int) -> Tree:
        return zero_moments(params, schedule, lambda p: _moment_shapes(p)[part])

    mu = zero_moments(params, schedule)
    if momentum_dtype is not None:
        mu = tree_map(lambda m: array_namespace(m).astype(m, momentum_dtype), mu)
    return AdafactorState(0, moments(0), moments(1), moments(2), mu)


def adafactor_update(
    grads: Tree,
    state: AdafactorState,
    params: Tree,
    *,
    lr: float,
    schedule: Schedule = 1.0,
    weight_decay: float = 1e-4,
    momentum: float = 0.9,
    beta2_cap: float = 0.95,
    eps: float = 1e-30,
    decays: Decays = kernels_decay,
    parallel_map: Map = map,
) -> tuple[Tree, AdafactorState]:
    """p ← p - schedule · (lr · μ + weight_decay · p) with μ ← momentum μ + (1 - momentum) u, and

        β₂ = min(beta2_cap, 1 - c^-0.8)      c = 1, 2, … the number of the update
        R  ← β₂ R + (1 - β₂) mean over columns of (g² + eps);  C ← the same over rows
        u  = g / sqrt(R Cᵀ / mean(R))        for matrices of at least 32 x 32
        u  = g / sqrt(V), V ← β₂ V + (1 - β₂) (g² + eps)   for all others

    The momentum is not unbiased, and updates are not clipped. A narrow momentum (see
    `adafactor_init`) is widened, and rounded again only to be kept.

    big_vision factors a parameter over its two longest axes, if both are at least 32, separately
    for each index of the others. All is alike but for what has other axes there:

    | kernel | big_vision | here |
    | --- | --- | --- |
    | query, key, value | (d, h, k): d x k for each head | (d, d): as a whole |
    | out | (h, k, d): k x d for each head | (d, d): as a whole |
    | patch, p < 32 | (p, p, c, d): not factored | (p·p·c, d): as a whole |
    | patch, p = 32 | (p, p, c, d): p x d for each row and channel | (p·p·c, d): as a whole |

    Raises ValueError if `grads` has not the paths of `params`.

    Source: big_vision, `optax.py`, `scale_by_adafactor`; arXiv:2106.04560, section 3.5;
    arXiv:1804.04235, algorithm 4; β₂ capped at 0.95 in arXiv:2303.15343, section 4.
    """
    count = state.step + 1

    def rule(
        path: str,
        factor: Factor,
        g: Array,
        p: Array,
        rows: Array,
        columns: Array,
        whole: Array,
        mu: Array,
    ) -> tuple[Array, ...]:
        xp = array_namespace(g)
        g = at_least_float32(g)
        beta2 = _second_moment_decay(count_like(count, g), beta2_cap)
        square = g * g + eps
        if _is_factored(p):
            rows = beta2 * rows + (1 - beta2) * xp.mean(square, axis=1)
            columns = beta2 * columns + (1 - beta2) * xp.mean(square, axis=0)
            row_scale = 1 / xp.sqrt(rows / xp.mean(rows))
            column_scale = 1 / xp.sqrt(columns)
            u = g * xp.expand_dims(row_scale, axis=1) * xp.expand_dims(column_scale, axis=0)
        else:
            whole = beta2 * whole + (1 - beta2) * square
            u = g / xp.sqrt(whole)
        wide_mu = momentum * at_least_float32(mu) + (1 - momentum) * u
        step = lr * wide_mu
        if decays(path):
            step = step + weight_decay * at_least_float32(p)
        return moved(p, step, factor), rows, columns, whole, cast_like(wide_mu, mu)

    params, (rows, columns, whole, mu) = update_leaves(
        rule,
        grads,
        params,
        (state.rows, state.columns, state.whole, state.mu),
        schedule,
        parallel_map,
    )
    return params, AdafactorState(count, rows, columns, whole, mu)


def _second_moment_decay(count: float | Float[Array, ""], cap: float) -> float | Float[Array, ""]:
    decay = 1 - count**-_DECAY_EXPONENT
    if isinstance(decay, float):
        return min(decay, cap)
    xp = array_namespace(decay)
    return xp.minimum(decay, xp.full_like(decay, cap))


def _is_factored(p: Float[Array, "*shape"]) -> bool:
    return bool(len(p.shape) == 2 and min(p.shape) >= _SMALLEST_FACTORED)


def _moment_shapes(p: Float[Array, "*shape"]) -> tuple[Shape, Shape, Shape]:
    """The shapes of `rows`, `columns` and `whole`."""
    if _is_factored(p):
        return (p.shape[0],), (p.shape[1],), (0,)
    return (0,), (0,), same_shape(p)
