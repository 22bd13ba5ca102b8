"""The projections keep to the laws of the model, and docs/scaling.md is what the command prints."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import siglip_ref as sr
from siglip_mpi.project import (
    MACHINES,
    PROJECTIONS,
    document,
    sigmoid_projection,
    tower_operations,
)

ROOT = Path(__file__).parents[2]
shapes = st.tuples(st.integers(1, 512), st.integers(8, 1152))


def simulated(machine, world_size, n, d):
    """The same ring step by step: a block begins when the one before is done and its texts came."""
    compute = 6 * n * n * d / machine.rate
    hop = machine.transfer(n * d * 6)
    ready = [0.0] * world_size  # when the texts of the next step are at a rank
    now = [0.0] * world_size
    for step in range(world_size):
        began = [max(time, texts) for time, texts in zip(now, ready, strict=True)]
        ready = [began[rank - 1] + hop for rank in range(world_size)]
        now = [begin + compute for begin in began]
        if step == world_size - 1:
            return max(now)
    raise AssertionError


@given(shapes, st.integers(1, 12), st.sampled_from(MACHINES))
def test_the_closed_form_is_what_a_simulation_of_all_ranks_gives(shape, world_size, machine):
    n, d = shape
    found = sigmoid_projection(machine, world_size, n, d)
    assert found.seconds == pytest.approx(simulated(machine, world_size, n, d), rel=1e-9)


@given(shapes, st.integers(2, 60_000), st.sampled_from(MACHINES))
def test_a_ring_holds_the_same_on_any_number_of_devices_and_a_gather_does_not(
    shape, world_size, machine
):
    for name, projection in PROJECTIONS.items():
        few, many = (projection(machine, count, *shape) for count in (world_size, 2 * world_size))
        if name == "softmax, all gathered":
            assert many.num_bytes == 2 * few.num_bytes
        else:
            assert many.num_bytes == few.num_bytes
        assert 0 <= many.waiting <= many.seconds
        assert many.seconds > few.seconds


def test_one_device_waits_for_nobody():
    for projection in PROJECTIONS.values():
        assert projection(MACHINES[0], 1, 256, 768).waiting == 0


def test_the_operations_of_the_towers_are_six_times_kernels_times_tokens_and_the_attention():
    config = sr.variants["B/16-256"]
    kernels = 12 * (4 * 768**2 + 2 * 768 * 3072)
    attention = 12 * 12 * 768 * (256**2 + 64**2)
    assert tower_operations(config) == 6 * kernels * (256 + 64) + attention


def test_the_page_is_what_the_command_prints():
    assert (ROOT / "docs" / "scaling.md").read_text() == document()
