"""What the oracle answers, run anew, against the core on numbers that are in no vector.

The vectors hold the oracle's answers to short numbers, exact in every dtype. Here each operation's
first case keeps its shapes, and its floats have all 53 bits.
"""

import zlib
from dataclasses import replace

import numpy as np
import pytest

from agreement import as_lists, assert_within
from siglip_ref.tree import flatten, tree_map
from siglip_spec.cases import DEFINITIONS
from siglip_spec.operations import OPERATIONS
from siglip_spec.oracle import answer

RELATIVE = 1e-13
"""Of the largest element of an output or gradient."""

STEPS = 5
"""Of the training run, which costs the oracle more than a second each; all ten are a vector."""


def first_case(operation):
    cases = (case for define in DEFINITIONS.values() for case in define())
    return next(c for c in cases if c.operation == operation and c.rejected is None)


def redrawn(case):
    """The case with every float times a random factor in [1/2, 1): labels stay in [-1, 1]."""
    generator = np.random.default_rng(zlib.crc32(case.id.encode()))

    def shrink(x):
        if not np.issubdtype(x.dtype, np.floating):
            return x
        return np.asarray(x * generator.uniform(0.5, 1, x.shape))

    attrs = case.attrs | ({"steps": STEPS} if case.operation == "training_run" else {})
    inputs, cotangents = tree_map(shrink, case.inputs), tree_map(shrink, case.cotangents)
    return replace(case, inputs=inputs, cotangents=cotangents, attrs=attrs)


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_core_agrees_with_the_oracle_on_new_numbers(name):
    operation, case = OPERATIONS[name], redrawn(first_case(name))
    want = answer(name, as_lists(case.inputs), case.attrs, as_lists(case.cotangents))
    got = operation.reference(case.inputs, case.attrs, case.cotangents)
    assert_within(got.out, flatten(want["out"]), RELATIVE, f"{name} out")
    assert_within(got.grad, flatten(want["grad"]), RELATIVE, f"{name} grad")
    assert set(want["grad"]) == {f"d{name}" for name in operation.differentiable}
