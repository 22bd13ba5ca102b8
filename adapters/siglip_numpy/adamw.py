"""AdamW of one parameter over the parameter and its moments, on what fits into a cache."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from siglip_ref.optim.adamw import AdamwRates
from siglip_ref.optim.adamw import adamw_leaf as formula
from siglip_ref.optim.leaves import Factor
from siglip_ref.types import Array, Count, Float

BLOCK = 2**16
"""Elements worked on at a time."""


def adamw_leaf(
    p: Float[Array, "*shape"],
    g: Float[Array, "*shape"],
    mu: Float[Array, "*shape"],
    nu: Float[Array, "*shape"],
    count: Count,
    factor: Factor,
    rates: AdamwRates,
) -> tuple[Array, Array, Array]:
    """What `siglip_ref.optim.adamw.adamw_leaf` gives, to rounding, in the memory of `p`, `mu` and
    `nu`.

    Arrays of mixed precisions, or that cannot be written to, go to the core's function, which makes
    new arrays.
    """
    if not _fit(p, mu, nu, g):
        return formula(p, g, mu, nu, count, factor, rates)
    lr, weight_decay, beta1, beta2, eps = rates
    factor, count = float(factor), int(count)
    scale = math.sqrt(1 - beta2**count)
    flat = [np.asarray(x).reshape(-1) for x in (p, g, mu, nu)]
    scratch = np.empty(min(BLOCK, flat[0].size), dtype=p.dtype)
    for start in range(0, flat[0].size, BLOCK):
        param, grad, m, v = (x[start : start + BLOCK] for x in flat)
        change = scratch[: len(param)]
        np.subtract(grad, m, out=change)
        change *= 1 - beta1
        m += change
        np.multiply(grad, grad, out=change)
        change -= v
        change *= 1 - beta2
        v += change
        np.sqrt(v, out=change)
        change += eps * scale
        np.divide(m, change, out=change)
        change *= factor * lr * scale / (1 - beta1**count)
        if weight_decay:
            param *= 1 - factor * weight_decay
        param -= change
    return p, mu, nu


def _fit(*arrays: NDArray[Any]) -> bool:
    """Arrays of one dtype and shape, all but the last to be written to."""
    first = arrays[0]
    return (
        first.dtype in (np.float32, np.float64)
        and all(x.dtype == first.dtype and x.shape == first.shape for x in arrays)
        and all(x.flags.c_contiguous and x.flags.writeable for x in arrays[:-1])
    )
