"""The part of a `repro` script that compares, printed there with the plain functions."""

import base64
from collections.abc import Callable
from typing import Any

import numpy as np

from siglip_ref.types import Array, Tree
from siglip_spec import score

LAMBDA = score.LAMBDA
PRECISIONS: dict[str, tuple[float, float]] = {
    name: (p.unit_roundoff, p.smallest) for name, p in score.PRECISIONS.items()
}


def packed(dtype: str, shape: tuple[int, ...], text: str) -> Array:
    """The array of these bytes, in float64 or int64."""
    array = np.frombuffer(base64.b64decode(text), dtype).reshape(shape)
    return array.astype(np.int64 if "i" in dtype else np.float64)


def by_path(tree: Tree, path: str) -> dict[str, Array]:
    """The arrays of a nested dict by path."""
    if not isinstance(tree, dict):
        return {path: np.asarray(tree, dtype=np.float64)}
    return {k: v for name in tree for k, v in by_path(tree[name], f"{path}/{name}").items()}


def by_output(names: tuple[str, ...], result: Any) -> dict[str, Array]:
    """The outputs by name, from a bare value or a tuple."""
    values = result if isinstance(result, tuple) else (result,)
    pairs = zip(names, values, strict=True)
    return {k: v for name, value in pairs for k, v in by_path(value, f"out/{name}").items()}


def allowed(scale: Array, underflow: Array, dtype: str) -> Array:
    """The tolerance, lambda (u max(scale, u rms(scale)) + eta underflow)."""
    u, eta = PRECISIONS[dtype]
    s = np.asarray(scale, dtype=np.float64)
    return LAMBDA * (u * np.maximum(s, u * np.sqrt(np.mean(s * s))) + eta * underflow)


def compare(name: str, got: Array, want: Array, scale: Array, underflow: Array, dtype: str) -> bool:
    """Print the worst element; whether all are within the tolerance."""
    got = np.asarray(got, dtype=np.float64)
    if got.shape != want.shape:
        print(f"{name}: DISAGREES: the shape is {got.shape}, wanted {want.shape}")
        return False
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.abs(got - want) / allowed(scale, underflow, dtype)
    ratio = np.where(got == want, 0.0, np.where(np.isnan(ratio), np.inf, ratio))
    worst = np.unravel_index(np.argmax(ratio), ratio.shape)
    place = f"{name}{[int(i) for i in worst] or ''}"
    agrees = bool(ratio[worst] <= 1)
    print(
        f"{place}: {'agrees' if agrees else 'DISAGREES'}: got {got[worst]:.17g}, want "
        f"{want[worst]:.17g}, {ratio[worst]:.3g} tolerances of {dtype}"
    )
    return agrees


def derivative(moved: Callable[[float], float]) -> tuple[float, float]:
    """The derivative at 0 by Richardson's rule, and how wrong it may be: the best of many steps."""
    found = []
    for h in 2.0 ** -np.arange(3, 42):
        ends = [moved(step) for step in (h, -h, h / 2, -h / 2)]
        coarse, fine = (ends[0] - ends[1]) / (2 * h), (ends[2] - ends[3]) / h
        value = (4 * fine - coarse) / 3
        error = 4 * abs(value - fine) + 64 * 2.0**-53 * max(abs(end) for end in ends) / h
        found.append((value, error))
    floor = 1e-6 * max(abs(value) for value, _ in found) + 1e-300
    return min(found, key=lambda pair: pair[1] / (abs(pair[0]) + floor))
