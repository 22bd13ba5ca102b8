"""The ring over NCCL, with a stand-in for NCCL between threads."""

import contextlib
import re
import threading
import time

import numpy as np
import pytest

import siglip_ref as sr
from backends import library
from cupy_cases.numbers import DTYPES
from cupy_cases.ring import (
    LOSSES,
    assert_arrays_arrive,
    assert_the_loss_is_that_of_one_device,
    parts,
)
from ring_program import COUNTS, TIMEOUT, Faulty, batch
from siglip_mpi import communicator, simulate
from siglip_ref.communicator import Communicator
from siglip_ref.faults import COLLECTIVE, GRACE, RingError

pytest.importorskip("cupy")
from cupy_stand_in import namespace, nccl
from cupy_stand_in.machine import MACHINE

WORLDS = range(1, 9)

MESSAGES = {
    "hangs": r"rank 1 did nothing for 2 s; rank 2 waited for it in ring step [12]",
    "raises": r"rank 1 failed in ring step [12]",
    "nan": r"rank 1 holds a number that is not finite in ring step 2",
    "dtype": r"rank 1 sent float32 \(\d, 5\) in ring step 2, .*rank 2 expected float64 \(\d, 5\)",
    "width": r"rank 1 sent float64 \(\d, 3\) in ring step 2, .*rank 2 expected float64 \(\d, 5\)",
    "skips": r"rank 1 sent .* in ring step 2 .*rank 2 expected .* in ring step 3",
}
IN_TIME = TIMEOUT + 2 * GRACE + 4.0
"""Seconds, with four for what a rank does between its messages on a busy machine."""


@pytest.fixture(autouse=True)
def a_device_for_each_rank(monkeypatch):
    monkeypatch.setattr(MACHINE, "devices", max(WORLDS))


@pytest.fixture(scope="module")
def adapter():
    with namespace.installed() as siglip_cupy:
        yield siglip_cupy


def on_ranks(adapter, world_size, program, timeout=20.0):
    """What `program(comm, backend)` returns or raises on every rank."""
    backend = adapter.CupyBackend()
    # A rank that is still on its way into the group would hear of another's fault there.
    joined = threading.Barrier(world_size)

    def rank_program(mpi):
        MACHINE.device = mpi.Get_rank()
        try:
            with communicator(mpi, timeout) as host:
                comm = adapter.NcclCommunicator(host)
                assert isinstance(comm, Communicator)
                with contextlib.suppress(threading.BrokenBarrierError):
                    joined.wait()
                return program(comm, backend)
        except Exception as error:
            joined.abort()
            return error

    return simulate(world_size, rank_program)


def every_rank_passes(adapter, world_size, check, *args):
    """Run a check of cupy_cases/ring.py on all ranks."""
    for outcome in on_ranks(adapter, world_size, lambda *rank: check(*args, *rank)):
        if outcome is not None:
            raise outcome


@pytest.mark.parametrize("world_size", WORLDS)
@pytest.mark.parametrize("loss", LOSSES)
def test_the_ring_gives_the_loss_and_the_gradients_of_one_device(loss, world_size, adapter):
    every_rank_passes(adapter, world_size, assert_the_loss_is_that_of_one_device, loss)


@pytest.mark.parametrize("dtype", DTYPES)
def test_arrays_of_every_dtype_arrive_with_the_rows_of_their_sender(dtype, adapter):
    every_rank_passes(adapter, 3, assert_arrays_arrive, DTYPES[dtype])


# --- faults ---------------------------------------------------------------------------------------


def with_a_fault(adapter, fault, rank, timeout=TIMEOUT):
    """What every rank raises when one does wrong in mid-ring, and after how many seconds."""
    start = time.monotonic()

    def program(comm, backend):
        ring = Faulty(comm, fault) if comm.rank == rank else comm
        shards = (backend.asarray(part[comm.rank]) for part in (parts(z, COUNTS) for z in batch()))
        scalars = (backend.asarray(np.asarray(x)) for x in (1.5, -2.0))
        try:
            return sr.ring.sigmoid_loss(*shards, *scalars, ring, tile=2)
        except RingError as error:
            assert comm._comm._aborted
            with pytest.raises(RingError, match=re.escape(str(error))):
                comm.gather((1,))  # a ring that has stopped stays stopped
            return error, time.monotonic() - start

    return on_ranks(adapter, len(COUNTS), program, timeout)


@pytest.mark.parametrize("fault", MESSAGES)
def test_all_ranks_stop_in_time_and_name_the_rank_and_the_ring_step(fault, adapter):
    for rank, outcome in enumerate(with_a_fault(adapter, fault, 1)):
        if rank == 1 and fault in ("hangs", "raises"):
            assert isinstance(outcome, RuntimeError | tuple)
            continue
        error, seconds = outcome
        assert re.search(MESSAGES[fault], str(error)), (rank, str(error))
        assert error.ranks == (1,)
        assert error.step in (1, 2, 3)
        assert seconds < IN_TIME, (rank, seconds)


@pytest.mark.parametrize("fault", ["nan", "dtype", "raises"])
def test_a_fault_is_heard_of_long_before_the_timeout(fault, adapter):
    outcomes = with_a_fault(adapter, fault, 2, timeout=60.0)
    for error, seconds in outcomes[:2] + outcomes[3:]:
        assert error.ranks == (2,)
        assert seconds < 10.0


@pytest.mark.parametrize(
    ("fate", "timeout", "message"),
    [
        ("raises", 60.0, "rank 1 failed in ring step 0"),
        (
            "is gone",
            0.5,
            "rank 1 did nothing for 0.5 s; rank 0 waited for it in a sum or gather over the ranks",
        ),
    ],
)
def test_a_rank_that_does_not_come_into_nccls_group_is_named(
    fate, timeout, message, adapter, monkeypatch
):
    join = adapter.NcclCommunicator._join

    def join_or_not(self, unique_id):
        if self.rank != 1:
            return join(self, unique_id)
        if fate == "raises":
            raise RuntimeError("out of luck")
        return None

    monkeypatch.setattr(adapter.NcclCommunicator, "_join", join_or_not)
    start = time.monotonic()
    outcomes = on_ranks(adapter, 3, lambda comm, _: comm.rank, timeout)
    for error in (outcomes[0], outcomes[2]):
        assert isinstance(error, RingError)
        assert re.sub("rank [02] waited", "rank 0 waited", str(error)) == message
    assert time.monotonic() - start < 10.0


def test_two_ranks_on_one_device_hear_what_nccl_says(adapter, monkeypatch):
    monkeypatch.setattr(type(MACHINE), "device", 0)
    errors = on_ranks(adapter, 2, lambda comm, _: comm.rank)
    # One may hear of the other's before its own.
    assert all(isinstance(error, nccl.NcclError | RingError) for error in errors)
    assert any(isinstance(error, nccl.NcclError) for error in errors)


def test_an_error_of_nccl_among_messages_ends_their_group_and_the_ring(adapter, monkeypatch):
    def broken(self, *args):
        raise nccl.NcclError("NCCL_ERROR_SYSTEM_ERROR: no route")

    monkeypatch.setattr(nccl.NcclCommunicator, "recv", broken)

    def program(comm, backend):
        with pytest.raises(RingError) as error:
            comm.start_shift((backend.asarray(np.ones((1, 1))),), rows=1, step=2)
        return str(error.value), nccl._depth()

    for message, open_groups in on_ranks(adapter, 3, program):
        assert "closed its connection" in message
        assert open_groups == 0


def test_a_shape_that_is_not_expected_never_reaches_nccl(adapter, monkeypatch):
    def program(comm, backend):
        if comm.rank == 2:
            monkeypatch.setattr(comm._comm, "recv", None)
        if comm.rank == 0:
            time.sleep(0.2)  # rank 2 looks at what rank 1 sends before that misses anything
        sent = backend.asarray(np.ones((2, 3 if comm.rank == 1 else 4)))
        return comm.start_shift((sent,), rows=2, step=5).wait()

    for error in on_ranks(adapter, 3, program):
        assert isinstance(error, RingError)
        assert str(error) in (
            "rank 1 sent float64 (2, 3) in ring step 5, "
            "where rank 2 expected float64 (2, 4) in ring step 5"
        )


@pytest.mark.parametrize(
    ("odd", "said"),
    [(np.ones(3), "float64 (3,)"), (np.ones(2, dtype=np.float32), "float32 (2,)")],
)
def test_of_a_sum_the_rank_with_another_shape_or_dtype_is_named(odd, said, adapter):
    def program(comm, backend):
        return comm.sum(backend.asarray(odd if comm.rank == 1 else np.ones(2)))

    for error in on_ranks(adapter, 3, program):
        assert error.ranks == (1,)
        assert error.step == COLLECTIVE
        assert f"rank 1 sent {said} in a sum or gather over the ranks, where rank " in str(error)
        assert str(error).endswith(" expected float64 (2,) in a sum or gather over the ranks")


@pytest.fixture
def rank_1_sends_nothing(monkeypatch):
    """What rank 1 hands to NCCL never arrives."""
    send = nccl.NcclCommunicator.send

    def lossy(self, *args):
        if self._rank != 1:
            send(self, *args)

    monkeypatch.setattr(nccl.NcclCommunicator, "send", lossy)


def shift_and_gather(comm, backend):
    """A hop after which rank 1 is gone, and what the others do then."""
    shift = comm.start_shift((backend.asarray(np.ones((1, 1))),), rows=1, step=2)
    return None if comm.rank == 1 else (shift.wait(), comm.gather((1,)))


@pytest.mark.usefixtures("rank_1_sends_nothing")
def test_a_device_that_sends_nothing_is_named_after_the_timeout(adapter):
    results = on_ranks(adapter, 3, shift_and_gather, timeout=0.5)
    for error in (results[0], results[2]):
        assert isinstance(error, RingError)
        assert str(error) == "rank 1 did nothing for 0.5 s; rank 2 waited for it in ring step 2"


@pytest.mark.usefixtures("rank_1_sends_nothing")
def test_an_error_of_nccl_ends_the_wait(adapter, monkeypatch):
    gone = threading.Event()

    def broken(self):
        if self._rank == 2 and gone.is_set():
            raise nccl.NcclError("NCCL_ERROR_REMOTE_ERROR: peer is gone")

    def program(comm, backend):
        result = shift_and_gather(comm, backend)
        gone.set()  # by rank 1, for no other comes so far
        return result

    monkeypatch.setattr(nccl.NcclCommunicator, "check_async_error", broken)
    start = time.monotonic()
    results = on_ranks(adapter, 3, program)
    assert time.monotonic() - start < 10.0
    for error in (results[0], results[2]):
        assert isinstance(error, RingError)
        # Whichever the host of rank 2 notices first: the other's end, or its silence.
        assert str(error) in {
            f"rank 1 {fate}; rank 2 waited for it in ring step 2"
            for fate in ("closed its connection", "did nothing for 20 s")
        }


def test_the_hosts_agree_without_waiting_for_a_device(adapter):
    def program(comm, backend):
        sent = backend.asarray(np.ones((2, 3)))
        comm.sum(sent)
        return comm.start_shift((sent,), rows=2, step=0).wait()

    with MACHINE.forbidding_waits(copies=True):
        results = on_ranks(adapter, 3, program)
    assert [result[0].shape for result in results] == [(2, 3)] * 3


def test_a_dtype_that_nccl_has_not_is_refused(adapter):
    def program(comm, backend):
        sent = backend.asarray(np.ones((1, 1), dtype=np.complex128))
        return comm.sum(sent)

    (error,) = on_ranks(adapter, 1, program)
    assert isinstance(error, TypeError)
    assert "array must have a dtype out of int32, " in str(error)
    assert str(error).endswith("got complex128")


def test_the_world_tells_of_faults_by_mpi(adapter):
    library("mpi4py.MPI")
    with adapter.world(timeout=5.0) as comm:
        assert (comm.rank, comm.world_size) == (0, 1)
        assert comm.gather((3, 4)) == ((3, 4),)
