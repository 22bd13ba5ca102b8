"""The laws of every backward pass of the core, in float64, on random shapes."""

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from derivatives import assert_backward_is_the_adjoint, assert_gradient_is_the_slope
from siglip_ref import encoders, losses, primitives
from strategies import OPERATIONS


def few(share):
    """That share of the examples, where one takes long: too long to shrink, and small as it is."""
    return settings(
        max_examples=max(1, settings.default.max_examples // share),
        phases=(Phase.explicit, Phase.reuse, Phase.generate),
    )


ENCODERS = {name for name in OPERATIONS if f"{name}_bwd" in encoders.__all__}
SMALL = [name for name in OPERATIONS if name not in ENCODERS]


@pytest.mark.parametrize("name", SMALL)
@given(data=st.data())
def test_the_gradient_is_the_slope_of_the_output(name, data):
    assert_gradient_is_the_slope(*OPERATIONS[name].draw(data))


@pytest.mark.parametrize("name", sorted(ENCODERS))
@few(4)
@given(data=st.data())
def test_the_gradient_of_an_encoder_is_the_slope_of_its_output(name, data):
    assert_gradient_is_the_slope(*OPERATIONS[name].draw(data))


@pytest.mark.parametrize("name", SMALL)
@few(4)
@given(data=st.data())
def test_the_backward_pass_is_the_adjoint_of_the_forward_pass(name, data):
    assert_backward_is_the_adjoint(*OPERATIONS[name].draw(data))


@pytest.mark.parametrize("name", sorted(ENCODERS))
@few(8)
@given(data=st.data())
def test_the_backward_pass_of_an_encoder_is_the_adjoint_of_its_forward_pass(name, data):
    assert_backward_is_the_adjoint(*OPERATIONS[name].draw(data))


def test_every_operation_with_a_backward_pass_is_held_to_the_laws():
    exported = {*primitives.__all__, *encoders.__all__, *losses.__all__}
    backward = {name.removesuffix("_bwd") for name in exported if name.endswith("_bwd")}
    tiled = {name for name in exported if name.startswith("tiled_")}
    assert backward | tiled == OPERATIONS.keys()
