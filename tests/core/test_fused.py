"""Forms that an adapter has for its own arrays."""

import numpy as np
import pytest

from siglip_ref import primitives
from siglip_ref.fused import formula_of, fusable, register_form
from siglip_ref.primitives.layer_norm import LayerNormResiduals


class Elsewhere(np.ndarray):
    """Arrays of a library that has forms of its own."""


def elsewhere(x):
    return np.asarray(x).view(Elsewhere)


@fusable
def doubled(x, by=2.0):
    """out = by x."""
    return by * x


@fusable
def undone(res, dout):
    """Where the first argument is residuals, their first field decides."""
    return "formula"


register_form(doubled, Elsewhere, lambda _, by=2.0: ("form", by))
register_form(undone, Elsewhere, lambda *_: "form")


def test_arrays_of_the_registered_type_take_the_form():
    assert doubled(elsewhere([1.0]), by=3.0) == ("form", 3.0)


def test_other_arrays_and_named_arguments_take_the_formula():
    assert doubled(np.asarray(2.0)) == 4.0
    assert doubled(x=np.asarray(2.0), by=3.0) == 6.0


def test_residuals_count_by_their_first_array():
    assert undone((elsewhere([1.0]), None), None) == "form"
    assert undone(((elsewhere([1.0]),), None), None) == "form"
    assert undone(LayerNormResiduals(np.ones((1, 1)), np.ones((1, 1)), {}), None) == ("formula")
    assert undone((), None) == "formula"


def test_the_formula_stays_at_hand():
    assert formula_of(doubled)(elsewhere([1.0])) == 2.0
    assert doubled.__doc__ == "out = by x."
    assert doubled.__name__ == "doubled"


def test_a_later_form_takes_the_place_of_an_earlier_one():
    @fusable
    def operation(x):
        return 0

    for number in (1, 2):
        register_form(operation, Elsewhere, lambda _, number=number: number)
        assert operation(elsewhere([1.0])) == number


def test_an_operation_that_is_not_marked_has_no_forms():
    with pytest.raises(ValueError, match="operation must be one marked as fusable, got <function"):
        register_form(primitives.dense_bwd, Elsewhere, primitives.dense_bwd)


@pytest.mark.parametrize("name", ["gelu_tanh", "layer_norm", "dot_product_attention"])
def test_operations_of_the_core_are_marked_in_pairs(name):
    for way in ("fwd", "bwd"):
        operation = getattr(primitives, f"{name}_{way}")
        assert formula_of(operation).__doc__ == operation.__doc__
