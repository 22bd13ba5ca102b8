"""The ring over the real NCCL, on all devices that there are and on one."""

import os
import subprocess
import sys
from pathlib import Path

import cupy
import pytest

from launched import LAUNCHERS

TESTS = Path(__file__).parents[1]


@pytest.mark.parametrize("world_size", sorted({1, cupy.cuda.runtime.getDeviceCount()}))
def test_a_ring_of_processes_has_the_numbers_of_one_device(world_size):
    done = subprocess.run(
        [*LAUNCHERS["mpi"](world_size), sys.executable, "-m", "cupy_cases.ring"],
        env=os.environ | {"PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert f"a ring of {world_size} has the numbers of one device" in done.stdout
