"""Which device a process uses: that of its number on its machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from backends import library

pytest.importorskip("cupy")
from cupy_stand_in import namespace
from cupy_stand_in.machine import MACHINE
from launched import LAUNCHERS
from siglip_ref.backend import LOCAL_RANK

TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def adapter():
    with namespace.installed() as siglip_cupy:
        yield siglip_cupy


@pytest.fixture(autouse=True)
def three_devices_and_no_launcher(monkeypatch):
    for name in LOCAL_RANK:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(MACHINE, "devices", 3)
    yield
    MACHINE.device = 0


@pytest.mark.parametrize(("local_rank", "device"), [("0", 0), ("2", 2), ("4", 1)])
def test_a_backend_is_on_the_device_of_its_local_rank(local_rank, device, adapter, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    adapter.CupyBackend()
    assert MACHINE.device == device


def test_without_a_launcher_the_current_device_stays(adapter):
    MACHINE.device = 2
    adapter.CupyBackend()
    assert MACHINE.device == 2


PROGRAM = """
import os
from cupy_stand_in import namespace
from cupy_stand_in.machine import MACHINE
from mpi4py import MPI
from siglip_ref.backend import LOCAL_RANK

def show():
    print(MPI.COMM_WORLD.gather(MACHINE.device) or "", end="")

MACHINE.devices = 2
with namespace.installed() as siglip_cupy:
    siglip_cupy.NcclCommunicator._join = lambda self, unique_id: None
"""


def mpiexec(*lines):
    """What three processes print, and what they complain of."""
    library("mpi4py.MPI")
    done = subprocess.run(
        [
            *LAUNCHERS["mpi"](3),
            *(sys.executable, "-c", PROGRAM + "\n".join(f"    {x}" for x in lines)),
        ],
        env=os.environ | {"PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    return done.stdout, done.stderr


def test_the_processes_of_mpiexec_share_out_the_devices():
    out, err = mpiexec(
        "siglip_cupy.CupyBackend()",
        "show()",
        "MACHINE.device, MACHINE.devices = 0, 3",
        "with siglip_cupy.world(timeout=20.0): show()",
    )
    assert out == "[0, 1, 0][0, 1, 2]", err


def test_a_ring_of_processes_without_local_ranks_says_what_is_missing():
    _, err = mpiexec(
        "for name in LOCAL_RANK: os.environ.pop(name, None)",
        "with siglip_cupy.world(timeout=20.0): show()",
    )
    assert f"in one of {', '.join(LOCAL_RANK)}; got none of them: set LOCAL_RANK" in err
