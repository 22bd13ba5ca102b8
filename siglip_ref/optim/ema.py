"""The exponential moving average of parameters."""

from siglip_ref.precision import at_least_float32, cast_like
from siglip_ref.tree import tree_map
from siglip_ref.types import Tree


def ema_update(ema: Tree, params: Tree, decay: float) -> Tree:
    """ema ← decay · ema + (1 - decay) · params, in at least float32.

    After k updates towards constant parameters what is left of the start is decayᵏ.

    Raises ValueError unless `decay` lies in [0, 1), or if the trees differ in structure.
    """
    if not 0 <= decay < 1:
        raise ValueError(f"decay must lie in [0, 1), got {decay!r}")
    return tree_map(
        lambda e, p: cast_like(decay * at_least_float32(e) + (1 - decay) * at_least_float32(p), e),
        ema,
        params,
    )
