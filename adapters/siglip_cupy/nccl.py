"""The core's ring over NCCL: arrays go from device to device, beside the computation."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import cupy
import cupyx
import numpy as np

from siglip_ref.communicator import Arrays
from siglip_ref.precision import at_least_float32, cast_like
from siglip_ref.types import Array

TIMEOUT = 60.0
"""Seconds that a rank waits for another before it gives up."""

DTYPES = {
    "int32": "NCCL_INT32",
    "int64": "NCCL_INT64",
    "float16": "NCCL_FLOAT16",
    "bfloat16": "NCCL_BFLOAT16",
    "float32": "NCCL_FLOAT32",
    "float64": "NCCL_FLOAT64",
}


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

        Raises RuntimeError if they are late or hold a number that is not finite.
        """
        left = (self._comm.rank - 1) % self._comm.world_size
        self._comm.wait_for(self._arrived, f"rank {left}", f"ring step {self._step}")
        self._held = ()
        if not self._finite[0]:
            raise RuntimeError(
                f"rank {self._comm.rank}: rank {left} sent a number that is not finite in ring "
                f"step {self._step}"
            )
        return self._coming


class NcclCommunicator:
    """A ring of CUDA devices, one for each process.

    unique_id
        What `cupy.cuda.nccl.get_unique_id()` returned on rank 0, on all ranks.

    Transfers have a stream of their own: they start when the arrays are computed and run while the
    device goes on. A flag goes with them that says whether all numbers are finite. The rank that
    finds a number that is not, or waits longer than `timeout` seconds, or hears of an error from
    NCCL, raises a RuntimeError that names the rank and the ring step and breaks the group up.

    NCCL does not look at shapes: those of what comes are those of what goes, but for `rows`.
    """

    def __init__(
        self, world_size: int, unique_id: Any, rank: int, timeout: float = TIMEOUT
    ) -> None:
        self._nccl = _nccl()
        self._comm = self._nccl.NcclCommunicator(world_size, unique_id, rank)
        self._rank, self._world_size, self._timeout = rank, world_size, timeout
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
        """Send arrays to the right and begin to receive as many, of `rows` rows, from the left."""
        sent = tuple(cupy.ascontiguousarray(array) for array in arrays)
        coming = tuple(cupy.empty((rows, *x.shape[1:]), dtype=x.dtype) for x in sent)
        flags = [cupy.isfinite(at_least_float32(array)).all() for array in sent]
        mine = cupy.stack(flags).all(keepdims=True).astype(np.int32)
        theirs, finite = cupy.empty_like(mine), cupyx.zeros_pinned(1, dtype=np.int32)
        self._after_computation()
        right, left = (self.rank + 1) % self.world_size, (self.rank - 1) % self.world_size
        self._nccl.groupStart()
        for going, arriving in zip((*sent, mine), (*coming, theirs), strict=True):
            self._comm.send(*self._buffer(going), right, self.stream.ptr)
            self._comm.recv(*self._buffer(arriving), left, self.stream.ptr)
        self._nccl.groupEnd()
        theirs.get(stream=self.stream, out=finite, blocking=False)
        return NcclShift(self, step, (*sent, mine, theirs), coming, finite)

    def sum(self, array: Array) -> Array:
        """The sum of the arrays of all ranks, to the last bit the same on each.

        16-bit numbers are added in float32.
        """
        wide = cupy.ascontiguousarray(at_least_float32(array))
        total = cupy.empty_like(wide)
        self._after_computation()
        address, count, dtype = self._buffer(wide)
        self._comm.allReduce(
            address, total.data.ptr, count, dtype, self._nccl.NCCL_SUM, self.stream.ptr
        )
        self._finish("a sum")
        return cast_like(total.reshape(array.shape), array)

    def gather(self, values: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        """The numbers of all ranks, in their order."""
        mine = cupy.asarray(np.asarray(values, dtype=np.int64))
        everyone = cupy.empty((self.world_size, len(values)), dtype=np.int64)
        self._after_computation()
        address, count, dtype = self._buffer(mine)
        self._comm.allGather(address, everyone.data.ptr, count, dtype, self.stream.ptr)
        self._finish("a gathering of numbers")
        return tuple(tuple(int(value) for value in row) for row in cupy.asnumpy(everyone))

    def wait_for(self, event: Any, whom: str, where: str) -> None:
        """Return when the event has come; the device goes on with what it has been given.

        Raises RuntimeError if it takes longer than the timeout, or if NCCL reports an error.
        """
        deadline = time.monotonic() + self._timeout
        while not event.done:
            try:
                self._comm.check_async_error()
            except self._nccl.NcclError as error:
                self._comm.abort()
                raise RuntimeError(f"rank {self.rank}: {error} in {where}") from error
            if time.monotonic() > deadline:
                self._comm.abort()
                raise RuntimeError(
                    f"rank {self.rank}: waited for {whom} in {where} for {self._timeout:g} s"
                )
            time.sleep(0)

    def _after_computation(self) -> None:
        """Let transfers start when all that was asked for so far has been computed."""
        self.stream.wait_event(cupy.cuda.get_current_stream().record())

    def _finish(self, what: str) -> None:
        self.wait_for(self.stream.record(), "the others", what)

    def _buffer(self, array: Array) -> tuple[int, int, int]:
        """Address, number of elements and NCCL's name of the dtype."""
        name = str(array.dtype)
        if name not in DTYPES:
            raise TypeError(f"array must have a dtype out of {', '.join(DTYPES)}, got {name}")
        return array.data.ptr, array.size, getattr(self._nccl, DTYPES[name])


def _nccl() -> Any:
    from cupy.cuda import nccl  # noqa: PLC0415  (it warns if there is no NCCL)

    if not nccl.available:
        raise RuntimeError("NCCL cannot be loaded: pip install nvidia-nccl-cu12")
    return nccl


@contextmanager
def world(timeout: float = TIMEOUT) -> Iterator[NcclCommunicator]:
    """The ring of all processes that `mpiexec` has started, each on a device of its machine.

    MPI numbers the processes and carries NCCL's id; all else goes through NCCL.
    """
    from mpi4py import MPI  # noqa: PLC0415  (only who asks for the world needs it)

    mpi = MPI.COMM_WORLD
    neighbours = mpi.Split_type(MPI.COMM_TYPE_SHARED)
    cupy.cuda.Device(neighbours.Get_rank() % cupy.cuda.runtime.getDeviceCount()).use()
    unique_id = _nccl().get_unique_id() if mpi.Get_rank() == 0 else None
    yield NcclCommunicator(
        mpi.Get_size(), mpi.bcast(unique_id, root=0), mpi.Get_rank(), timeout=timeout
    )
