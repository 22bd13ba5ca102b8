"""The scale of the loss doubles after enough finite steps and halves after one that is not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

import siglip_ref as sr
from siglip_ref.optim import LossScale, loss_scale_update


def test_it_doubles_after_an_interval_of_finite_steps():
    state = LossScale(8.0)
    for _ in range(3):
        assert state.scale == 8.0
        state = loss_scale_update(state, finite=True, interval=3)
    assert state == LossScale(16.0, 0)


def test_a_step_that_is_not_finite_halves_it_and_counting_begins_anew():
    state = loss_scale_update(LossScale(8.0, 2), finite=False, interval=3)
    assert state == LossScale(4.0, 0)
    state = loss_scale_update(state, finite=True, interval=3)
    assert state == LossScale(4.0, 1)


@given(st.lists(st.booleans(), max_size=60))
def test_it_stays_a_power_of_two_within_bounds(history):
    state = LossScale()
    for finite in history:
        if state.scale < 1:
            break
        state = loss_scale_update(state, finite=finite, interval=2, largest=2.0**20)
        mantissa = state.scale.hex().split("p")[0]
        assert mantissa == "0x1.0000000000000"
        assert 0.5 <= state.scale <= 2.0**20


def test_gradients_that_are_finite_at_no_scale_are_an_error():
    state = LossScale(1.0)
    state = loss_scale_update(state, finite=False)
    with pytest.raises(ValueError, match=r"finite at some loss scale, got none down to 0\.5"):
        loss_scale_update(state, finite=False)


def test_it_is_public():
    assert {"LossScale", "loss_scale_update"} <= set(sr.optim.__all__)
