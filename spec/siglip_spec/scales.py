"""S and A of a case: how far rounding moves each of its results, from disturbed runs.

    S = rms over the draws of (result disturbed relatively - result) / u
    A = the same with every result moved absolutely

The result itself may have to be rounded in the end, so S is at least half of it; and where nothing
goes in that could be disturbed, S is at least 1. Both are rounded up to 4 significant bits: they
are estimates, and their last bits would depend on the machine.
"""

from collections.abc import Mapping

import numpy as np

from siglip_ref.tree import tree_map
from siglip_ref.types import Tree
from siglip_spec.operations import OPERATIONS, Answer
from siglip_spec.perturb import Disturbance, Kind
from siglip_spec.suites import Case

DRAWS: Mapping[Kind, int] = {"relative": 64, "absolute": 16}
"""Disturbed runs of a case for S and for A."""

SIZES: Mapping[Kind, float] = {"relative": 2.0**-20, "absolute": 2.0**-40}
"""Small enough that results move linearly, large against the rounding of float64."""

_BITS = 4


def reference_answer(case: Case) -> Answer:
    """The core's own answer in float64."""
    return OPERATIONS[case.operation].reference(case.inputs, case.attrs, case.cotangents)


def measured_scale(case: Case) -> dict[str, np.ndarray]:
    """S of every output and gradient of a case, in float32."""
    truth = _results(reference_answer(case))
    smallest = 0.0 if case.inputs else 1.0
    return {
        name: rounded_up(np.maximum(moved, np.maximum(np.abs(truth[name]) / 2, smallest)))
        for name, moved in _spread(case, "relative", truth).items()
    }


def measured_underflow(case: Case) -> dict[str, np.ndarray]:
    """A of every output and gradient of a case, in float32."""
    moved = _spread(case, "absolute", _results(reference_answer(case)))
    return {name: rounded_up(array) for name, array in moved.items()}


def _spread(case: Case, kind: Kind, truth: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Rms deviation from the truth over the draws, in units of the disturbance."""
    size = SIZES[kind]
    squares = {name: np.zeros_like(array) for name, array in truth.items()}
    for draw in range(DRAWS[kind]):
        rng = np.random.default_rng([draw, kind == "absolute", *case.id.encode()])
        for name, array in _results(_disturbed(case, Disturbance(kind, size, rng))).items():
            squares[name] += np.square((array - truth[name]) / size)
    return {name: np.sqrt(total / DRAWS[kind]) for name, total in squares.items()}


def rounded_up(x: np.ndarray) -> np.ndarray:
    """`x` ≥ 0 in float32, rounded up to 4 significant bits."""
    mantissa, exponent = np.frexp(x)
    return np.asarray(np.ldexp(np.ceil(mantissa * 2**_BITS), exponent - _BITS), dtype=np.float32)


def _disturbed(case: Case, source: Disturbance) -> Answer:
    def wrapped(tree: Tree) -> Tree:
        return tree_map(source.asarray, tree)

    inputs = {name: wrapped(tree) for name, tree in case.inputs.items()}
    with np.errstate(all="ignore"):
        return OPERATIONS[case.operation].reference(inputs, case.attrs, wrapped(case.cotangents))


def _results(answer: Answer) -> dict[str, np.ndarray]:
    """Outputs and gradients in one dict, in NumPy."""
    found = {f"out/{name}": array for name, array in answer.out.items()}
    found |= {f"grad/{name}": array for name, array in answer.grad.items()}
    return {
        name: np.array(getattr(array, "array", array), dtype=np.float64)
        for name, array in found.items()
    }
