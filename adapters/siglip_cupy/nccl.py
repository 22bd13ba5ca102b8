"""The core's ring over NCCL: arrays go from device to device, beside the computation."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from importlib.metadata import entry_points
from typing import Any, NoReturn

import cupy
import cupyx
import numpy as np

from siglip_cupy.device import require_device, use_own_device
from siglip_cupy.host import DTYPES, Header, Host, agree_on_shift, agree_on_sum
from siglip_ref.backend import LOCAL_RANK, local_rank
from siglip_ref.communicator import Arrays
from siglip_ref.faults import COLLECTIVE, Notice, Reason, RingError
from siglip_ref.precision import at_least_float32, cast_like
from siglip_ref.types import Array

TIMEOUT = 60.0
"""Seconds that a rank waits for another before it gives up."""

_ID = 128  # bytes in NCCL's unique id


class NcclShift:
    """Arrays on their way; what is sent and received is kept until it has arrived."""

    def __init__(
        self, comm: "NcclCommunicator", step: int, held: Arrays, coming: Arrays, finite: Any
    ) -> None:
        self._comm, self._step = comm, step
        self._held, self._coming, self._finite = held, coming, finite
        self._arrived = comm.stream.record()

    def wait(self) -> Arrays:
        """The arrays from the left neighbour.

        Raises RingError, on all ranks, if they are late, or if this rank or the left one sent a
        number that is not finite.
        """
        left = (self._comm.rank - 1) % self._comm.world_size
        self._comm.until(lambda: self._arrived.done, (left,), self._step)
        self._held = ()
        for rank, finite in zip((self._comm.rank, left), self._finite, strict=True):
            if not finite[0]:
                notice = Notice(self._comm.rank, (rank,), self._step, Reason.NOT_FINITE)
                self._comm.stop(notice)
        return self._coming


class NcclCommunicator:
    """A ring of CUDA devices, one for each process.

        with siglip_cupy.world() as comm:      # mpiexec -n 4 python program.py
            loss, grads = sr.ring.sigmoid_loss(zimg, ztxt, t_prime, b, comm)

    host
        A ring of the same ranks on the host, which carries NCCL's id, what is about to be sent,
        and notices of faults: `siglip_mpi.communicator(mpi)`. Its timeout holds here too.

    Transfers have a stream of their own: they start when the arrays are computed and run while the
    device goes on. Before NCCL is called the hosts compare dtypes, shapes and ring steps, and wait
    for no device to do so. A flag goes with the arrays that says whether all numbers are finite.
    If a rank sends something else, sends a number that is not finite, does not answer within the
    timeout, or hears of an error from NCCL, all ranks raise a RingError that names it and the ring
    step as soon as one of them notices, and NCCL's group is broken up. That holds from the start: a
    rank that does not come into the group is named too.

    Raises RuntimeError if NCCL cannot be loaded, and NCCL's error if it cannot make the group.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self._rank, self._world_size = int(host.rank), host.world_size
        self._nccl = nccl()
        mine = tuple(self._nccl.get_unique_id()) if self._rank == 0 else (0,) * _ID
        unique_id = bytes(host.gather(mine)[0])
        self._comm: Any = None
        self._comm = self._join(unique_id)
        self.stream = cupy.cuda.Stream(non_blocking=True)

    @property
    def rank(self) -> int:
        """The number of this device, from 0."""
        return self._rank

    @property
    def world_size(self) -> int:
        """How many devices there are."""
        return self._world_size

    def start_shift(self, arrays: Arrays, *, rows: int, step: int) -> NcclShift:
        """Send arrays to the right and begin to receive as many, of `rows` rows, from the left.

        Raises RingError, on all ranks, if the left neighbour is about to send something else.
        """
        sent = tuple(cupy.ascontiguousarray(array) for array in arrays)
        flags = [cupy.isfinite(at_least_float32(array)).all() for array in sent]
        mine = cupy.stack(flags).all(keepdims=True).astype(np.int32)
        going, expected = ([Header.of(x, count) for x in sent] for count in (None, rows))
        with self._ending_all():
            agree_on_shift(self._host, going, expected, step)
        coming = tuple(cupy.empty((rows, *x.shape[1:]), dtype=x.dtype) for x in sent)
        theirs = cupy.empty_like(mine)
        self._after_computation()
        right, left = (self.rank + 1) % self.world_size, (self.rank - 1) % self.world_size
        with self._reporting((left, right), step), self._group():
            for leaving, arriving in zip((*sent, mine), (*coming, theirs), strict=True):
                self._comm.send(*self._buffer(leaving), right, self.stream.ptr)
                self._comm.recv(*self._buffer(arriving), left, self.stream.ptr)
        finite = tuple(cupyx.zeros_pinned(1, dtype=np.int32) for _ in range(2))
        for flag, out in zip((mine, theirs), finite, strict=True):
            flag.get(stream=self.stream, out=out, blocking=False)
        return NcclShift(self, step, (*sent, mine, theirs), coming, finite)

    def sum(self, array: Array) -> Array:
        """The sum of the arrays of all ranks, to the last bit the same on each.

        16-bit numbers are added in float32.

        Raises RingError, on all ranks, unless they have one dtype and shape.
        """
        header = Header.of(array)
        with self._ending_all():
            agree_on_sum(self._host, header)
        wide = cupy.ascontiguousarray(at_least_float32(array))
        total = cupy.empty_like(wide)
        self._after_computation()
        others = self._others()
        address, count, dtype = self._buffer(wide)
        with self._reporting(others, COLLECTIVE):
            self._comm.allReduce(
                address, total.data.ptr, count, dtype, self._nccl.NCCL_SUM, self.stream.ptr
            )
        added = self.stream.record()
        self.until(lambda: added.done, others, COLLECTIVE)
        return cast_like(total.reshape(array.shape), array)

    def gather(self, values: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        """The numbers of all ranks, in their order; they do not leave the host."""
        with self._ending_all():
            return self._host.gather(values)

    def until(self, done: Callable[[], bool], others: tuple[int, ...], step: int) -> None:
        """Return when what needs other ranks is done; the device goes on with what it has.

        Raises RingError if it takes longer than the timeout, as soon as any rank gives notice that
        it stops, or if NCCL reports an error.
        """
        with self._reporting(others, step), self._ending_all():
            self._host.watch.until(done, others, step, meanwhile=self._look_at_nccl)

    def stop(self, notice: Notice) -> NoReturn:
        """Give notice to all ranks, raise RingError, and end what NCCL still waits for."""
        with self._ending_all():
            self._host.watch.stop(notice)

    def _join(self, unique_id: bytes) -> Any:
        """This rank's end of NCCL's group, which is there when all ranks have asked for theirs.

        NCCL waits for them without a limit, and CuPy has no way to tell it not to. So a thread
        asks, and is left behind, where it holds nobody up, if another rank does not come.
        """
        device = cupy.cuda.Device()
        joined: Future[Any] = Future()

        def ask() -> None:
            try:
                device.use()  # each thread has a current device of its own
                joined.set_result(
                    self._nccl.NcclCommunicator(self._world_size, unique_id, self._rank)
                )
            except Exception as error:
                joined.set_exception(error)

        threading.Thread(target=ask, daemon=True).start()
        self.until(joined.done, self._others(), COLLECTIVE)
        return joined.result()

    def _look_at_nccl(self) -> None:
        """Raise the error of NCCL's that it has come upon, and let other threads work."""
        if self._comm is not None:
            self._comm.check_async_error()
        time.sleep(0)

    def _others(self) -> tuple[int, ...]:
        return tuple(rank for rank in range(self.world_size) if rank != self.rank)

    @contextmanager
    def _group(self) -> Iterator[None]:
        """Hand what is asked inside to NCCL at once; an error ends the group too."""
        self._nccl.groupStart()
        try:
            yield
        finally:
            self._nccl.groupEnd()

    @contextmanager
    def _ending_all(self) -> Iterator[None]:
        """End what NCCL still waits for when the ring stops, and let it stay stopped."""
        self._host.watch.check()
        try:
            yield
        except RingError:
            if self._comm is not None:
                self._comm.abort()
            raise

    @contextmanager
    def _reporting(self, others: tuple[int, ...], step: int) -> Iterator[None]:
        """Give notice of an error of NCCL's, which says that one of the others is gone."""
        try:
            yield
        except self._nccl.NcclError:
            self.stop(Notice(self.rank, others, step, Reason.CLOSED))

    def _after_computation(self) -> None:
        """Let transfers start when all that was asked for so far has been computed."""
        self.stream.wait_event(cupy.cuda.get_current_stream().record())

    def _buffer(self, array: Array) -> tuple[int, int, int]:
        """Address, number of elements and NCCL's number of the dtype."""
        return array.data.ptr, array.size, getattr(self._nccl, DTYPES[str(array.dtype)])


def nccl() -> Any:
    """The bindings of NCCL; they are loaded when first used, since the library may be missing.

    Raises RuntimeError if it is.
    """
    from cupy.cuda import nccl as bindings  # noqa: PLC0415  (it warns if there is no NCCL)

    if not bindings.available:
        raise RuntimeError("NCCL cannot be loaded: pip install 'siglip-ref[cupy]' brings it")
    return bindings


@contextmanager
def world(timeout: float = TIMEOUT) -> Iterator[NcclCommunicator]:
    """The ring of all processes that `mpiexec` has started, each on a device of its machine.

    Left by an exception, it says so to the others and ends the group.

    Raises ImportError, saying what to install, without mpi4py or an MPI library, and RuntimeError
    without NCCL or a CUDA device, and if the launcher of several processes does not say which of
    its machine's this one is.
    """
    require_device()
    nccl()
    (mpi,) = entry_points(group="siglip_ref.communicators", name="mpi")
    with mpi.load()(timeout=timeout) as host:
        if host.world_size > 1 and local_rank(os.environ) is None:
            raise RuntimeError(
                "each process of a ring needs a device of its own, by its number on its machine in "
                f"one of {', '.join(LOCAL_RANK)}; got none of them: set LOCAL_RANK"
            )
        use_own_device()
        yield NcclCommunicator(host)
