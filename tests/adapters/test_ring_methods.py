"""The simulated MPI does what mpi4py does: one program runs on both, method by method."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import mpi_methods_program
from backends import library
from mpi_methods_program import CASES, MATRIX, RANKS, program
from siglip_mpi import AbortedError, simulate
from siglip_mpi.simulated import RankError, TruncatedError


@pytest.fixture(scope="module")
def simulated():
    return simulate(RANKS, program)


def test_every_method_does_under_mpiexec_what_it_does_in_the_simulation(simulated, tmp_path):
    library("mpi4py.MPI")
    start, file = time.monotonic(), tmp_path / "found.json"
    mpiexec = str(Path(sys.executable).with_name("mpiexec"))
    command = [mpiexec, "-n", str(RANKS), sys.executable, mpi_methods_program.__file__, str(file)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert json.loads(file.read_text()) == simulated
    # Abort ended the others, which were asleep.
    assert run.returncode == 3, run.stderr
    assert time.monotonic() - start < 50


@pytest.mark.parametrize(
    ("case", "found"),
    [
        ("Sendrecv", [[2.0, 2.0], [0.0, 0.0], [1.0, 1.0]]),
        ("Allgather", [[[0, 7], [1, 7], [2, 7]]] * RANKS),
        ("Allreduce", [[3.0, 3.0]] * RANKS),
        ("Barrier", [True] * RANKS),
        ("sent by columns", [MATRIX.ravel(order="F").tolist()] * RANKS),
        ("received in pieces", ["BufferError"] * RANKS),
        ("a message that is longer", ["RuntimeError"] * RANKS),
    ],
)
def test_a_method_gives_what_mpi_says(simulated, case, found):
    assert [rank[case] for rank in simulated] == found


def test_no_case_is_an_error_that_its_name_does_not_say(simulated):
    wrong = {name for name in CASES if all(isinstance(rank[name], str) for rank in simulated)}
    assert wrong == {
        "Sendrecv into nothing",
        "Allgather into uneven parts",
        "Allreduce into more",
        "Allreduce into another dtype",
        "sent in pieces",
        "received in pieces",
        "received into what is read-only",
        "a list is sent",
        "a number is sent",
        "sent to nobody",
        "received from nobody",
        "a message that is longer",
    }


def test_a_message_that_is_longer_than_its_buffer_says_how_long_both_are():
    def rank_program(mpi):
        mpi.Isend(np.zeros(3), dest=0)
        mpi.Irecv(np.zeros(2)).Wait()

    with pytest.raises(TruncatedError, match="a message of 24 bytes does not fit into 16"):
        simulate(1, rank_program)


def test_a_rank_that_there_is_not_is_named():
    with pytest.raises(RankError, match="dest must be a rank below 2, got -2"):
        simulate(2, lambda mpi: mpi.Isend(np.zeros(1), dest=-2))


def test_whoever_waits_is_told_who_aborted_the_group():
    said = {}

    def rank_program(mpi):
        if mpi.Get_rank() == 1:
            mpi.Abort(7)
        try:
            mpi.Irecv(np.zeros(1), source=1).Wait()
        except AbortedError as error:
            said[mpi.Get_rank()] = str(error)
            raise

    with pytest.raises(AbortedError, match="rank 1 aborted the group with code 7"):
        simulate(3, rank_program)
    assert said == dict.fromkeys((0, 2), "rank 1 aborted the group with code 7")
