"""The tape against dual numbers, which must agree exactly.

They share the formulas and the slopes of `numbers`, and carry them in opposite directions. That the
slopes are right is what the central differences of `test_oracle_gradients.py` say.
"""

import numpy as np
import pytest

from siglip_ref.tree import flatten, tree_map
from siglip_spec import oracle
from siglip_spec.cases import DEFINITIONS
from siglip_spec.oracle import exact, gradient, gradients, reals
from siglip_spec.oracle.answers import NO_GRADIENT, OPERATIONS, answer
from siglip_spec.oracle.tape import Node


def sizes(case):
    return sum(array.size for array in flatten(case.inputs).values())


def small_cases(limit):
    return [
        pytest.param(case, id=case.id)
        for define in DEFINITIONS.values()
        for case in define()
        if case.rejected is None and case.cotangents and sizes(case) <= limit
    ]


def lists(tree):
    return tree_map(lambda array: array.tolist(), tree)


def numbers(tree):
    """All numbers of nested dicts and lists, in order."""
    if isinstance(tree, dict):
        return [x for child in tree.values() for x in numbers(child)]
    if isinstance(tree, list):
        return [x for child in tree for x in numbers(child)]
    return [tree]


@pytest.mark.parametrize("case", small_cases(limit=90))
def test_the_tape_gives_the_gradient_of_the_dual_numbers(case):
    by_tape = answer(case.operation, lists(case.inputs), case.attrs, lists(case.cotangents))
    still = NO_GRADIENT.get(case.operation, ())
    fixed = {name: exact(lists(case.inputs[name])) for name in still}
    moving = {name: lists(tree) for name, tree in case.inputs.items() if name not in still}
    (output,) = case.cotangents
    by_duals = gradient(
        lambda **given: OPERATIONS[case.operation](given | fixed, exact(dict(case.attrs)))[output],
        moving,
        lists(case.cotangents[output]),
    )
    assert list(by_tape["grad"]) == [f"d{name}" for name in by_duals]
    for one, other in zip(numbers(by_tape["grad"]), numbers(by_duals), strict=True):
        assert abs(one - other) <= reals.mpf("1e-35") * max(1, abs(other))


def test_a_number_used_twice_gets_both_shares():
    _, by = gradients(lambda x: {"y": x * x + 3 * x}, {"x": 2.0}, {"y": 1.0})
    assert by["x"] == 7


def test_an_output_without_a_cotangent_does_not_count():
    _, by = gradients(lambda x: {"y": x * x, "z": x * 100}, {"x": 2.0}, {"y": 1.0})
    assert by["x"] == 4


def test_a_long_chain_needs_no_deep_recursion():
    def chain(x):
        for _ in range(20_000):
            x = x + 1
        return {"y": x}

    _, by = gradients(chain, {"x": 0.0}, {"y": 1.0})
    assert by["x"] == 1


def test_the_norm_of_the_origin_moves_nothing():
    _, by = gradients(
        lambda x: {"y": oracle.l2_normalize(x, 0.5)}, {"x": [0.0, 0.0]}, {"y": [1.0, 3.0]}
    )
    assert by["x"] == [2, 6]


def test_integers_are_no_variables():
    outputs, by = gradients(lambda n, x: {"y": n * x}, {"n": 3, "x": 2.0}, {"y": 1.0})
    assert (outputs["y"], by["n"], by["x"]) == (6, 0, 3)
    assert not isinstance(outputs["y"], Node)


def test_every_operation_of_the_kit_has_an_oracle():
    from siglip_spec.operations import OPERATIONS as OF_THE_KIT

    assert set(OPERATIONS) == set(OF_THE_KIT)


def test_without_cotangents_there_is_no_gradient():
    found = answer("softplus", {"x": [0.0]}, {}, {})
    assert found["grad"] == {}
    np.testing.assert_allclose(float(found["out"]["out"][0]), np.log(2), rtol=1e-15)
