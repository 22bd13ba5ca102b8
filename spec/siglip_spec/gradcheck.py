"""A user's own gradient against the slopes of the user's own function; no vectors needed.

    ⟨u, f(x + h e)⟩ - ⟨u, f(x - h e)⟩   against   ⟨dx, e⟩      for every element e of every input

in float64, by central differences of order 8. Differences in float32 have three good digits, so
nothing is concluded from them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from siglip_ref.tree import flatten, unflatten
from siglip_ref.types import Tree

STEP = 1e-3
"""The step, relative to the largest number of an input or 1."""

STENCIL = {1: 4 / 5, 2: -1 / 5, 3: 4 / 105, 4: -1 / 280}
"""Weights of f(+i) - f(-i) in the central difference of order 8 (Fornberg 1988, table 1)."""

TOLERANCE = 1e-8
"""Relative to the largest element of a gradient; rounding leaves about 1e-12 of f's size."""

_ROUNDING = 64 * 2.0**-52 / STEP

Outputs = dict[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class GradientRecord:
    """The worst element of one gradient."""

    name: str
    elements: int
    worst_index: tuple[int, ...]
    got: float
    want: float
    error: float
    """|got - want| relative to the largest element of the gradient."""
    allowed: float
    """The largest error that passes: the tolerance and what rounding does to differences."""

    @property
    def passed(self) -> bool:
        """Whether the gradient is the slope; never so for one that is not finite."""
        return self.error <= self.allowed


def check_gradients(
    function: Callable[[dict[str, Tree]], Outputs],
    gradient: Callable[[dict[str, Tree], Outputs], Mapping[str, np.ndarray]],
    inputs: dict[str, Tree],
    differentiable: tuple[str, ...],
    *,
    seed: int = 0,
) -> list[GradientRecord]:
    """Compare every element of every gradient with the slope of the function.

    function
        Inputs by name, trees of float64 arrays, to float64 outputs by name.
    gradient
        Inputs and cotangents by output name to gradients: that of the input x under `dx`, of a
        leaf of it under `dx/path`.

    Raises TypeError unless the outputs are in float64, ValueError for a gradient that is missing
    or of another shape than its input.
    """
    outputs = {name: np.asarray(out) for name, out in function(inputs).items()}
    for name, out in outputs.items():
        if out.dtype != np.float64:
            raise TypeError(
                f"gradients are checked in float64 only, but {name} came back in {out.dtype}: "
                "central differences in float32 have about three good digits"
            )
    rng = np.random.default_rng(seed)
    cotangents = {name: _cotangent(rng, out) for name, out in outputs.items()}
    size = sum(float(np.sum(np.abs(cotangents[name] * out))) for name, out in outputs.items())
    got = gradient(inputs, cotangents)
    leaves = flatten({name: inputs[name] for name in differentiable})

    def value(path: str, leaf: np.ndarray) -> float:
        moved = unflatten({**flatten(inputs), path: leaf})
        return sum(float(np.sum(cotangents[name] * out)) for name, out in function(moved).items())

    records = []
    for path, leaf in leaves.items():
        name = f"d{path}"
        if name not in got:
            raise ValueError(f"the gradient {name} is missing; there are {', '.join(got)}")
        found = np.asarray(got[name], dtype=np.float64)
        if found.shape != leaf.shape:
            raise ValueError(f"{name} must have the shape {leaf.shape}, got {found.shape}")
        step = STEP * max(1.0, float(np.max(np.abs(leaf), initial=0.0)))
        slopes = np.empty(leaf.shape)
        for index in np.ndindex(leaf.shape):
            slopes[index] = _slope(value, path, leaf, index, step)
        records.append(_record(name, found, slopes, size))
    return records


def _cotangent(rng: np.random.Generator, out: np.ndarray) -> np.ndarray:
    # Away from 0, so that no output counts for nothing.
    return np.asarray(rng.uniform(0.5, 1.5, out.shape) * rng.choice([-1.0, 1.0], out.shape))


def _slope(
    value: Callable[[str, np.ndarray], float],
    path: str,
    leaf: np.ndarray,
    index: tuple[int, ...],
    step: float,
) -> float:
    total = 0.0
    for distance, weight in STENCIL.items():
        there, back = leaf.copy(), leaf.copy()
        there[index] += distance * step
        back[index] -= distance * step
        total += weight * (value(path, there) - value(path, back))
    return total / step


def _record(name: str, got: np.ndarray, want: np.ndarray, size: float) -> GradientRecord:
    largest = float(np.max(np.abs(want), initial=0.0)) or 1.0
    error = np.where(np.isfinite(got), np.abs(got - want), np.inf) / largest
    worst = tuple(int(i) for i in np.unravel_index(int(np.argmax(error)), error.shape))
    allowed = TOLERANCE + _ROUNDING * size / largest
    return GradientRecord(
        name, got.size, worst, float(got[worst]), float(want[worst]), float(error[worst]), allowed
    )


def table(records: list[GradientRecord]) -> str:
    """The records as lines of text, the worst element of each gradient."""
    lines = [f"{'gradient':28} {'elements':>8}  {'worst error':>11}  {'allowed':>8}"]
    for record in records:
        mark = "ok" if record.passed else "FAIL"
        line = (
            f"{record.name:28} {record.elements:8}  {record.error:11.2e}  "
            f"{record.allowed:8.1e}  {mark}"
        )
        if not record.passed:
            at = f" at {list(record.worst_index)}" if record.worst_index else ""
            line += f"{at}: got {record.got:.9g}, the slope is {record.want:.9g}{_ratio(record)}"
        lines.append(line)
    return "\n".join(lines)


def _ratio(record: GradientRecord) -> str:
    usable = np.isfinite(record.got) and record.want != 0
    return f", factor {record.got / record.want:.6g}" if usable else ""


def inputs_from(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, Any]:
    """Normal float64 arrays of these shapes."""
    rng = np.random.default_rng(seed)
    return {name: np.asarray(rng.standard_normal(shape)) for name, shape in shapes.items()}
