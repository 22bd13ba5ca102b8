"""The core's communicator over anything with mpi4py's methods: real MPI, or the simulated one."""

import time
from collections.abc import Callable
from functools import reduce
from operator import add
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

from siglip_ref.communicator import Arrays, Communicator
from siglip_ref.types import Array

TIMEOUT = 60.0
"""Seconds that a rank waits for another before it gives up."""

_POLL = 1e-4
_DTYPES = (np.float64, np.float32, np.float16, np.int64, np.int32)
_AXES = 4
_HEADER = 3 + 1 + _AXES  # step, dtype, finite, then number of axes and their sizes
_SHIFT_TAG = 7


class RingError(RuntimeError):
    """The ring cannot go on; says which rank failed and in which ring step."""


class MpiShift:
    """One hop of some arrays; `wait` gives those from the left."""

    def __init__(self, finish: Callable[[], Arrays]) -> None:
        self._finish = finish

    def wait(self) -> Arrays:
        """The arrays from the left neighbour."""
        return self._finish()


class MpiCommunicator:
    """A ring over mpi4py's point-to-point methods.

    Each array goes with a header (ring step, dtype, shape, whether it is finite), which the
    receiver holds against its own step. A neighbour that sends nothing in time, is in another
    step, or sends a number that is not finite is named in a `RingError`.
    """

    def __init__(self, mpi: Any, timeout: float = TIMEOUT) -> None:
        self._mpi, self._timeout = mpi, timeout
        self._step = 0

    @property
    def rank(self) -> int:
        """The number of this device, from 0."""
        return int(self._mpi.Get_rank())

    @property
    def world_size(self) -> int:
        """How many devices there are."""
        return int(self._mpi.Get_size())

    def start_shift(self, arrays: Arrays) -> MpiShift:
        """Send arrays to the right and begin to receive as many from the left."""
        step, self._step = self._step, self._step + 1
        right, left = (self.rank + 1) % self.world_size, (self.rank - 1) % self.world_size
        sent = [_host(array) for array in arrays]
        headers = np.stack([_header(array, step) for array in sent])
        tag = _SHIFT_TAG + 2 * (step % 1000)
        coming = np.empty_like(headers)
        requests = [self._mpi.Isend(headers, dest=right, tag=tag)]
        requests += [self._mpi.Isend(array, dest=right, tag=tag + 1) for array in sent]
        arrival = self._mpi.Irecv(coming, source=left, tag=tag)

        def finish() -> Arrays:
            self._until(arrival, left, step)
            buffers = [
                _buffer(header, mine, left, step, self.rank)
                for header, mine in zip(coming, sent, strict=True)
            ]
            for buffer in buffers:
                self._until(self._mpi.Irecv(buffer, source=left, tag=tag + 1), left, step)
            for request in requests:
                self._until(request, right, step)
            for header in coming:
                if not header[2]:
                    raise RingError(
                        f"rank {left} sent a number that is not finite to rank {self.rank} "
                        f"in ring step {step}"
                    )
            return tuple(_like(b, a) for b, a in zip(buffers, arrays, strict=True))

        return MpiShift(finish)

    def sum(self, array: Array) -> Array:
        """The sum of the arrays of all ranks, added up in their order, the same on each."""
        # Round the ring as well, not by a collective call: that could wait for ever.
        return reduce(add, self._round(array))

    def gather(self, value: int) -> tuple[int, ...]:
        """The numbers of all ranks, in their order."""
        return tuple(int(x) for x in self._round(np.asarray(value, dtype=np.int64)))

    def _round(self, array: Array) -> list[Array]:
        """The arrays of all ranks, in their order."""
        found = {self.rank: array}
        for step in range(1, self.world_size):
            (array,) = self.start_shift((array,)).wait()
            found[(self.rank - step) % self.world_size] = array
        return [found[rank] for rank in range(self.world_size)]

    def _until(self, request: Any, other: int, step: int) -> None:
        """Wait for a request, but not for ever."""
        end = time.monotonic() + self._timeout
        while not request.Test():
            if time.monotonic() > end:
                raise RingError(
                    f"rank {other} did nothing for {self._timeout:g} s; rank {self.rank} waited "
                    f"for it in ring step {step}"
                )
            time.sleep(_POLL)


def communicator(mpi: Any, timeout: float = TIMEOUT) -> Communicator:
    """The core's communicator from the simulated MPI of `simulate`, or from `MPI.COMM_WORLD`."""
    return MpiCommunicator(mpi, timeout)


def _host(array: Array) -> np.ndarray:
    """The array in the memory of the host, in one piece."""
    if hasattr(array, "detach"):
        array = array.detach().cpu().numpy()
    elif not isinstance(array, np.ndarray) and hasattr(array, "to_device"):
        array = array.to_device(array_namespace(array).__array_namespace_info__().default_device())
    found = np.array(array, order="C")
    if found.dtype.type not in _DTYPES or found.ndim > _AXES:
        names = ", ".join(np.dtype(t).name for t in _DTYPES)
        raise ValueError(
            f"a shard must have at most {_AXES} axes and one of the dtypes {names}, "
            f"got {found.ndim} axes of {found.dtype}"
        )
    return found


def _header(array: np.ndarray, step: int) -> np.ndarray:
    finite = bool(np.all(np.isfinite(array)))
    sizes = [*array.shape, *(0 for _ in range(_AXES - array.ndim))]
    code = _DTYPES.index(array.dtype.type)
    return np.asarray([step, code, finite, array.ndim, *sizes], dtype=np.int64)


def _buffer(header: np.ndarray, mine: np.ndarray, sender: int, step: int, rank: int) -> np.ndarray:
    """Room for the array that a header announces, to be like the one that this rank has sent.

    Raises RingError if the sender is in another step, or sends another dtype or number of axes.
    """
    theirs, code, _, ndim, *sizes = (int(x) for x in header)
    if theirs != step:
        raise RingError(
            f"rank {sender} is in ring step {theirs} while rank {rank} is in ring step {step}"
        )
    dtype = np.dtype(_DTYPES[code]) if 0 <= code < len(_DTYPES) else None
    if dtype != mine.dtype or ndim != mine.ndim:
        raise RingError(
            f"rank {sender} sent {ndim} axes of {dtype} in ring step {step}, "
            f"where rank {rank} has {mine.ndim} axes of {mine.dtype}"
        )
    return np.empty(tuple(sizes[:ndim]), dtype=dtype)


def _like(array: np.ndarray, like: Array) -> Array:
    """A host array in the library and on the device of another."""
    if isinstance(like, np.ndarray):
        return array
    xp = array_namespace(like)
    return xp.asarray(array, device=device(like))
