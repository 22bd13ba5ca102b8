"""When a rank fails in mid-ring all others stop within a set time and name it and the ring step.

The ranks are threads in some of these tests and processes under mpiexec in others.
"""

import ast
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import ring_program
from backends import library
from ring_program import COUNTS, TIMEOUT, program
from siglip_mpi import RingError, communicator, simulate
from siglip_mpi.faults import Watch, rest
from siglip_mpi.message import Header
from siglip_ref.faults import GRACE, Notice, Reason, verdict
from siglip_ref.ring.rotation import rotation
from siglip_ref.ring.shards import Shards

PROGRAM = Path(ring_program.__file__)
IN_TIME = TIMEOUT + 2 * GRACE + 2.0
"""Seconds, with two for what a rank does between its messages on a busy machine."""

MESSAGES = {
    "hangs": r"rank 1 did nothing for 2 s; rank 2 waited for it in ring step [12]",
    "raises": r"rank 1 failed in ring step [12]",
    "nan": r"rank 1 holds a number that is not finite in ring step 2",
    "dtype": r"rank 1 sent float32 \(\d, 5\) in ring step 2 .*rank 2 expected float64",
    "width": r"rank 1 sent float64 \(\d, 3\) in ring step 2 .*rank 2 expected float64 \(\d, 5\)",
    "skips": r"rank 1 sent .* in ring step 2 .*rank 2 expected .* in ring step 3",
}


def on_threads(fault, rank):
    """What every rank says when one has failed, and after how many seconds."""
    start = time.monotonic()

    def attempt(mpi):
        try:
            return program(mpi, fault, rank), time.monotonic() - start
        except Exception as error:
            return error, time.monotonic() - start

    return simulate(len(COUNTS), attempt)


@pytest.mark.parametrize("fault", MESSAGES)
def test_threads_stop_in_time_and_name_the_rank_and_the_ring_step(fault):
    outcomes = on_threads(fault, 1)
    for rank, (error, seconds) in enumerate(outcomes):
        if rank == 1 and fault in ("hangs", "raises"):
            continue
        assert isinstance(error, RingError), (rank, error)
        assert re.search(MESSAGES[fault], str(error)), (rank, str(error))
        assert error.ranks == (1,)
        assert error.step in (1, 2, 3)
        assert seconds < IN_TIME, (rank, seconds)


@pytest.mark.parametrize("rank", range(len(COUNTS)))
def test_whichever_rank_holds_nan_is_the_one_that_is_named(rank):
    for error, _ in on_threads("nan", rank):
        assert isinstance(error, RingError)
        assert error.ranks == (rank,)


def test_a_ring_that_has_stopped_stays_stopped():
    def rank_program(mpi):
        comm = communicator(mpi, timeout=0.2)
        z = np.full((1, 2), np.nan if comm.rank == 0 else 1.0)
        with pytest.raises(RingError, match="rank 0 holds a number that is not finite"):
            rotation(lambda _, held, __: (None, held), max, None, (z,), Shards((1, 1, 1)), comm)
        with pytest.raises(RingError, match="in ring step 0"):
            comm.sum(np.ones(1))
        return True

    assert simulate(3, rank_program) == [True, True, True]


def test_two_silent_ranks_are_both_named():
    def rank_program(mpi):
        comm = communicator(mpi, timeout=0.5)
        if comm.rank in (1, 3):
            return None
        with pytest.raises(RingError, match="in a sum or gather over the ranks") as caught:
            comm.gather((comm.rank,))
        return caught.value.ranks

    assert simulate(5, rank_program) == [(1, 3), None, (1, 3), None, (1, 3)]


def test_whoever_needs_several_silent_ranks_names_them_and_does_other_things_meanwhile():
    def rank_program(mpi):
        if mpi.Get_rank() in (0, 3):
            return None
        looks = []
        with pytest.raises(RingError) as caught:
            Watch(mpi, timeout=0.1).until(bool, (0, 3), 4, meanwhile=lambda: looks.append(rest()))
        return caught.value.ranks, caught.value.step, len(looks) > 1

    named = (0, 3), 4, True
    assert simulate(4, rank_program) == [None, named, named, None]


def test_what_is_done_when_the_time_is_over_is_not_missing():
    def rank_program(mpi):
        looks = iter([False, True, True])
        Watch(mpi, timeout=-1.0).until(lambda: next(looks), (1 - mpi.Get_rank(),), 0)
        return [*looks]

    assert simulate(2, rank_program) == [[], []]


# --- the verdict on its own -----------------------------------------------------------------------

ODD, USUAL = (str(Header(3, 1, dtype, (2, 5))) for dtype in ("float32", "float64"))


def silent(accuser, suspect):
    return Notice(accuser, (suspect,), 1, Reason.SILENT)


def test_whoever_says_that_it_failed_is_believed():
    notices = [silent(2, 1), Notice(3, (3,), 2, Reason.FAILED), silent(0, 3)]
    assert tuple(verdict(notices)) == (3,)


def test_whoever_sent_numbers_that_are_not_finite_is_named_by_whom_they_reached():
    assert tuple(verdict([silent(0, 2), Notice(2, (1,), 1, Reason.NOT_FINITE)])) == (1,)


def test_of_a_chain_of_waiting_ranks_the_silent_one_is_named():
    assert tuple(verdict([silent(3, 2), silent(2, 1), silent(0, 3)])) == (1,)


def test_a_rank_that_disagrees_with_both_neighbours_is_the_odd_one():
    mismatches = [
        Notice(1, (0,), 1, Reason.MISMATCH, USUAL, ODD),
        Notice(2, (1,), 1, Reason.MISMATCH, ODD, USUAL),
    ]
    assert tuple(verdict([*mismatches, silent(3, 2)])) == (1,)


def test_of_two_ranks_that_disagree_both_are_named():
    mismatches = [
        Notice(1, (0,), 1, Reason.MISMATCH, USUAL, ODD),
        Notice(0, (1,), 1, Reason.MISMATCH, ODD, USUAL),
    ]
    assert tuple(verdict(mismatches)) == (0, 1)


def test_a_notice_says_what_was_sent_and_what_was_expected():
    notice = Notice(2, (1,), 1, Reason.MISMATCH, ODD, USUAL)
    assert notice.text(1, 3.0) == (
        "rank 1 sent float32 (2, 5) in ring step 1 (hop 3), "
        "where rank 2 expected float64 (2, 5) in ring step 1 (hop 3)"
    )


# --- real processes -------------------------------------------------------------------------------


def mpiexec(*arguments, ranks=4, timeout=60):
    library("mpi4py.MPI")
    command = [str(Path(sys.executable).with_name("mpiexec")), "-n", str(ranks)]
    return subprocess.run(
        [*command, sys.executable, str(PROGRAM), *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def alive(pid):
    """Whether a process runs; one that has ended but was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def reports(tmp_path):
    """A folder for the reports of the ranks; whoever still runs after the test is killed."""
    yield tmp_path
    for file in tmp_path.glob("*.pid"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(file.read_text()), signal.SIGKILL)


def ended(reports, seconds):
    """Whether no rank runs any more after at most so many seconds."""
    pids = [int(file.read_text()) for file in reports.glob("*.pid")]
    assert len(pids) == len(COUNTS)
    end = time.monotonic() + seconds
    while any(alive(pid) for pid in pids) and time.monotonic() < end:
        time.sleep(0.02)
    return not any(alive(pid) for pid in pids)


def test_the_same_program_runs_under_mpiexec_with_the_same_numbers():
    run = mpiexec()
    assert run.returncode == 0, run.stderr
    assert ast.literal_eval(run.stdout) == simulate(len(COUNTS), program)


def test_rings_of_1_to_8_processes_and_uneven_shards_give_the_numbers_of_a_single_device(tmp_path):
    file = tmp_path / "worlds.json"
    run = mpiexec("worlds", str(file), ranks=8)
    assert run.returncode == 0, run.stderr
    errors = json.loads(file.read_text())
    assert errors.keys() == {
        f"{loss} on {size}"
        for loss in ("sigmoid", "softmax", "gathered softmax")
        for size in range(1, 9)
    }
    assert {name: error for name, error in errors.items() if not error <= 1e-12} == {}


@pytest.mark.parametrize("fault", ["lost", "stopped", "nan", "raises", "dtype", "width"])
def test_processes_stop_in_time_and_name_the_rank_and_the_ring_step(fault, reports):
    run = mpiexec(fault, "1", str(reports))
    assert run.returncode != 0
    assert ended(reports, GRACE + 2.0)
    started = max(file.stat().st_mtime for file in reports.glob("*.pid"))
    message = MESSAGES.get(fault, MESSAGES["hangs"])
    for rank in (0, 2, 3):
        when, _, said = (reports / f"{rank}.txt").read_text().partition(" ")
        assert re.search(message, said), (rank, said)
        assert float(when) - started < IN_TIME


def test_mpiexec_ends_all_processes_when_one_is_killed(reports):
    run = mpiexec("killed", "1", str(reports))
    assert run.returncode != 0
    assert ended(reports, 2.0)
