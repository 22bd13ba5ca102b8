"""`siglip_mpi.world`: the communicator of the processes that mpiexec has started."""

import ast
import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pytest

import siglip_mpi
import siglip_ref as sr
from backends import library

PROGRAM = """
import sys
import numpy as np
import siglip_mpi
import siglip_ref as sr
from siglip_ref.communicator import Communicator

counts, z = (1, 3, 2), np.random.default_rng(0).standard_normal((2, 6, 4)) / 2
with siglip_mpi.world(timeout=20) as comm:
    assert isinstance(comm, Communicator)
    zimg, ztxt = (np.split(x, np.cumsum(counts)[:-1])[comm.rank] for x in z)
    if comm.rank == 1 and "fail" in sys.argv:
        raise RuntimeError("out of luck")
    loss, grads = sr.ring.sigmoid_loss(zimg, ztxt, np.asarray(1.0), np.asarray(-2.0), comm)
    answer = comm.rank, comm.world_size, float(loss), float(grads.db)
sys.stdout.write(f"{answer}\\n")
"""


def mpiexec(*arguments):
    library("mpi4py.MPI")
    command = [str(Path(sys.executable).with_name("mpiexec")), "-n", "3"]
    return subprocess.run(
        [*command, sys.executable, "-W", "error", "-c", PROGRAM, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_every_process_of_mpiexec_gets_the_loss_of_a_single_device():
    run = mpiexec()
    assert run.returncode == 0, run.stderr
    answers = sorted(ast.literal_eval(line) for line in run.stdout.splitlines())
    z = np.random.default_rng(0).standard_normal((2, 6, 4)) / 2
    loss, grads = sr.losses.tiled_sigmoid_loss(*z, np.asarray(1.0), np.asarray(-2.0))
    assert [answer[:2] for answer in answers] == [(0, 3), (1, 3), (2, 3)]
    for _, _, found, db in answers:
        assert found == pytest.approx(float(loss), rel=1e-12)
        assert db == pytest.approx(float(grads.db), rel=1e-12)


def test_a_process_that_raises_ends_the_others():
    run = mpiexec("fail")
    assert run.returncode != 0
    assert "rank 1 stopped: out of luck" in run.stderr


@pytest.mark.parametrize("broken", ["mpi4py", "the library"])
def test_what_is_missing_is_said(broken):
    library("mpi4py")
    hide = "import sys; sys.modules['mpi4py'] = None; " if broken == "mpi4py" else ""
    run = subprocess.run(
        [sys.executable, "-c", f"{hide}import siglip_mpi; siglip_mpi.world().__enter__()"],
        env=os.environ | {"MPI4PY_LIBMPI": "/nowhere/libmpi.so"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    said = run.stderr.splitlines()
    assert any(
        line.startswith("ImportError: a ring of MPI processes needs mpi4py and an MPI library")
        for line in said
    ), said


def test_a_process_without_mpiexec_is_alone():
    code = "import siglip_mpi\nwith siglip_mpi.world() as comm: print(comm.rank, comm.world_size)"
    library("mpi4py.MPI")
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert run.stdout.split() == ["0", "1"], run.stderr


def test_the_world_is_found_by_its_entry_point():
    (entry,) = entry_points(group="siglip_ref.communicators", name="mpi")
    assert entry.load() is siglip_mpi.world
