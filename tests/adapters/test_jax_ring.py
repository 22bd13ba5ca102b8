"""The rings on JAX: whatever the number of devices, the loss and gradients of one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from backends import library
from siglip_ref.communicator import Communicator

jax = library("jax")

import siglip_jax  # noqa: E402

PROGRAM = Path(__file__).parents[1] / "jax_ring_program.py"
CORE = ("sigmoid_loss", "softmax_loss", "allgather_softmax_loss")
RINGS = ("ring_sigmoid_loss", "ring_softmax_loss")


@pytest.fixture(scope="module")
def found():
    """What the program prints: JAX must know how many devices there are before it starts."""
    run = subprocess.run(
        [sys.executable, "-W", "error", str(PROGRAM)],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.slow
def test_rings_of_1_to_8_devices_give_the_loss_and_gradients_of_one(found):
    errors = found["errors"]
    rings = ("sigmoid", "softmax", *(f"core {name}" for name in CORE))
    assert {f"{ring} {size}" for ring in rings for size in range(1, 9)} < {*errors}
    assert {name: error for name, error in errors.items() if not error <= 1e-12} == {}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sigmoid", "softmax"])
@pytest.mark.parametrize("checks", ["checked", "unchecked"])
def test_under_shard_map_the_loss_of_one_device_is_that_of_its_shard(found, kind, checks):
    assert found["errors"][f"{kind} each for itself {checks}"] <= 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_the_vectors_of_the_kit_are_met_but_for_uneven_shards(found, dtype):
    kit = found["kit"][dtype]
    assert kit["failed"] == []
    assert set(kit["passed"]) == set(RINGS)
    assert kit["passed"]["ring_sigmoid_loss"] > 30
    assert kit["score"] < 0.5


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sigmoid", "softmax"])
def test_the_memory_of_a_device_does_not_grow_with_the_number_of_devices(found, kind):
    one, four, eight = found["memory"][kind]
    assert one < four == eight


@pytest.mark.parametrize("name", RINGS)
def test_images_and_texts_of_a_shard_must_be_pairs_unless_pairs_is_given(name, unchecked):
    scalars = (np.zeros(()), np.zeros(()))[: 2 if name == "ring_sigmoid_loss" else 1]
    with pytest.raises(ValueError, match="as many images as texts unless pairs is given"):
        getattr(siglip_jax, name)(np.zeros((2, 3)), np.zeros((1, 3)), *scalars, axis_name="ring")


@pytest.mark.parametrize("name", RINGS)
def test_outside_of_a_mesh_axis_there_is_no_ring(name):
    scalars = (np.zeros(()), np.zeros(()))[: 2 if name == "ring_sigmoid_loss" else 1]
    with pytest.raises(NameError, match="nowhere"):
        getattr(siglip_jax, name)(np.ones((2, 3)), np.ones((2, 3)), *scalars, axis_name="nowhere")


def test_the_communicator_follows_the_protocol():
    def program(x):
        comm = siglip_jax.JaxCommunicator("ring")
        assert isinstance(comm, Communicator)
        assert comm.world_size == 3
        assert comm.gather((4, 5)) == ((4, 5),) * 3
        (left,) = comm.start_shift((x,), rows=1, step=0).wait()
        return comm.rank, left, comm.sum(x)

    rank, left, total = jax.vmap(program, axis_name="ring")(np.asarray([1.0, 10.0, 100.0]))
    assert rank.tolist() == [0, 1, 2]
    assert left.tolist() == [100.0, 1.0, 10.0]
    assert total.tolist() == [111.0, 111.0, 111.0]
